"""What a training step of the CIFAR-10 network takes to trace and to compile, in a process of its own (`startup`)."""

import json
import time

import jax
from absl import flags

from experiments.benchmarks import command, timing, training_steps

FLAGS = command.own_flags()
DEPTH = flags.DEFINE_integer("depth", 20, "Layers, 6n + 2.", flag_values=FLAGS)
SCAN = flags.DEFINE_bool("scan", False, "Each stage's blocks in a loop.", flag_values=FLAGS)


def measure_here() -> dict:
    """Seconds of tracing and of compiling, and the length of the lowered program. Nothing is run."""
    config = training_steps.config("resnet20", "float32", 128)
    config.model.depth, config.model.scan = DEPTH.value, SCAN.value
    if command.QUICK.value:
        config.model.width = 0.25
    step, shapes, batch, _ = training_steps.lowerable(config, jax.devices()[:1])
    with timing.without_cache():
        begun = time.perf_counter()
        lowered = step.lower(shapes, batch)
        traced = time.perf_counter()
        lowered.compile()
        return dict(
            trace_seconds=traced - begun,
            compile_seconds=time.perf_counter() - traced,
            lines=lowered.as_text().count("\n"),
        )


if __name__ == "__main__":
    command.run(lambda: print(json.dumps(measure_here()), flush=True), FLAGS)
