"""Examples that cannot be read: counted and left out, until they are too many."""

import threading

from alexnet_resnet.data.examples import EncodedExamples, Examples
from alexnet_resnet.errors import UserError


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

    def news(self) -> str:
        """A line about the examples that cannot be read, if there are more than at the last call; else nothing."""
        with self._lock:
            if len(self._reasons) == self._told:
                return ""
            self._told = len(self._reasons)
            first = next(iter(self._reasons.values()))
        return (
            f"{self._examples.name}: {self._told:,} of {len(self._examples):,} images cannot be read, such as {first}"
        )
