"""The softmax outputs of one or several networks for the examples of a split, and what follows from their mean."""

import dataclasses
import os
import tempfile
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from alexnet_resnet.errors import UserError
from alexnet_resnet.parallel import hosts
from alexnet_resnet.training.step import score

# Examples that are looked at together: 16 MB for 1,000 classes.
CHUNK = 4096
# Classes that are kept of each example in `Answers`.
BEST = 5


@dataclasses.dataclass(frozen=True)
class Answers:
    """What was said of each example that was judged.

    Attributes:
      rows: their numbers in the split, ascending.
      labels: the right classes.
      classes: the most probable classes, the most probable first; five, or all where there are fewer.
      probabilities: theirs.
      top1_wrong: whether the right class is not the most probable one; ties count as wrong.
      top5_wrong: whether it is not among the five most probable.
    """

    rows: Int[np.ndarray, "N"]
    labels: Int[np.ndarray, "N"]
    classes: Int[np.ndarray, "N five"]
    probabilities: Float[np.ndarray, "N five"]
    top1_wrong: Bool[np.ndarray, "N"]
    top5_wrong: Bool[np.ndarray, "N"]


class Outputs:
    """Adds up the softmax outputs of networks, example by example, in whatever order they come.

    They are kept as logarithms: a probability that is too small for a number still has its rank. They lie in a
    temporary file that is mapped into memory: 200 MB for 50,000 examples of 1,000 classes, which the system may write
    out when it needs the room.

    Args:
      examples: of the split.
      classes: of the networks.
      networks: whose outputs will be added.

    Raises:
      UserError: the folder for temporary files has no room for them.
    """

    def __init__(self, examples: int, classes: int, networks: int = 1):
        self.networks = networks
        self._sums = _mapped((examples, classes))
        self._sums[:] = -np.inf
        self._labels, self._seen = np.zeros(examples, np.int32), np.zeros(examples, np.int32)

    def add(
        self, rows: Int[np.ndarray, "N"], labels: Int[np.ndarray, "N"], logarithms: Float[np.ndarray, "N K"]
    ) -> None:
        """One network's log-softmax outputs for some examples, each of them once a network."""
        self._sums[rows] = np.logaddexp(self._sums[rows], logarithms)
        self._labels[rows] = labels
        self._seen[rows] += 1

    def meet(self) -> None:
        """Gives every process what the others have added. All must call it at the same place, once."""
        if jax.process_count() == 1:
            return
        own = np.flatnonzero(self._seen)
        few = max(1, CHUNK // jax.process_count())
        for turn in range(max(hosts.gather(-(-len(own) // few)))):
            part = own[turn * few : (turn + 1) * few]
            everyone = hosts.gather((part, self._labels[part], self._seen[part], np.asarray(self._sums[part])))
            for number, (rows, labels, seen, sums) in enumerate(everyone):
                if number != jax.process_index():
                    self._labels[rows], self._seen[rows], self._sums[rows] = labels, seen, sums

    def chunks(self) -> Iterator[tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"], Float[np.ndarray, "N K"]]]:
        """Rows, labels and the mean softmax of the examples that every network has judged, a few thousand at a time."""
        for rows, labels, logarithms in self._chunks():
            yield rows, labels, np.exp(logarithms)

    def _chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """`chunks`, with the logarithms of the means."""
        judged = self._judged()
        for start in range(0, len(judged), CHUNK):
            rows = judged[start : start + CHUNK]
            yield rows, self._labels[rows], np.asarray(self._sums[rows]) - np.log(np.float32(self.networks))

    def _judged(self) -> Int[np.ndarray, "N"]:
        """The rows of the examples that every network has judged."""
        return np.flatnonzero(self._seen == self.networks).astype(np.int32)

    def totals(self) -> dict[str, float]:
        """The sums of `training.step.score` over all examples that every network has judged."""
        totals = dict.fromkeys(("examples", "top1_errors", "top5_errors", "loss"), 0)
        for _, labels, logarithms in self._chunks():
            for name, value in jax.device_get(_score(logarithms, labels)).items():
                totals[name] += value.item()
        return totals

    def answers(self) -> Answers:
        """The most probable classes of each example, and whether they are wrong."""
        parts = [_answers(*chunk) for chunk in self._chunks()]
        if not parts:
            raise UserError("expected at least one image that can be read, found none.")
        return Answers(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def save(self, path: str, class_names: tuple[str, ...], description: str, top5_only: bool = False) -> None:
        """Writes a .npz file; a file that is there already is replaced as a whole.

        Its arrays are `row` [N] and `label` [N] (int32), `softmax` [N, K] (float32), or `top5_class` (int32) and
        `top5_probability` [N, 5], `class_names` [K] and `description`, a JSON object.

        Args:
          path: the file.
          class_names: one a class.
          description: of what was judged and how.
          top5_only: only the five most probable classes of each example, a hundredth of the size for 1,000 classes.

        Raises:
          UserError: it cannot be written.
        """
        rows = self._judged()
        arrays = {"row": rows, "label": self._labels[rows]}
        if top5_only:
            answers = self.answers()
            arrays |= {"top5_class": answers.classes, "top5_probability": answers.probabilities}
        else:
            softmax = _mapped((len(rows), self._sums.shape[1]))
            start = 0
            for _, labels, probabilities in self.chunks():
                softmax[start : start + len(labels)] = probabilities
                start += len(labels)
            arrays["softmax"] = softmax
        temporary = f"{path}.{os.getpid()}"
        try:
            with open(temporary, "wb") as file:
                np.savez(file, **arrays, class_names=np.array(class_names), description=np.array(description))
            os.replace(temporary, path)
        except OSError as error:
            if os.path.exists(temporary):
                os.remove(temporary)
            raise UserError(f"predictions={path!r}: expected a file that can be written ({error.strerror}).") from error


def _mapped(shape: tuple[int, int]) -> np.memmap:
    """Zeros (float32) in a temporary file that is gone when they are.

    Raises:
      UserError: there is no room for it.
    """
    size = max(1, 4 * shape[0] * shape[1])
    with tempfile.TemporaryFile() as file:
        try:
            # A file with holes would end the process where the disk is full.
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise UserError(
                f"TMPDIR={tempfile.gettempdir()!r}: expected room for {size / 2**20:,.0f} MiB of softmax outputs "
                f"({error.strerror})."
            ) from error
        return np.memmap(file, np.float32, "r+", shape=shape)


@jax.jit
def _score(logarithms: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    return score(logarithms, labels, jnp.ones(labels.shape, bool))


def _answers(rows: np.ndarray, labels: np.ndarray, logarithms: np.ndarray) -> tuple[np.ndarray, ...]:
    """The fields of `Answers` for some examples."""
    best = np.argsort(-logarithms, axis=1, kind="stable")[:, :BEST].astype(np.int32)
    right = np.take_along_axis(logarithms, labels[:, None], 1)
    # As ops.losses.in_top_k counts: ties and not-a-number against the network.
    others = np.sum(~(logarithms < right), axis=1) - 1
    lost = np.isnan(right[:, 0])
    top = np.exp(np.take_along_axis(logarithms, best, 1))
    return rows, labels, best, top, (others >= 1) | lost, (others >= BEST) | lost
