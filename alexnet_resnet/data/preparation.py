"""Makes the prepared form of a dataset (see `prepared`): each image once, small, with the set's colour statistics.

What AlexNet's section 2 does to ImageNet: the shorter side of every image is brought to `size`, that of smaller ones
too, and `square` cuts the centre out. Resizing is PIL's antialiased bilinear filter. The camera's orientation (EXIF)
is not applied, as it is not in decoding for training. Records hold JPEGs with 4:2:0 chroma; the statistics are those
of the pixels that these JPEGs decode to. The examples keep the source's order, so that slices mean the same.

The work is cut into shards (see `shards`), which are made independently: what a run has finished is not made again by
the next, and neither the number of processes nor an interruption changes a bit of the result.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence

from alexnet_resnet.data import prepared, shards, sources, statistics, workers
from alexnet_resnet.data.examples import Unreadable
from alexnet_resnet.data.prepared import MANIFEST, PLAN, Manifest, Split
from alexnet_resnet.data.shards import Outcome, Progress, Task
from alexnet_resnet.errors import UserError, check_at_least


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides what is written.

    Attributes:
      size: what the shorter side is brought to.
      square: whether the centre size x size is cut out.
      quality: of the JPEGs, 1 to 100.
      splits: of the source, whole.
      shard_images: at most so many examples of the source a shard.
    """

    size: int = 256
    square: bool = False
    quality: int = 90
    splits: tuple[str, ...] = ("train", "validation")
    shard_images: int = 1024

    def check(self) -> None:
        """Raises UserError where a value cannot be."""
        check_at_least("size", self.size, 1)
        if self.size > shards.LONGEST:
            raise UserError(f"size={self.size}: expected at most {shards.LONGEST}, as JPEG has it.")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality={self.quality}: expected a number from 1 to 100.")
        check_at_least("shard_images", self.shard_images, 1)
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise UserError(f"splits={','.join(self.splits)!r}: expected the names of different splits.")
        for split in self.splits:
            if not re.fullmatch(r"\w+", split):
                raise UserError(f"splits={split!r}: expected the name of a whole split, such as 'train'.")


@dataclasses.dataclass(frozen=True)
class Started:
    """The work begins: how many images there are, and how many of them are in finished shards already."""

    images: int
    finished: int


def prepare(
    data, options: Options, out: str, processes: int = 1, max_unreadable: float = 0.01
) -> Iterator[Started | Progress | Manifest]:
    """Writes the prepared form of `data.dataset`, or what is missing of it, as it is iterated over.

    Args:
      data: the configuration's `data` section, which names the source.
      options: what to make of it.
      out: the folder; made if it is missing.
      processes: how many work.
      max_unreadable: the share of a split's examples that may be unreadable; they are left out and listed.

    Yields:
      `Started`, then `Progress`, and at last the `Manifest`; of a folder that is finished only that.

    Raises:
      UserError: an option cannot be; the folder is another preparation's or in use, cannot be written or is full; the
        source is not found; too much of it is unreadable. Finished shards stay.
    """
    options.check()
    check_at_least("workers", processes, 1)
    if not 0 <= max_unreadable <= 1:
        raise UserError(f"max_unreadable={max_unreadable}: expected a share from 0 to 1.")
    folder = os.path.expanduser(out)
    plan = {"dataset": data.dataset, **dataclasses.asdict(options), "splits": list(options.splits)}
    if os.path.exists(os.path.join(folder, MANIFEST)):
        manifest = prepared.read_manifest(folder)
        old = {name: getattr(manifest, name) for name in ("dataset", "size", "square", "quality")}
        _refuse_changes(out, old | {"splits": list(manifest.splits)}, plan)
        with contextlib.suppress(OSError):
            _remove_scaffold(folder)
        yield manifest
        return
    splits = {split: sources.load(data, split, "splits") for split in options.splits}
    for split, examples in splits.items():
        if examples.channels != 3:
            raise UserError(f"splits={split!r}: expected images of 3 channels, found {examples.channels}.")
    plan |= {"format": prepared.FORMAT, "images": _fingerprint(splits)}
    with _claimed(out, folder, plan):
        tasks = [task for split, examples in splits.items() for task in _tasks(folder, split, examples, options)]
        done = {task.file: found[0] for task in tasks if (found := shards.finished(folder, task.file))}
        try:
            yield Started(sum(map(len, splits.values())), sum(len(t.rows) for t in tasks if t.file in done))
            _refuse_damage(splits, tasks, done, max_unreadable)
            left = [task for task in tasks if task.file not in done]
            stores = {split: examples for split, examples in splits.items() if examples.encoded}
            with contextlib.closing(workers.run(shards.make, stores, left, min(processes, len(left)))) as results:
                for result in results:
                    if isinstance(result, Outcome):
                        done[result.shard.file] = result
                        _refuse_damage(splits, tasks, done, max_unreadable)
                    else:
                        yield result
            manifest = _finish(folder, data.dataset, options, splits, tasks, done)
        except UserError as error:
            raise UserError(f"{str(error).rstrip('.')}; {how_to_go_on(len(done), len(tasks))}") from error
        except workers.WorkerDied as error:
            raise UserError(
                f"{error}, as when memory runs out (then fewer --workers help); {how_to_go_on(len(done), len(tasks))}"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                shards.remove_temporaries(folder)
    yield manifest


def how_to_go_on(finished: int, total: int) -> str:
    """What a run that ends early says."""
    return f"{finished} of {total} shards are finished and stay; the same command goes on."


def _tasks(folder: str, split: str, examples, options: Options) -> Iterator[Task]:
    """The shards of a split, of nearly equal numbers of examples."""
    total = -(-len(examples) // options.shard_images)
    for number in range(total):
        rows = range(len(examples) * number // total, len(examples) * (number + 1) // total)
        name = f"{split}-{number:05}-of-{total:05}.tfrecord"
        part = slice(rows.start, rows.stop)
        content = () if examples.encoded else (examples.images[part], examples.labels[part])
        yield Task(folder, split, name, rows, options.size, options.square, options.quality, *content)


def _refuse_changes(out: str, old: dict, new: dict) -> None:
    changed = [f"{name}: {old[name]!r} -> {new.get(name)!r}" for name in old if old[name] != new.get(name)]
    if changed:
        # Other splits are other images too: one reason is enough.
        changed = [change for change in changed if not change.startswith("images:")] or changed
        raise UserError(
            f"out={out!r} was begun as another preparation, which differs in {'; '.join(changed)}: expected the same "
            "flags, or another --out."
        )


def _fingerprint(splits: dict) -> str:
    """Tells one source from another by its classes, the number of its examples, and the first and last of them."""
    digest = hashlib.sha256()
    for split, examples in splits.items():
        digest.update(json.dumps([split, len(examples), examples.label_names]).encode())
        for index in (0, len(examples) - 1):
            if examples.encoded:
                with contextlib.suppress(Unreadable):
                    image, label = examples.read(index)
                    digest.update(image + b"%d" % label)
            else:
                digest.update(examples.images[index].tobytes() + b"%d" % examples.labels[index])
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _claimed(out: str, folder: str, plan: dict) -> Iterator[None]:
    """Holds the folder for this process alone and leaves the plan in it."""
    with contextlib.ExitStack() as stack:
        with shards.writing(out):
            os.makedirs(folder, exist_ok=True)
            # The system frees it when the process ends, however it ends.
            lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"out={out!r}: expected no other process to prepare there, but one does.") from error
            if os.path.exists(os.path.join(folder, PLAN)):
                _refuse_changes(out, _read_plan(out, os.path.join(folder, PLAN)), plan)
            elif found := [name for name in os.listdir(folder) if name.endswith(".tfrecord")]:
                raise UserError(f"out={out!r} holds {found[0]!r} but no {PLAN}: expected a new or an empty folder.")
            else:
                shards.write(folder, PLAN, (json.dumps(plan, indent=1) + "\n").encode())
            shards.remove_temporaries(folder)
        yield


def _read_plan(out: str, path: str) -> dict:
    try:
        with open(path, encoding="utf-8") as file:
            return dict(json.load(file))
    except (ValueError, TypeError) as error:
        raise UserError(f"out={out!r}: its {PLAN} is damaged ({error}): expected another --out.") from error


def _refuse_damage(splits: dict, tasks: Sequence[Task], done: dict[str, Outcome], share: float) -> None:
    """Ends the work where more than a share of a split is known to be unreadable."""
    for split, examples in splits.items():
        names = [n for task in tasks if task.split == split and task.file in done for n in done[task.file].unreadable]
        if len(names) > share * len(examples):
            raise UserError(
                f"max_unreadable={share}: {len(names):,} of the {len(examples):,} examples of {split!r} are "
                f"unreadable, such as {names[0]}"
            )


def _finish(folder: str, dataset: str, options: Options, splits: dict, tasks: Sequence[Task], done: dict) -> Manifest:
    """Adds up the statistics, writes the manifest last of all, and removes what only served to get there."""
    parts = {}
    with shards.writing(folder):
        for split in splits:
            outcomes, total = [done[task.file] for task in tasks if task.split == split], statistics.Sums(options.size)
            for outcome in outcomes:
                found = shards.finished(folder, outcome.shard.file)
                if found is None:
                    raise UserError(f"out={folder!r}: {outcome.shard.file} was changed by another process")
                total = total + found[1]
            if not total.images:
                raise UserError(f"splits={split!r}: expected at least one image that can be read")
            name, buffer = f"{split}-statistics.npz", io.BytesIO()
            statistics.write(buffer, total.statistics())
            shards.write(folder, name, buffer.getvalue())
            unreadable = tuple(reason for outcome in outcomes for reason in outcome.unreadable)
            parts[split] = Split(tuple(outcome.shard for outcome in outcomes), name, unreadable)
        names = next(iter(splits.values())).label_names
        manifest = Manifest(dataset, options.size, options.square, options.quality, tuple(names), parts)
        shards.write(folder, MANIFEST, prepared.encode_manifest(manifest).encode())
        _remove_scaffold(folder)
    return manifest


def _remove_scaffold(folder: str) -> None:
    shards.remove_sums(folder)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, PLAN))
