"""The prepared form of a dataset, as `python -m alexnet_resnet.prepare` writes it.

A folder with
  prepared.json                         what it is: `Manifest`, as JSON
  SPLIT-00003-of-00128.tfrecord         examples, in the source's order: image/encoded (JPEG), image/class/label,
                                        image/height, image/width, image/filename
  SPLIT-statistics.npz                  the colour statistics of these images: see `statistics`
"""

import dataclasses
import json
import os

from alexnet_resnet.data import examples, records, statistics
from alexnet_resnet.data.examples import EncodedExamples, Unreadable
from alexnet_resnet.errors import UserError

# Raised whenever a folder of the old form would be misread.
FORMAT = 1
MANIFEST, PLAN = "prepared.json", "plan.json"
IMAGE, LABEL = "image/encoded", "image/class/label"

read_statistics = statistics.read


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of records: its name in the folder, how many it has, and its size in bytes."""

    file: str
    examples: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Split:
    """What there is of a split.

    Attributes:
      shards: its files, in order.
      statistics: the name of the file with its colour statistics.
      unreadable: the names of the source's examples that could not be read and are not here, each with the reason.
    """

    shards: tuple[Shard, ...]
    statistics: str
    unreadable: tuple[str, ...]

    @property
    def examples(self) -> int:
        return sum(shard.examples for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a prepared folder holds.

    Attributes:
      dataset: the name of the dataset it was made of.
      size: what the images' shorter side was brought to.
      square: whether their centre size x size was cut out.
      quality: the JPEG quality.
      label_names: one name a class.
      splits: by name.
    """

    dataset: str
    size: int
    square: bool
    quality: int
    label_names: tuple[str, ...]
    splits: dict[str, Split]


def read_manifest(folder: str) -> Manifest:
    """What a prepared folder says that it holds.

    Raises:
      UserError: it is not one, is unfinished, of another format, or damaged.
    """
    where = f"data.data_dir={folder!r}"
    path = os.path.join(os.path.expanduser(folder), MANIFEST)
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        found = content["format"]
        if found == FORMAT:
            return _manifest(content)
    except OSError as error:
        if os.path.exists(os.path.join(os.path.dirname(path), PLAN)):
            raise UserError(
                f"{where}: is not finished; the `python -m alexnet_resnet.prepare` command that was begun there goes "
                "on when it is given again."
            ) from error
        raise UserError(
            f"{where}: expected a folder with a {MANIFEST}, which `python -m alexnet_resnet.prepare` writes "
            f"({error.strerror})."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: its {MANIFEST} is damaged ({type(error).__name__}: {error}).") from error
    raise UserError(
        f"{where}: is prepared in format {found}, and this program reads format {FORMAT}: prepare the dataset again "
        "into another folder with `python -m alexnet_resnet.prepare`, or use the program that wrote it."
    )


def encode_manifest(manifest: Manifest) -> str:
    """The text of `prepared.json`."""
    return json.dumps({"format": FORMAT, **dataclasses.asdict(manifest)}, indent=1) + "\n"


def _manifest(content: dict) -> Manifest:
    def split(part):
        shards = tuple(Shard(str(s["file"]), int(s["examples"]), int(s["bytes"])) for s in part["shards"])
        return Split(shards, str(part["statistics"]), tuple(map(str, part["unreadable"])))

    return Manifest(
        dataset=str(content["dataset"]),
        size=int(content["size"]),
        square=bool(content["square"]),
        quality=int(content["quality"]),
        label_names=tuple(map(str, content["label_names"])),
        splits={name: split(part) for name, part in content["splits"].items()},
    )


def load(data, split: str) -> EncodedExamples:
    """A split of a prepared folder, or a slice of one; `statistics` is set where it is a whole split.

    Args:
      data: the configuration's `data` section, whose data_dir is the folder.
      split: such as 'train' or 'train[:90%]', in the order that the dataset had.

    Raises:
      UserError: see `read_manifest`; or a file of the split is missing or not of the size that was written.
      UnknownSplit: the folder does not have the split.
    """
    manifest = read_manifest(data.data_dir)
    name, part = examples.take(split, {name: split.examples for name, split in manifest.splits.items()})
    chosen = manifest.splits[name]
    folder = os.path.expanduser(data.data_dir)
    for shard in chosen.shards:
        _check(data.data_dir, os.path.join(folder, shard.file), shard.bytes)
    store = PreparedStore(
        [os.path.join(folder, shard.file) for shard in chosen.shards], [shard.examples for shard in chosen.shards]
    )
    everything = range(len(store))
    rows = everything[part]
    return EncodedExamples(
        store,
        rows,
        manifest.label_names,
        f"{manifest.dataset} {split}",
        os.path.join(folder, chosen.statistics) if rows == everything else None,
    )


def _check(data_dir: str, path: str, size: int) -> None:
    try:
        found = os.stat(path).st_size
    except OSError as error:
        raise UserError(f"data.data_dir={data_dir!r}: {os.path.basename(path)}: {error.strerror}.") from error
    if found != size:
        raise UserError(
            f"data.data_dir={data_dir!r}: {os.path.basename(path)} has {found:,} bytes; expected the {size:,} that "
            "were written."
        )


class PreparedStore:
    """The examples of prepared shards, by place."""

    def __init__(self, paths: list[str], counts: list[int]):
        self._records = records.Records(paths, counts)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, row: int) -> tuple[bytes, int]:
        payload = self._records.read(row)
        try:
            return records.image_and_label(payload, IMAGE, LABEL)
        except Unreadable as error:
            raise Unreadable(f"{self.name_of(row)}: {error}") from error

    def name_of(self, row: int) -> str:
        return self._records.name_of(row)
