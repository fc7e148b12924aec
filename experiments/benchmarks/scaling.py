"""What each strategy costs from 1 to 256 devices, and where `columns` or `hybrid` beats `data`.

    python -m experiments.benchmarks.scaling --out=results/scaling

Result: results/scaling, explained in docs/scaling.md. At 128 examples a device without overlap `hybrid` wins from 2
devices on over NVLink, InfiniBand and the links of a TPU v5e; with full overlap over InfiniBand alone.

The training step is compiled for simulated devices, once for each strategy and number of devices, and never run: what
each device receives is read out of the compiled programs (`alexnet_resnet.analysis.audit`). How long that takes is
computed from a stated model of links (`experiments/benchmarks/links.py`), and what a device computes from the network's
multiply-adds: twice as many operations, three times over for the way there, the gradients of activations and those of
parameters, at --efficiency of the device's stated peak in float32 at JAX's default precision (TF32 on GPUs, bfloat16
passes on TPUs). The links work at their stated rates.

Two bounds are given: with no overlap computation and exchanges follow each other; with full overlap all exchanges hide
behind the computation but those of activations, since the layer waits for them. The number of devices grows at
--batch_per_device examples each (weak scaling) and at --global_batch examples in all (strong scaling); the steps of
other batches than the compiled are scaled from it, which is checked against programs that are compiled for them.

Where there are GPUs or TPUs, the step is also run on as many of them as there are, by each strategy, for `--rounds` of
`--seconds`. On a processor nothing is measured, for simulated devices share it (but with --quick, to see that it runs).

Networks: alexnet (all strategies), resnet50 and vgg16 (data and fsdp). AlexNet takes 10 minutes of two cores, ResNet-50
20, VGG-16 5; nothing is timed on them, and a persistent compilation cache (JAX_COMPILATION_CACHE_DIR) is used.
"""

import os

import jax
from absl import flags
from ml_collections import ConfigDict

from alexnet_resnet import config as config_lib
from alexnet_resnet.analysis import audit, summary
from alexnet_resnet.errors import UserError, check_at_least, check_choice
from alexnet_resnet.parallel import strategies
from alexnet_resnet.training import state as state_lib
from experiments.benchmarks import command, scaling_model, scaling_report, timing, training_steps
from experiments.benchmarks.links import LINKS
from experiments.benchmarks.scaling_model import Program, Step

# The network and its fields. Batch statistics are of 32 images, or of all that a device has: they stay on the device.
NETWORKS = {
    "alexnet": ("alexnet", {}),
    "resnet50": ("resnet", dict(depth=50, ghost_batch=32)),
    "vgg16": ("vgg", dict(depth=16)),
}
# No larger batch per device is looked at.
MOST = 2**16

FLAGS = command.own_flags()
NETWORK = flags.DEFINE_string("network", "alexnet", f"One of {', '.join(NETWORKS)}.", flag_values=FLAGS)
DEVICES = flags.DEFINE_list(
    "devices", [2**i for i in range(9)], "Numbers of devices, powers of two.", flag_values=FLAGS
)
BATCH = flags.DEFINE_integer("batch_per_device", 128, "Examples a device, for weak scaling.", flag_values=FLAGS)
GLOBAL_BATCH = flags.DEFINE_integer("global_batch", 1024, "Examples in all, for strong scaling.", flag_values=FLAGS)
LINK_KINDS = flags.DEFINE_list(
    "links", ["nvlink", "infiniband", "ici_v5e"], f"Of {', '.join(LINKS)}.", flag_values=FLAGS
)
DEVICE_KIND = flags.DEFINE_string(
    "device_kind", "", "Computes at this device's peak; by default at the links' own.", flag_values=FLAGS
)
EFFICIENCY = flags.DEFINE_float(
    "efficiency", 0.4, "The share of its peak that a device computes at.", flag_values=FLAGS
)


def device_counts() -> list[int]:
    """The numbers of devices, ascending.

    Raises:
      UserError: one is no power of two.
    """
    counts = set()
    for text in DEVICES.value:
        count = int(text) if str(text).isdecimal() else 0
        if count < 1 or count & (count - 1):
            raise UserError(f"devices={text!r}: expected powers of two, such as 1,2,4.")
        counts.add(count)
    if not counts:
        raise UserError("devices=[]: expected powers of two, such as 1,2,4.")
    return sorted(count for count in counts if count <= 2 or not command.QUICK.value)


def check() -> None:
    """Refuses flags that are known to be wrong.

    Raises:
      UserError: says which.
    """
    check_choice("network", NETWORK.value, tuple(NETWORKS))
    for name in LINK_KINDS.value:
        check_choice("links", name, tuple(LINKS))
    if not LINK_KINDS.value:
        raise UserError(f"links=[]: expected some of {', '.join(map(repr, LINKS))}.")
    if DEVICE_KIND.value:
        check_choice("device_kind", DEVICE_KIND.value, tuple(timing.STATED))
    check_at_least("batch_per_device", BATCH.value, 1)
    check_at_least("global_batch", GLOBAL_BATCH.value, 1)
    if not 0 < EFFICIENCY.value <= 1:
        raise UserError(f"efficiency={EFFICIENCY.value}: expected a number above 0 and at most 1.")
    most = max(device_counts(), default=1)
    if GLOBAL_BATCH.value % most:
        raise UserError(f"global_batch={GLOBAL_BATCH.value}: expected a multiple of {most}, the most devices.")


def simulated(count: int) -> list[jax.Device]:
    """Devices that a program can be compiled for; to be called before JAX has been used.

    Raises:
      UserError: JAX was told to have fewer, or none on the processor.
    """
    forced = "xla_force_host_platform_device_count" in os.getenv("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices < count and not forced:
        jax.config.update("jax_num_cpu_devices", count)
    try:
        devices = jax.devices("cpu")
    except RuntimeError as error:
        raise UserError(f"JAX_PLATFORMS={os.getenv('JAX_PLATFORMS')!r}: expected 'cpu' among them.") from error
    if len(devices) < count:
        raise UserError(f"devices={count}: expected at most {len(devices)}, as many as JAX simulates here.")
    return devices[:count]


def configuration(strategy: str, count: int, batch_per_device: int):
    """A training of the network on so many devices."""
    name, fields = NETWORKS[NETWORK.value]
    config = config_lib.default(name)
    config.model.update(fields)
    if "ghost_batch" in fields:
        config.model.ghost_batch = min(fields["ghost_batch"], batch_per_device)
    config.data.update(canvas_size=256, image_size=224, num_classes=1000, mean="none")
    if command.QUICK.value:
        config.model.width = 1 / 16
        config.data.update(canvas_size=67, image_size=67, num_classes=10)
    config.train.batch_size = batch_per_device * count
    config.parallel.strategy = strategy
    return config


def compiled(devices: list[jax.Device], strategy: str, count: int, batch_per_device: int) -> Program:
    """What the step of a strategy exchanges, compiled for the first of the devices."""
    config = configuration(strategy, count, batch_per_device)
    found = audit.audit(config, strategies.create(config, devices[:count]))
    command.say(f"compiled: {found.strategy}, batch {found.batch_size}")
    return scaling_model.program(found)


def names(count: int) -> tuple[str, ...]:
    """The strategies that differ on so many devices: on one, all are as 'data'."""
    return strategies.supported(configuration("data", 1, 1).model) if count > 1 else ("data",)


def measured(devices: list[jax.Device], counts: list[int], batch_per_device: int) -> list[dict]:
    """Images a second of the step, by strategy and number of devices, on real devices."""
    keys = [(name, count) for count in counts if count <= len(devices) for name in names(count)]
    # Where the figures mean nothing, one will do.
    keys = keys[-1:] if command.QUICK.value else keys
    contenders = {
        f"{name} on {count}": training_steps.create(_still(name, count, batch_per_device), devices[:count])[-1]
        for name, count in keys
    }
    return [
        dict(
            strategy=name,
            devices=count,
            seconds=spread.median,
            images_per_second=spread.rate(batch_per_device * count),
        )
        for (name, count), spread in zip(keys, timing.measure(contenders).values(), strict=True)
    ]


def _still(name: str, count: int, batch_per_device: int) -> ConfigDict:
    """The configuration of a step that is taken again and again: devices are faster with zeros and NaNs."""
    config = configuration(name, count, batch_per_device)
    config.optimizer.learning_rate = config.optimizer.warmup_learning_rate = training_steps.LEARNING_RATE
    return config


def peak(kind: str) -> float:
    """The stated operations a second of a device for float32 at JAX's default precision."""
    rates = timing.STATED[kind]
    return rates.get("float32", rates.get("bfloat16"))


def modelled(programs: dict[str, dict[int, Program]], work: float, batch: int, global_batch: int) -> dict:
    """Steps, crossovers and the batches up to which a strategy beats `data`, for each kind of links.

    Args:
      programs: by strategy and number of devices.
      work: operations for one example.
      batch: examples a device, for weak scaling.
      global_batch: examples in all, for strong scaling.
    """
    result = {}
    for name in LINK_KINDS.value:
        fabric, kind = LINKS[name], DEVICE_KIND.value or LINKS[name].device
        rate = peak(kind) * EFFICIENCY.value

        def step(strategy: str, count: int, examples: float, fabric=fabric, rate=rate) -> Step:
            return scaling_model.step(programs[strategy][count].at(examples), fabric, work * examples / rate)

        steps = {
            way: {s: {n: step(s, n, size(n)) for n in at} for s, at in programs.items()}
            for way, size in (("weak", lambda n: batch), ("strong", lambda n: global_batch / n))
        }
        times = {
            way: {
                s: {n: dict(vars(one), apart=one.apart, overlapped=one.overlapped) for n, one in at.items()}
                for s, at in found.items()
            }
            for way, found in steps.items()
        }
        rivals = [s for s in programs if s in ("columns", "hybrid")]
        result[name] = dict(
            title=fabric.title,
            source=fabric.source,
            device_kind=kind,
            peak=peak(kind),
            times=times,
            crossover={
                way: {s: {b: _crossover(times[way], s, b) for b in scaling_model.BOUNDS} for s in rivals}
                for way in times
            },
            largest_batch={
                s: {n: {b: _largest(step, s, n, b) for b in scaling_model.BOUNDS} for n in programs[s]} for s in rivals
            },
        )
    return result


def _crossover(times: dict, strategy: str, bound: str) -> dict:
    """The number of devices from which on the strategy beats `data`, and all at which it does."""
    own, data = ({n: one[bound] for n, one in times[s].items()} for s in (strategy, "data"))
    return {"from": scaling_model.crossover(own, data), "at": scaling_model.beating(own, data)}


def _largest(step, strategy: str, count: int, bound: str) -> int:
    def holds(examples: int) -> bool:
        own, data = (getattr(step(s, count, examples), bound) for s in (strategy, "data"))
        return scaling_model.beats(own, data)

    return scaling_model.largest(holds, MOST)


def measure() -> dict:
    """Compiles, models, and measures where there is something to measure on."""
    check()
    counts, batch = device_counts(), min(BATCH.value, 4) if command.QUICK.value else BATCH.value
    devices = simulated(counts[-1])
    programs: dict[str, dict[int, Program]] = {}
    for count in counts:
        for name in names(count):
            programs.setdefault(name, {})[count] = compiled(devices, name, count, batch)
    most, strong = counts[-1], GLOBAL_BATCH.value // counts[-1]
    waiting = [name for name in programs if programs[name][most].received(*scaling_model.WAITED_FOR)] or ["data"]
    checked = {
        name: dict(
            scaled=programs[name][most].at(strong).received(),
            compiled=compiled(devices, name, most, strong).received(),
        )
        for name in waiting[: 1 if command.QUICK.value else None]
    }
    config = configuration("data", 1, batch)
    network = state_lib.from_config(config)
    rows = summary.rows(config.model, network.image_shape, network.num_classes)
    multiply_adds = sum(row.multiply_adds for row in rows)
    real = [device for device in jax.devices() if device.platform != "cpu" or command.QUICK.value]
    return dict(
        network=NETWORK.value,
        parameters=network.parameter_count,
        multiply_adds=multiply_adds,
        batch_per_device=batch,
        global_batch=GLOBAL_BATCH.value,
        efficiency=EFFICIENCY.value,
        margin=scaling_model.MARGIN,
        most=MOST,
        programs={name: {n: _facts(one) for n, one in at.items()} for name, at in programs.items()},
        checked=dict(devices=most, batch_per_device=strong, strategies=checked),
        links=modelled(programs, 6 * multiply_adds, batch, GLOBAL_BATCH.value),
        measured_on=real[0].device_kind if real else None,
        measured=measured(real, counts, batch) if real else [],
    )


def _facts(one: Program) -> dict:
    """A program as the JSON has it."""
    facts = dict(vars(one), traffic=[vars(traffic) for traffic in one.traffic])
    return facts | dict(received=one.received())


if __name__ == "__main__":
    command.main(command.Benchmark("scaling", measure, scaling_report.table, scaling_report.draw, (FLAGS,)))
