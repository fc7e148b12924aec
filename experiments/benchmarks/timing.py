"""How fast something is: the contenders in turns, compiled and warmed up before, and the device's peak."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from experiments.benchmarks import command

# Floating-point operations a second that makers state for dense matrix products, by JAX's name of the device and the
# type: NVIDIA's data sheets (V100, A100, H100 SXM5, H200) without sparsity, Google's pages of TPU versions. float32 is
# the rate that JAX's default precision reaches: TF32 on GPUs, bfloat16 passes on TPUs.
STATED = {
    "Tesla V100-SXM2-16GB": {"float32": 15.7e12},
    "NVIDIA A100-SXM4-40GB": {"float32": 156e12, "bfloat16": 312e12},
    "NVIDIA A100-SXM4-80GB": {"float32": 156e12, "bfloat16": 312e12},
    "NVIDIA H100 80GB HBM3": {"float32": 494.7e12, "bfloat16": 989.4e12},
    "NVIDIA H200": {"float32": 494.7e12, "bfloat16": 989.4e12},
    "TPU v4": {"bfloat16": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v5": {"bfloat16": 459e12},
}


@dataclasses.dataclass(frozen=True)
class Spread:
    """Seconds a call over the rounds."""

    median: float
    lowest: float
    highest: float
    rounds: int

    def rate(self, amount: float) -> dict[str, float]:
        """What is done a second when one call does so much: the median, lowest and highest."""
        return dict(median=amount / self.median, lowest=amount / self.highest, highest=amount / self.lowest)


def compiled(function: Callable, *arguments: Any) -> tuple[jax.stages.Compiled, float]:
    """A jitted function compiled for these arguments, and the seconds that tracing and compiling took.

    The persistent compilation cache is left out: its hits would be taken for a fast compiler.
    """
    with without_cache():
        start = time.perf_counter()
        program = function.lower(*arguments).compile()
        return program, time.perf_counter() - start


class without_cache:
    """Leaves JAX's persistent compilation cache out, whatever the environment says."""

    def __enter__(self):
        self._before = jax.config.jax_enable_compilation_cache
        self._use(False)

    def __exit__(self, *exception):
        self._use(self._before)

    def _use(self, enabled: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", enabled)
        # JAX looks whether it has a cache at its first compilation alone.
        compilation_cache.reset_cache()


def measure(contenders: Mapping[str, Callable[[int], Any]]) -> dict[str, Spread]:
    """Seconds a call of each contender, all of them in turns so that a disturbance of the machine meets all.

    Args:
      contenders: functions of a number of calls, which make so many and return something to wait for. The first call,
        of a single one, is not counted: it may compile and fill caches.

    The number of calls is what fills `--seconds`, by what two calls took.
    """
    calls, found = {}, {name: [] for name in contenders}
    for name, contender in contenders.items():
        jax.block_until_ready(contender(1))
        start = time.perf_counter()
        jax.block_until_ready(contender(1))
        calls[name] = max(1, round(command.seconds() / max(time.perf_counter() - start, 1e-9)))
    for number in range(command.rounds()):
        for name, contender in contenders.items():
            start = time.perf_counter()
            jax.block_until_ready(contender(calls[name]))
            found[name].append((time.perf_counter() - start) / calls[name])
            command.say(f"round {number + 1}: {name:<40}{1e3 * found[name][-1]:12,.3f} ms")
    return {name: Spread(statistics.median(s), min(s), max(s), len(s)) for name, s in found.items()}


def repeatedly(program: Callable, *arguments: Any) -> Callable[[int], Any]:
    """A contender that calls a function whose arguments stay what they are."""

    def contender(calls: int):
        for _ in range(calls):
            result = program(*arguments)
        return result

    return contender


def onwards(program: Callable, state: Any, *arguments: Any) -> Callable[[int], Any]:
    """A contender that maps a state to the next; the function may take the old one's memory."""
    box = [state]

    def contender(calls: int):
        for _ in range(calls):
            box[0], measured = program(box[0], *arguments)
        return measured

    return contender


@functools.cache
def peak(dtype: str) -> tuple[float, str]:
    """Floating-point operations a second of one device at its best, and where the figure is from.

    The maker's figure where `STATED` has it, else what a large matrix product reaches here, the best of several.
    """
    kind = jax.devices()[0].device_kind
    if dtype in STATED.get(kind, ()):
        return STATED[kind][dtype], f"stated by the maker for {kind}"
    side = 256 if command.QUICK.value else 2048
    a = jnp.ones((side, side), dtype)
    product, _ = compiled(jax.jit(jnp.matmul), a, a)
    best = float("inf")
    for _ in range(2 if command.QUICK.value else 8):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best, f"measured: a matrix product of {side} x {side}, the best of several"
