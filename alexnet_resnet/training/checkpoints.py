"""Checkpoints that prove themselves: Orbax's files, and a digest of every array beside them.

Orbax restores a file with a flipped bit without an error and with wrong values. So each checkpoint holds a digest of
each array, taken on the device before saving and compared after restoring. The validation error, by which the best is
chosen, stands beside the digests a second time.
"""

import contextlib
import functools
import importlib.util
import json
import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
from absl import logging as absl_logging
from jaxtyping import PyTree

from alexnet_resnet.errors import UserError
from alexnet_resnet.parallel import hosts
from alexnet_resnet.training import proofs
from alexnet_resnet.training import workdir as workdir_lib
from alexnet_resnet.training.proofs import ERROR, LATER
from alexnet_resnet.training.state import TrainState

if TYPE_CHECKING:
    from alexnet_resnet.training.orbax_manager import Manager

# Bytes that a checkpoint takes besides its arrays.
ROOM = 1 << 18
# How Orbax ends the name of a checkpoint's folder until it is whole.
TEMPORARY = ".orbax-checkpoint-tmp"


def _fields(state: TrainState) -> dict:
    # Runs without a moving average are saved as they were before there was such a thing.
    return {name: value for name, value in vars(state).items() if name != "average" or jax.tree.leaves(value)}


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log's record is to be shown: what Orbax' threads log with their stacks, it raises later as well."""
    return not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)


def _reason(error: Exception) -> str:
    """The first line of what an exception says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def _quiet(read_only: bool) -> Iterator[None]:
    """Keeps Orbax from warning that what is opened for reading is opened for reading."""
    verbosity = absl_logging.get_verbosity()
    if read_only:
        absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        yield
    finally:
        absl_logging.set_verbosity(verbosity)


def _misfits(saved: PyTree, like: TrainState) -> list[str]:
    """A line for each array that was saved with another shape or type than `like` has, or that only one of them has."""
    found = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _named(saved)}
    asked = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _named(_fields(like))}
    return [
        f"{name}: expected {asked.get(name, 'no such array')}, found {found.get(name, 'none')}"
        for name in sorted(asked.keys() | found.keys())
        if asked.get(name) != found.get(name)
    ]


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    """The leaves with their names; Orbax keeps tuples as lists and named tuples as dictionaries."""
    part = lambda key: next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a))  # noqa: E731
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [("/".join(str(part(key)) for key in path), leaf) for path, leaf in leaves]


class Unsaved(Exception):
    """The state of a step that nothing will come after could not be saved."""


class Damaged(Exception):
    """A checkpoint's files do not give back what was saved.

    Attributes:
      alone: whether this process found it out by itself, where there are others.
    """

    def __init__(self, text: str, alone: bool = False):
        super().__init__(text)
        self.alone = alone


class Checkpoints:
    """The checkpoints of one run, saved in the background.

    Kept are the last `keep_last` and the `keep_best` with the lowest validation error among those that have one.

    Args:
      directory: their folder; made if it is missing, unless `read_only`.
      keep_last: how many of the newest stay.
      keep_best: how many of the best stay besides.
      read_only: for commands that only look.
    """

    def __init__(self, directory: str, keep_last: int = 2, keep_best: int = 1, read_only: bool = False):
        self.directory = os.path.abspath(directory)
        self._news: list[str] = []
        self._failure = ""
        self._saving: int | None = None
        if read_only and not os.path.isdir(self.directory):
            raise hosts.Refused(f"workdir={os.path.dirname(directory)!r}: expected checkpoints in {directory!r}.")
        if not read_only:
            absl_logging.get_absl_logger().addFilter(_is_news)
        self._asked = keep_last, keep_best, read_only
        if not read_only:
            # It is imported later, but its absence is told before anything is trained.
            if not importlib.util.find_spec("orbax.checkpoint"):
                raise ModuleNotFoundError("No module named 'orbax.checkpoint'")
            os.makedirs(self.directory, exist_ok=True)
        # Orbax's processes wait for each other to open it.
        if hosts.several() or os.listdir(self.directory):
            _ = self._manager

    @functools.cached_property
    def _manager(self) -> "Manager":
        # Opened when it is first needed: Orbax takes a while to import, and a training begins sooner without.
        from alexnet_resnet.training.orbax_manager import Manager

        keep_last, keep_best, read_only = self._asked
        with _quiet(read_only):
            return Manager(self.directory, keep_last, keep_best, read_only)

    @property
    def _is_open(self) -> bool:
        return "_manager" in vars(self)

    def save(self, step: int, state: TrainState, error: float | None = None) -> None:
        """Starts saving the state, with its validation error if it has one; the arrays may be donated afterwards.

        Where it cannot be saved, as on a full disk, the checkpoints from before stay, and `news` says so.

        Raises:
          UserError: with several processes, where one cannot save while others wait for it.
        """
        self._settle()
        if step in self.steps():
            return
        fields = _fields(state)
        proved = proofs.digests(fields) | {ERROR: error}
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(fields))
        free = hosts.gather(shutil.disk_usage(self.directory).free)[0]
        if free < needed + ROOM:
            self._tell(step, f"{needed + ROOM:,} bytes are needed, {free:,} are free")
            return
        with self._failing(step):
            self._manager.save_state(step, fields, proved, error)
            self._saving = step

    def news(self) -> list[str]:
        """Lines about what could not be saved since the last time."""
        news, self._news = self._news, []
        return news

    @contextlib.contextmanager
    def _failing(self, step: int) -> Iterator[None]:
        """A block that saves, and may fail."""
        try:
            yield
        except Exception as error:  # Orbax, tensorstore and the file system each raise their own kinds.
            if hosts.lost_another(error):
                raise
            if hosts.several():
                raise UserError(f"checkpoint {self._place(step)} could not be saved: {_reason(error)}.") from error
            self._tell(step, _reason(error))
            # Orbax leaves what it has written, on a disk that may be full because of it.
            shutil.rmtree(f"{self._place(step)}{TEMPORARY}", ignore_errors=True)
            if self._is_open:
                self._manager.reload()

    def _settle(self) -> None:
        """Waits for what is being saved."""
        step, self._saving = self._saving, None
        if step is not None:
            with self._failing(step):
                self._manager.wait_until_finished()

    def _tell(self, step: int, reason: str) -> None:
        steps = self.steps()
        newest = f"the newest that is whole is that of step {steps[-1]}" if steps else "there is none yet"
        self._failure = f"the checkpoint of step {step} could not be saved ({reason}); {newest}"
        self._news.append(self._failure)

    def steps(self) -> list[int]:
        """The steps that have a finished checkpoint, ascending."""
        return sorted(self._manager.all_steps()) if self._is_open else []

    def error(self, step: int) -> float | None:
        """The validation error that a checkpoint was saved with; None where it was not measured before.

        Raises:
          Damaged: the files do not say, or contradict each other.
        """
        metrics = self._manager.metrics(step)
        # One that is not there any more was deleted, not damaged.
        if metrics is None and os.path.isdir(self._place(step)):
            raise Damaged(f"checkpoint {self._place(step)}: its validation error is not what was saved")
        return (metrics or {}).get("error")

    def amend(self, step: int, error: float) -> None:
        """Notes the validation error of a checkpoint that was saved without one, for the choice of the best."""
        if hosts.is_first():
            try:
                proved = proofs.read(self._place(step)) | {LATER: error}
                workdir_lib.write_atomically(os.path.join(self._place(step), proofs.FILE), json.dumps(proved))
            except OSError as failure:
                self._news.append(f"the validation error of step {step} could not be noted ({failure.strerror})")
        hosts.gather(None)  # until the first has done so
        self._manager.reload()

    def was_judged(self, step: int) -> bool:
        """Whether a state was saved after its validation, and so knows what followed from it."""
        return hosts.gather(proofs.read(self._place(step)).get(ERROR, self.error(step)) is not None)[0]

    def best_step(self) -> int | None:
        """The step with the lowest validation error, the earliest among equals; None where none has one.

        Raises:
          Damaged: the error of one of them cannot be told.
        """
        errors = {step: self.error(step) for step in self.steps()}
        error, step = min(
            ((proofs.error_of({"error": error}), step) for step, error in errors.items()), default=(math.inf, 0)
        )
        return step if error < math.inf else None

    def restore(self, like: TrainState, step: int) -> TrainState:
        """The state saved at `step`, laid out as the ShapeDtypeStructs in `like` say, however it lay when it was saved.

        Raises:
          UserError: other arrays were saved than `like` has.
          Damaged: the files are incomplete, or hold other values than were saved.
        """
        try:
            saved = self._manager.item_metadata(step).state
            if saved is None:
                raise ValueError("its metadata cannot be read")
            # Orbax would cast to the type it is asked for, and say nothing.
            misfits = _misfits(saved, like)
            if misfits:
                raise hosts.Refused(f"checkpoint {self._place(step)}: {'; '.join(misfits[:3])}.")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Orbax warns of the layout it was told to use.
                fields, expected = self._manager.restore_state(step, _fields(like))
        except hosts.Refused:
            raise
        except Exception as error:  # Orbax, tensorstore and the file system each raise their own kinds.
            if hosts.lost_another(error):
                raise
            raise Damaged(f"checkpoint {self._place(step)}: {_reason(error)}", hosts.several()) from error
        self.error(step)
        for name in (ERROR, LATER):
            expected.pop(name, None)
        actual = proofs.digests(fields)
        wrong = sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
        if wrong:
            raise Damaged(f"checkpoint {self._place(step)}: {', '.join(wrong[:3])} differ from what was saved")
        return TrainState(**fields)

    def restore_newest(self, like: TrainState) -> TrainState | None:
        """The newest state that proves itself; None where there is no checkpoint.

        A damaged checkpoint is reported, put aside as '<step>.damaged' and passed over for the one before.

        Raises:
          UserError: there are checkpoints and none is whole, or the newest holds other arrays than `like`; or this
            process alone cannot read one, which it has put aside for the next start.
        """
        self._settle()
        damaged = []
        # One list for all: a shared file system may show a new folder to some of them only later.
        steps = hosts.gather(self.steps())[0]
        for step in reversed(steps):
            try:
                state = self.restore(like, step)
            except Damaged as error:
                if error.alone:
                    # The others are inside Orbax, and wait there for this process.
                    self._give_up(step, step != steps[0], error)
                if hosts.is_first():
                    logging.getLogger(__name__).warning("%s; trying the one before", error)
                damaged.append(step)
                continue
            if damaged:
                # Only now: were all damaged, they stay where they are, and the next start says so again.
                self._put_aside(damaged)
            return state
        if damaged:
            raise hosts.Refused(f"{self.directory}: expected a whole checkpoint, but all {len(damaged)} are damaged.")
        return None

    def _give_up(self, step: int, older: bool, error: "Damaged") -> None:
        if older:
            self._set_aside(step)
            raise UserError(f"{error}; put aside, so that the same command goes on from the one before.") from error
        raise UserError(f"{error}; expected a whole checkpoint, and there is none before it.") from error

    def _set_aside(self, step: int) -> None:
        aside = f"{self._place(step)}.damaged"
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(self._place(step), aside)

    def _put_aside(self, steps: list[int]) -> None:
        if hosts.is_first():
            for step in steps:
                self._set_aside(step)
        hosts.gather(None)  # until the first has done so
        self._manager.reload()

    def _place(self, step: int) -> str:
        return os.path.join(self.directory, str(step))

    def wait(self, step: int) -> None:
        """Returns when everything is on disk.

        Args:
          step: what was saved last and has to be there.

        Raises:
          Unsaved: it could not be saved.
        """
        self._settle()
        if step not in self.steps():
            self._news.clear()
            raise Unsaved(self._failure)

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._settle()
        if self._is_open:
            self._manager.close()
