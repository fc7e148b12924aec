"""The training loop and the bare step in turns: which steps are measured as what, by whom, and what follows from it."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax

from experiments.benchmarks import command

# What is required, of medians: the loop's rate as a share of the bare step's, and what a save costs as a share.
LEAST_RATE, MOST_COST = 0.97, 0.03
# Calls after which the loop has its pace again: it is up to two ahead of the device.
RUN_UP = 4


@dataclasses.dataclass(frozen=True)
class Turns:
    """Which steps of a training are measured as what.

    Attributes:
      steps: of a measurement, a multiple of `call`.
      call: steps that the loop hands to the device at a time.
      rounds: of measurements.
    """

    steps: int
    call: int
    rounds: int

    @property
    def every(self) -> int:
        """From one save to the next: the run-up, a measurement without a save, and one that begins just before it."""
        return 2 * self.steps + RUN_UP * self.call

    @property
    def total(self) -> int:
        """The last step: the end of the last measurement, which is the last round's with a save."""
        return self.rounds * self.every - self.call + self.steps

    def begins(self, number: int) -> str:
        """What begins after a step: 'bare', which the loop is held for, then 'run-up', 'loop', 'saving', or nothing."""
        place = (number + self.call) % self.every
        return {0: "saving", self.steps: "bare", self.steps + RUN_UP * self.call: "loop"}.get(place, "")


class Watch:
    """The callback of a training: takes the times, and has the bare step run while the loop is held.

    Args:
      turns: what is when.
      bare: takes so many steps, and returns something to wait for.

    Attributes:
      seconds: by 'bare', 'loop' and 'saving', the wall and the processor seconds of a step, round by round.
      held: seconds for which the loop was held.
    """

    def __init__(self, turns: Turns, bare: Callable[[int], object]):
        self._turns, self._bare = turns, bare
        self._running, self._since = "", (0.0, 0.0)
        self.seconds: dict[str, list[tuple[float, float]]] = {"bare": [], "loop": [], "saving": []}
        self.held = 0.0

    def __call__(self, number: int) -> None:
        """After the step `number` was handed to the device."""
        what = self._turns.begins(number)
        if not what:
            return
        self._end()
        if what == "bare":
            start = time.perf_counter()
            _wait_for_the_device()
            _wait_for_the_host()
            jax.block_until_ready(self._bare(self._turns.call))
            self._begin("bare")
            jax.block_until_ready(self._bare(self._turns.steps))
            self._end()
            self.held += time.perf_counter() - start
        else:
            self._begin(what)

    def _begin(self, what: str) -> None:
        self._running, self._since = what, (time.perf_counter(), time.process_time())

    def _end(self) -> None:
        if self._running:
            now = time.perf_counter(), time.process_time()
            taken = tuple((after - before) / self._turns.steps for after, before in zip(now, self._since, strict=True))
            self.seconds[self._running].append(taken)
            command.say(f"{self._running:<8}{1e3 * taken[0]:10.2f} ms a step")
        self._running = ""


def _wait_for_the_device() -> None:
    jax.block_until_ready([array for array in jax.live_arrays() if not array.is_deleted()])


def _wait_for_the_host() -> None:
    """Until this process is idle: what is being saved is saved, and tf.data's buffers are full. At most ten seconds."""
    for _ in range(100):
        used = time.process_time()
        time.sleep(0.1)
        if time.process_time() - used < 0.01:
            return


def compare(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """The loop's rate as a share of the bare step's, and what a save costs as a share of the loop's time.

    Args:
      seconds: of a step by 'bare', 'loop' and 'saving', round by round, and 'bare' once more at the end.
    """
    around = [(before + after) / 2 for before, after in zip(seconds["bare"], seconds["bare"][1:], strict=False)]
    rates = [bare / taken for bare, taken in zip(around, seconds["loop"], strict=True)]
    costs = [saving / taken - 1 for saving, taken in zip(seconds["saving"], seconds["loop"], strict=True)]
    return dict(rate=_spread(rates), save_cost=_spread(costs))


def _spread(values: list[float]) -> dict[str, float]:
    return dict(median=statistics.median(values), lowest=min(values), highest=max(values))


def judge(paths: dict[str, dict], steps: int) -> list[dict]:
    """The requirements, each with the median that decides."""
    found = []
    for path, row in paths.items():
        rate, cost = (row["wall"][name]["median"] for name in ("rate", "save_cost"))
        text = f"{path}: the loop at least {LEAST_RATE} of the bare step's rate"
        found.append(dict(requirement=text, figure=rate, holds=bool(rate >= LEAST_RATE)))
        text = f"{path}: a save every {steps} steps costs less than {MOST_COST:.0%}"
        found.append(dict(requirement=text, figure=cost, holds=bool(cost < MOST_COST)))
    return found
