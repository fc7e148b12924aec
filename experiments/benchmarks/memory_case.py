"""What one training step needs: compiled and taken once, in a process that does nothing else (`memory`)."""

import dataclasses
import json

import jax
from absl import flags

from alexnet_resnet.errors import UserError
from alexnet_resnet.parallel.host import peak_memory
from experiments.benchmarks import command, processes, training_steps
from experiments.study import plan

FLAGS = command.own_flags()
ONE = flags.DEFINE_string("one", "", "NETWORK,FORM,BATCH such as resnet20,plain,128.", flag_values=FLAGS)

# With the batch sizes on processors and on accelerators.
NETWORKS = {
    "resnet20": ("resnet_cifar.py:20", (128,), (128, 1024)),
    "resnet110": ("resnet_cifar.py:110", (64,), (128, 1024)),
    "resnet1202": ("resnet_cifar.py:1202", (64,), (64, 128)),
    "resnet50": ("resnet.py:50", (32,), (128, 256)),
    "resnet152": ("resnet.py:152", (), (128,)),
}
FORMS = {
    "plain": {},
    "block": dict(remat="block"),
    "scan": dict(scan=True),
    "scan+block": dict(scan=True, remat="block"),
    "parts": dict(accumulate=4),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured in one process."""

    network: str
    form: str
    batch_size: int

    def __str__(self) -> str:
        return f"{self.network},{self.form},{self.batch_size}"


def measure_here(case: Case) -> dict:
    """Compiles one step, takes it once, and tells what it needed."""
    config = plan.full_config(plan.Run("", NETWORKS[case.network][0]))
    fields = dict(FORMS[case.form])
    config.train.batch_size, config.train.accumulate = case.batch_size, fields.pop("accumulate", 1)
    config.model.update(fields)
    if config.model.ghost_batch and case.batch_size // config.train.accumulate % config.model.ghost_batch:
        config.model.ghost_batch = 0
    config.optimizer.learning_rate = config.optimizer.warmup_learning_rate = training_steps.LEARNING_RATE
    if command.QUICK.value:
        config.model.depth, config.model.width = 14, 0.25
    before = peak_memory()
    program, seconds, step = training_steps.create(config, jax.devices()[:1])
    jax.block_until_ready(step(1))
    plan_ = program.memory_analysis()
    planned = plan_.argument_size_in_bytes + plan_.output_size_in_bytes + plan_.temp_size_in_bytes
    return dict(
        compile_seconds=seconds,
        planned=planned - plan_.alias_size_in_bytes,
        temporary=plan_.temp_size_in_bytes,
        before=before,
        peak=peak_memory(),
    )


def case_of(text: str) -> Case:
    """The case that a text such as 'resnet20,plain,128' names.

    Raises:
      UserError: it names none.
    """
    parts = text.split(",")
    if len(parts) != 3 or parts[0] not in NETWORKS or parts[1] not in FORMS or not parts[2].isdecimal():
        raise UserError(f"one={text!r}: expected NETWORK,FORM,BATCH such as resnet20,plain,128.")
    return Case(parts[0], parts[1], int(parts[2]))


def main() -> None:
    """Prints what was found, or that there was not enough memory."""
    case = case_of(ONE.value)
    try:
        found = measure_here(case)
    except Exception as error:
        if not any(said in str(error) for said in processes.SAID) and not isinstance(error, MemoryError):
            raise
        found = dict(failure=processes.OUT_OF_MEMORY)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    command.run(main, FLAGS)
