"""Examples that cannot be read: counted and left out, until they are too many."""

import threading

from alexnet_resnet.data.examples import EncodedExamples, Examples
from alexnet_resnet.errors import UserError

# Reasons that a line tells.
NAMED = 5


class Faults:
    """The examples of a split that could not be read so far. Safe to use from several threads.

    Args:
      examples: the split.
      most: the share of its examples that may be unreadable.
    """

    def __init__(self, examples: Examples | EncodedExamples, most: float):
        self._examples, self._most = examples, most
        self._reasons: dict[int, str] = {}
        self._lock = threading.Lock()
        self._told = 0

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
            self._reasons.setdefault(index, reason)
            count = len(self._reasons)
        if count > self._most * len(self._examples):
            raise UserError(
                f"data.max_unreadable={self._most:g}: expected at most this share of {self._examples.name} to be "
                f"unreadable, but {count:,} of {len(self._examples):,} are, the last: {reason}."
            )

    def new(self) -> list[str]:
        """The reasons that have come since the last call."""
        with self._lock:
            reasons = list(self._reasons.values())[self._told :]
            self._told += len(reasons)
        return reasons

    def summary(self, new: list[str]) -> str:
        """A line about the examples that cannot be read, with a few of the `new` reasons."""
        total = f"{len(self):,} of {len(self._examples):,} images cannot be read"
        named = "; ".join(new[:NAMED]) + ("; ..." if len(new) > NAMED else "")
        return f"{self._examples.name}: {total}; new: {named}"
