"""Harm to the files of a run's newest checkpoint, and what the trainer then makes of it; see survival.py."""

import contextlib
import dataclasses
import logging
import os
import shutil
from collections.abc import Callable, Iterator

import jax
import numpy as np

from alexnet_resnet.errors import UserError
from alexnet_resnet.parallel import mesh as mesh_lib
from alexnet_resnet.training import checkpoints as checkpoints_lib
from alexnet_resnet.training import optimizer as optimizer_lib
from alexnet_resnet.training import state as state_lib
from alexnet_resnet.training import workdir as workdir_lib
from alexnet_resnet.training.checkpoints import Checkpoints, Damaged
from alexnet_resnet.training.state import TrainState

PASSED_OVER, HARMLESS, REFUSED = "passed over", "harmless", "refused"
WRONG, CRASHED, UNSAID = "SILENTLY WRONG", "crashed", "passed over without a word"
UNCHANGED = "nothing to change"
GOOD = (PASSED_OVER, HARMLESS, REFUSED, UNCHANGED)

# The file that holds the validation error.
METRICS = os.path.join("metrics", "metrics")


def _changed(content: bytes, place: int, bits: int) -> bytes:
    return content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :] if content else content


def _another_digit(content: bytes) -> bytes:
    digits = [place for place, byte in enumerate(content) if chr(byte).isdecimal()]
    return _changed(content, digits[len(digits) // 2], 0x01) if digits else content


# What becomes of a file's content; None removes the file.
HARMS: dict[str, Callable[[bytes], bytes | None]] = {
    "flip a byte": lambda content: _changed(content, len(content) // 2, 0xFF),
    # A single bit, by which a text stays one that can be read: the middle one of the digits is another.
    "change a digit": _another_digit,
    "halve": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "remove": lambda content: None,
}


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a folder's checkpoints hold: the state and the validation error of each step, and the best step.

    Attributes:
      like: the state's shapes, as the trainer asks for them.
      states: by step.
      errors: by step, None where it was not measured.
      keep: the numbers of checkpoints that stay, the last and the best.
    """

    like: TrainState
    states: dict[int, TrainState]
    errors: dict[int, float | None]
    keep: tuple[int, int]

    def best(self, steps) -> int | None:
        """The step with the lowest validation error among some, the earliest of equals."""
        found = [(self.errors[step], step) for step in steps if self.errors[step] is not None]
        return min(found)[1] if found else None


def named(state: TrainState) -> dict[str, np.ndarray]:
    """Every array of a state by its name, on the host."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(jax.device_get(leaf)) for path, leaf in leaves}


def differing(a: TrainState, b: TrainState) -> list[str]:
    """The names of arrays that differ in type, shape or a bit, or that only one of two states has."""
    a, b = named(a), named(b)
    same = lambda x, y: (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())  # noqa: E731
    return sorted(name for name in a.keys() | b.keys() if not (name in a and name in b and same(a[name], b[name])))


def read(workdir: str) -> Saved:
    """What the checkpoints of an undamaged run hold.

    Raises:
      UserError: the folder is not a run's.
    """
    config = workdir_lib.read_config(workdir)
    network = state_lib.from_config(config)
    optimizer = optimizer_lib.create(config.optimizer, lambda step: 0.0)
    one_device = mesh_lib.replicated(mesh_lib.create(1, 1, jax.devices()[:1]))
    like = state_lib.like(config, network, optimizer, one_device)
    checkpoints = Checkpoints(os.path.join(workdir, workdir_lib.CHECKPOINTS), read_only=True)
    states = {step: checkpoints.restore(like, step) for step in checkpoints.steps()}
    errors = {step: checkpoints.error(step) for step in states}
    checkpoints.close()
    return Saved(like, states, errors, (config.checkpoint.keep_last, config.checkpoint.keep_best))


def files(workdir: str, step: int) -> list[str]:
    """All files of a checkpoint, as paths within it."""
    top = os.path.join(workdir, workdir_lib.CHECKPOINTS, str(step))
    found = [os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names]
    return sorted(os.path.relpath(path, top) for path in found)


def harm(path: str, how: str) -> bool:
    """Does one of the `HARMS` to a file; False where that changes nothing, such as a digit where there is none."""
    with open(path, "rb") as file:
        content = file.read()
    changed = HARMS[how](content)
    if changed == content:
        return False
    if changed is None:
        os.remove(path)
    else:
        with open(path, "wb") as file:
            file.write(changed)
    return True


class _Heard(logging.Handler):
    """Keeps what a logger says."""

    def __init__(self):
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"


@contextlib.contextmanager
def _listening() -> Iterator[_Heard]:
    """Hears what `Checkpoints` warns of, in the place of the terminal."""
    logger, heard = logging.getLogger(checkpoints_lib.__name__), _Heard()
    passes, logger.propagate = logger.propagate, False
    logger.addHandler(heard)
    try:
        yield heard
    finally:
        logger.removeHandler(heard)
        logger.propagate = passes


def classify(workdir: str, saved: Saved) -> tuple[str, str]:
    """What the trainer's way of going on makes of a folder: one of the outcomes above, and what there is to say.

    It restores what it can, asks for the validation error and the best step, saves the next checkpoint (which has
    Orbax choose what stays), and looks at all of it once more. The folder is changed by that.

    Args:
      workdir: a run's folder, whose newest checkpoint may be damaged.
      saved: what `read` found in it before.
    """
    directory = os.path.abspath(os.path.join(workdir, workdir_lib.CHECKPOINTS))
    with _listening() as heard, contextlib.ExitStack() as stack:
        try:
            checkpoints = Checkpoints(directory, *saved.keep)
            stack.callback(checkpoints.close)
            state = checkpoints.restore_newest(saved.like)
            return _judge(checkpoints, state, saved, heard.text, directory)
        except UserError as error:
            return (REFUSED if directory in str(error) else CRASHED), str(error)
        except Exception as error:  # whatever a damaged file can raise is what is looked for
            return CRASHED, f"{type(error).__name__}: {error}"


def _judge(checkpoints: Checkpoints, state: TrainState | None, saved: Saved, heard: str, top: str) -> tuple[str, str]:
    newest, step = max(saved.states), 0 if state is None else int(state.step)
    if step not in saved.states:
        return WRONG, f"began at step {step}, where there was no checkpoint"
    wrong = differing(state, saved.states[step])
    if wrong:
        return WRONG, f"step {step}: {', '.join(wrong[:3])} differ"
    # As the trainer would: the lost step again, or a next one, which is worse than all.
    again = step < newest
    following, error = (newest, saved.errors[newest]) if again else (newest + 1, 1.0)
    after = dataclasses.replace(saved, errors={**saved.errors, following: error})
    steps = sorted({following, *(s for s in saved.states if s <= step)})
    wrong, refused = _wrong_errors(checkpoints, saved, [s for s in saved.states if s <= step])
    state = saved.states[newest] if again else state
    checkpoints.save(following, state, error)
    checkpoints.wait(following)
    kept = {*steps[-saved.keep[0] :], *([after.best(steps)] if saved.keep[1] else [])} - {None}
    missing = sorted(kept - set(checkpoints.steps()))
    if missing:
        return WRONG, f"steps {missing} were deleted"
    wrong = wrong or _wrong_errors(checkpoints, after, steps)[0]
    if wrong:
        return WRONG, wrong
    if again:
        if differing(checkpoints.restore(saved.like, following), state):
            return WRONG, f"step {following}, saved again after step {step} was restored, came back otherwise"
        return PASSED_OVER if os.path.join(top, str(newest)) in heard else UNSAID, heard.strip()
    return (REFUSED, refused) if refused else (HARMLESS, "")


def _wrong_errors(checkpoints: Checkpoints, saved: Saved, steps: list[int]) -> tuple[str, str]:
    """What is wrong with the validation errors and the best step, and what is said to be damaged; empty for nothing."""
    try:
        for step in set(checkpoints.steps()) & set(steps):
            if checkpoints.error(step) != saved.errors[step]:
                return f"step {step}: error {checkpoints.error(step)}, was {saved.errors[step]}", ""
        if checkpoints.best_step() != saved.best(steps):
            return f"best step {checkpoints.best_step()}, was {saved.best(steps)}", ""
    except Damaged as damaged:
        return "", str(damaged)
    return "", ""


def trials(workdir: str, scratch: str, hows=tuple(HARMS), say: Callable[[str], None] = print) -> list[dict]:
    """Harms every file of the newest checkpoint in every way, each in a fresh copy of the folder: a row for each.

    Then likewise the validation error of the best one, where that is another.

    Args:
      workdir: the folder of a run with two checkpoints or more.
      scratch: where the copies are made; they are removed.
      hows: names of `HARMS`.
      say: takes lines of progress.
    """
    saved = read(workdir)
    newest, best, rows = max(saved.states), saved.best(saved.states), []
    targets = [(newest, name) for name in files(workdir, newest)]
    # The one that was the best before is chosen by its error too.
    targets += [(best, name) for name in files(workdir, best) if name == METRICS] if best not in (None, newest) else []
    for step, name in targets:
        size = os.path.getsize(os.path.join(workdir, workdir_lib.CHECKPOINTS, str(step), name))
        for how in hows:
            with damaged(workdir, os.path.join(scratch, "damaged"), step, name, how) as (folder, changed):
                outcome, said = classify(folder, saved) if changed else (UNCHANGED, "")
            said = said.replace(os.path.abspath(folder), "WORKDIR")
            rows.append(dict(step=step, file=name, bytes=size, harm=how, outcome=outcome, said=said))
            say(f"checkpoint {step}: {name}: {how}: {outcome}")
    return rows


@contextlib.contextmanager
def damaged(workdir: str, folder: str, step: int, name: str, how: str) -> Iterator[tuple[str, bool]]:
    """A copy of a run's folder in which one file is harmed, and whether it is; removed at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(workdir, folder)
    try:
        yield folder, harm(os.path.join(folder, workdir_lib.CHECKPOINTS, str(step), name), how)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
