"""Examples that cannot be read: counted and left out, until they are too many."""

import threading
from collections.abc import Callable

from alexnet_resnet.data.examples import EncodedExamples, Examples
from alexnet_resnet.errors import UserError

# Reasons that a line tells.
NAMED = 5


class Faults:
    """The examples of a split that could not be read so far. Safe to use from several threads.

    Args:
      examples: the split.
      most: the share of its examples that may be unreadable.

    Attributes:
      patient: whether only `new` raises an error, not `add`: where several processes read a split, they end together.
    """

    def __init__(self, examples: Examples | EncodedExamples, most: float):
        self._examples, self._most = examples, most
        self._reasons: dict[int, str] = {}
        self._new: dict[int, str] = {}
        self._lock = threading.Lock()
        self.patient = False

    def __len__(self) -> int:
        return len(self._reasons)

    def __contains__(self, index: int) -> bool:
        return index in self._reasons

    def add(self, index: int, reason: str) -> None:
        """Notes that one example cannot be read.

        Raises:
          UserError: those are more than the allowed share now.
        """
        with self._lock:
            if index in self._reasons:
                return
            self._reasons[index] = self._new[index] = reason
        if not self.patient:
            self._check()

    def new(self, gather: Callable[[dict], list[dict]] = lambda found: [found]) -> list[str]:
        """The reasons that have come since the last call.

        Args:
          gather: from what this process found to what all of them did, where several read the split: what one has
            found the others know from then on.

        Raises:
          UserError: as `add`, of all that the processes have found together.
        """
        with self._lock:
            found, self._new = self._new, {}
        with_others = {index: reason for one in gather(found) for index, reason in one.items()}
        with self._lock:
            # What another process found before has been told.
            news = {i: reason for i, reason in with_others.items() if i in found or i not in self._reasons}
            self._reasons |= news
        self._check()
        return list(news.values())

    def summary(self, new: list[str]) -> str:
        """A line about the examples that cannot be read, with a few of the `new` reasons."""
        total = f"{len(self):,} of {len(self._examples):,} images cannot be read"
        named = "; ".join(new[:NAMED]) + ("; ..." if len(new) > NAMED else "")
        return f"{self._examples.name}: {total}; new: {named}"

    def _check(self) -> None:
        with self._lock:
            count, last = len(self._reasons), next(reversed(self._reasons.values()), "")
        if count > self._most * len(self._examples):
            raise UserError(
                f"data.max_unreadable={self._most:g}: expected at most this share of {self._examples.name} to be "
                f"unreadable, but {count:,} of {len(self._examples):,} are, the last: {last}."
            )
