"""One network in one type: ours and its peers, measured in turns, for `experiments.benchmarks.train_throughput`.

That command starts this module as a process for each network and type. What one of them leaves behind, an allocator's
pool or a process that the system ends because the memory is full, then touches no other. JAX and torch share the
process, for they take turns; so JAX is told not to take most of a GPU's memory at its start.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator

import jax
from absl import flags

from alexnet_resnet.errors import UserError
from alexnet_resnet.parallel import strategies
from experiments.benchmarks import blueprints, command, timing, training_steps

FLAGS = command.own_flags()
NETWORK = flags.DEFINE_string("network", None, "The network that a process of its own measures.", flag_values=FLAGS)
DTYPE = flags.DEFINE_string("dtype", None, "The type that it computes in.", flag_values=FLAGS)
BATCH_SIZES = flags.DEFINE_list(
    "batch_sizes", ["0"], "Images of a step, on all devices together; 0 for the default.", flag_values=FLAGS
)
PEERS = flags.DEFINE_list(
    "peers", ["torch", "linen", "nnx"], "Whom to measure beside ours: torch, linen, nnx.", flag_values=FLAGS
)
TORCH_COMPILE = flags.DEFINE_bool(
    "torch_compile", None, "Compile torch's networks; by default on a GPU only.", flag_values=FLAGS
)

OURS = "ours"
# The networks that each peer has. torch has all.
PEERS_OF = {"torch": tuple(training_steps.NETWORKS), "linen": ("resnet50", "resnet20"), "nnx": ("resnet20",)}

ACCELERATOR_BATCHES = (64, 128, 256)
# On processors, by the side of an image.
SMALL, LARGE = (32, 128), (8,)
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "can't allocate memory", "not enough memory", "bad_alloc")
LOST = "not measured: its process ended early"


class DoesNotFit(Exception):
    """A program needs more memory than there is."""


class Contender:
    """One that is measured, and is left out from the moment when it fails.

    Args:
      build: returns a contender for `timing.measure`, and the seconds that compiling it took; None where it compiles
        at its first call.

    Attributes:
      failure: why there is no figure; empty while all is well.
    """

    def __init__(self, build: Callable[[], tuple[Callable[[int], object], float | None]]):
        self.failure, self._compile_seconds, self._first = "", None, None
        try:
            self._run, self._compile_seconds = build()
        except Exception as error:
            self._fail(error)

    def __call__(self, calls: int):
        if self.failure:
            return None
        start = time.perf_counter()
        try:
            # Errors of JAX's programs arrive where their results are waited for.
            result = jax.block_until_ready(self._run(calls))
        except Exception as error:
            self._fail(error)
            return None
        if self._first is None:
            self._first = time.perf_counter() - start
        return result

    def compile_seconds(self, step: float) -> float:
        """What compiling took; where that is part of the first step, how much longer than another this took."""
        return max(0.0, self._first - step) if self._compile_seconds is None else self._compile_seconds

    def _fail(self, error: Exception) -> None:
        text = " ".join(str(error).split())
        if isinstance(error, DoesNotFit):
            self.failure = f"out of memory: {text}"
        elif isinstance(error, MemoryError) or any(sign.lower() in text.lower() for sign in OUT_OF_MEMORY):
            self.failure = "out of memory"
        elif isinstance(error, ModuleNotFoundError) and error.name == "torch":
            self.failure = "torch is not installed"
        else:
            self.failure = text[:200] if isinstance(error, UserError) else f"{type(error).__name__}: {text[:200]}"
        # Its memory is for the others.
        self._run = None


def batch_sizes(side: int, asked: list[int]) -> list[int]:
    """The batch sizes that are measured with images of this side."""
    if asked != [0]:
        return asked
    if command.QUICK.value:
        return [4]
    if jax.default_backend() != "cpu":
        return list(ACCELERATOR_BATCHES)
    return list(SMALL if side <= 32 else LARGE)


def contenders(name: str, config, peers: list[str]) -> dict[str, tuple[int, Callable]]:
    """The number of devices of each contender, and what builds it.

    Ours on one device is what peers are compared with. With several devices it is measured on all of them too, the
    batch shared out: a network in columns by all strategies, the others by 'data'.
    """
    devices = jax.devices()
    found = {OURS: (1, lambda: _ours(config, "data", devices[:1]))}
    if len(devices) > 1:
        able = strategies.supported(config.model)
        for strategy in able if "columns" in able else ("data",):
            build = lambda strategy=strategy: _ours(config, strategy, devices)  # noqa: E731
            found[f"{OURS}, {strategy}"] = len(devices), build
    for peer in peers:
        if name in PEERS_OF[peer]:
            found[peer] = 1, lambda peer=peer: _peer(peer, config)
    return found


def _ours(config, strategy: str, devices: list) -> tuple[Callable, float]:
    config = config.copy_and_resolve_references()
    config.parallel.update(strategy=strategy, data=-1, model=-1)
    program, seconds, contender = training_steps.create(config, devices)
    _check_memory(program)
    return contender, seconds


def _peer(peer: str, config) -> tuple[Callable, float | None]:
    blueprint = blueprints.create(config)
    if peer == "torch":
        from experiments.benchmarks import peers_torch

        platform = jax.default_backend()
        compiled = platform == "gpu" if TORCH_COMPILE.value is None else TORCH_COMPILE.value
        return peers_torch.create(config, blueprint, platform, compiled), None
    if peer == "linen":
        from experiments.benchmarks import linen_resnet as plain
    else:
        from experiments.benchmarks import nnx_resnet as plain
    program, seconds, contender = plain.create(config, blueprint)
    _check_memory(program)
    return contender, seconds


def _check_memory(program: jax.stages.Compiled) -> None:
    """Accelerators refuse what does not fit; an operating system ends the process instead."""
    if jax.default_backend() != "cpu":
        return
    needed, free = program.memory_analysis().temp_size_in_bytes, available_memory()
    if needed > free:
        raise DoesNotFit(f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")


def available_memory() -> float:
    """Bytes of the host's memory that can be had; infinite where the system does not tell."""
    try:
        with open("/proc/meminfo") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")


def measure(name: str, dtype: str, asked: list[int], peers: list[str]) -> Iterator[dict]:
    """The rows of one network in one type.

    All rows come first without a figure, so that it is known what is missing if the process is ended; each comes again
    once it is measured.
    """
    # Read when JAX first looks for a GPU, and when torch first compiles.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    quick = command.QUICK.value
    config_of = lambda size: training_steps.config(name, dtype, size, quick)  # noqa: E731
    config = config_of(1)
    flops = training_steps.training_flops(config)
    sizes = batch_sizes(config.data.image_size, asked)
    teams = {size: contenders(name, config_of(size), peers) for size in sizes}
    row = dict(network=name, dtype=dtype, flops_per_image=flops)
    for size, team in teams.items():
        for title, (devices, _) in team.items():
            yield row | dict(batch_size=size, contender=title, devices=devices, failure=LOST)
    for size, team in teams.items():
        entered = {}
        for title, (_, build) in team.items():
            command.say(f"{name}, {dtype}, batch {size}: compiling {title}")
            entered[title] = Contender(build)
        spreads = timing.measure({title: one for title, one in entered.items() if not one.failure})
        for title, one in entered.items():
            found = row | dict(batch_size=size, contender=title, devices=team[title][0], failure=one.failure)
            if not one.failure:
                found["images_per_second"] = spreads[title].rate(size)
                found["compile_seconds"] = one.compile_seconds(spreads[title].median)
            yield found
        del entered, one
        _forget()


def _forget() -> None:
    """Gives back what the last contenders held."""
    gc.collect()
    if "torch" in sys.modules:
        from experiments.benchmarks import peers_torch

        peers_torch.forget()


def numbers(texts: list[str]) -> list[int]:
    """The values of --batch_sizes.

    Raises:
      UserError: one of them is no number, or below 1; 0 may stand alone.
    """
    if texts == ["0"]:
        return [0]
    for text in texts:
        if not text.isdecimal() or int(text) < 1:
            raise UserError(f"batch_sizes={text!r}: expected numbers of at least 1, or 0 alone for the default.")
    if not texts:
        raise UserError("batch_sizes='': expected numbers of at least 1, or 0 alone for the default.")
    return [int(text) for text in texts]


def main() -> None:
    for row in measure(NETWORK.value, DTYPE.value, numbers(BATCH_SIZES.value), PEERS.value):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    command.run(main, FLAGS)
