"""The training loop and the bare step in turns: which steps are measured as what, by whom, and what follows from it."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax

from experiments.benchmarks import command

# What is required, of medians: the loop's rate as a share of the bare step's, and what a save every so many steps costs
# as a share of the loop's time.
LEAST_RATE, MOST_COST, EVERY = 0.97, 0.03, 100
# Calls after which the loop has its pace again: it is up to two ahead of the device.
RUN_UP = 4


@dataclasses.dataclass(frozen=True)
class Turns:
    """Which steps of a training are measured as what.

    Attributes:
      steps: of a measurement, a multiple of `call`.
      call: steps that the loop hands to the device at a time.
      rounds: of measurements.
      saves: whether each round has a save, with a measurement that begins just before it.
    """

    steps: int
    call: int
    rounds: int
    saves: bool

    @property
    def _hold(self) -> int:
        """Where in the period the loop is held, counted from one call before its end: the first time after a call."""
        return self.steps if self.saves else 2 * self.call

    @property
    def every(self) -> int:
        """The period: a measurement with a save if there is one, the bare step's, the run-up, one without a save."""
        return self.steps * self.saves + RUN_UP * self.call + self.steps

    @property
    def total(self) -> int:
        """The last step, at which the last measurement of the bare step begins."""
        return self.rounds * self.every + self._hold - self.call

    @property
    def save_every(self) -> int:
        """Steps from one save to the next; beyond the end where there is to be none."""
        return self.every if self.saves else 2 * self.total

    def begins(self, number: int) -> str:
        """What begins after a step: 'saving', 'bare', which the loop is held for, 'loop', or nothing."""
        place = (number + self.call) % self.every
        if place == 0 and self.saves:
            return "saving"
        return {self._hold: "bare", (self._hold + RUN_UP * self.call) % self.every: "loop"}.get(place, "")


class Watch:
    """The callback of a training: takes the times, and has the bare step run while the loop is held.

    Args:
      turns: what is when.
      bare: takes so many steps, and returns something to wait for.

    Attributes:
      seconds: of a step, wall and processor, round by round, by 'bare', 'loop' and, if there are saves, 'saving'.
      held: seconds for which the loop was held.
    """

    def __init__(self, turns: Turns, bare: Callable[[int], object]):
        self._turns, self._bare = turns, bare
        self._running, self._since = "", (0.0, 0.0)
        kinds = ("bare", "loop", "saving") if turns.saves else ("bare", "loop")
        self.seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
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


def rates(seconds: dict[str, list[float]]) -> dict[str, float]:
    """The loop's rate as a share of the bare step's, before and after it.

    Args:
      seconds: of a step by 'bare' and 'loop', round by round, and 'bare' once more at the end.
    """
    around = [(before + after) / 2 for before, after in zip(seconds["bare"], seconds["bare"][1:], strict=False)]
    return _spread([bare / taken for bare, taken in zip(around, seconds["loop"], strict=True)])


def costs(seconds: dict[str, list[float]], window: int) -> dict[str, float]:
    """What a save every `EVERY` steps costs as a share of the loop's time.

    Args:
      seconds: of a step by 'loop' and 'saving', round by round.
      window: steps of each measurement.
    """
    both = zip(seconds["saving"], seconds["loop"], strict=True)
    return _spread([(saving / taken - 1) * window / EVERY for saving, taken in both])


def _spread(values: list[float]) -> dict[str, float]:
    return dict(median=statistics.median(values), lowest=min(values), highest=max(values))


def judge(paths: dict[str, dict]) -> list[dict]:
    """The requirements, each with the median that decides."""
    found = []
    for path, row in paths.items():
        rate, cost = (row["wall"][name]["median"] for name in ("rate", "save_cost"))
        text = f"{path}: the loop at least {LEAST_RATE} of the bare step's rate"
        found.append(dict(requirement=text, figure=rate, holds=bool(rate >= LEAST_RATE)))
        text = f"{path}: a save every {EVERY} steps costs less than {MOST_COST:.0%}"
        found.append(dict(requirement=text, figure=cost, holds=bool(cost < MOST_COST)))
    return found
