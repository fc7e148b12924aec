"""Writes each image of a dataset once, small, with the colour statistics of the set: what training then reads fastest.

python -m alexnet_resnet.prepare --dataset=imagenet2012 --size=256 --out=DIR

Interrupted, even by force, it goes on where it was when the same command is given again. The examples keep their
order, so that slices of splits mean the same as before.
"""

import contextlib
import os
import signal
import sys
import time

from absl import flags

from alexnet_resnet import cli

# Other modules are imported as they are needed: the processes that do the work import this one too.
DATASET = flags.DEFINE_string("dataset", None, "Its name, as --config.data.dataset takes it, such as imagenet2012.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Where the dataset is, as --config.data.data_dir takes it.")
OUT = flags.DEFINE_string("out", None, "The folder to write.")
SIZE = flags.DEFINE_integer(
    "size", 256, "What the shorter side of every image is brought to; 480 or more for ResNet's scale augmentation."
)
SQUARE = flags.DEFINE_boolean("square", False, "Cut the centre size x size out, as AlexNet's section 2 does.")
QUALITY = flags.DEFINE_integer("quality", 90, "Of the JPEGs, 1 to 100.")
SPLITS = flags.DEFINE_list("splits", ["train", "validation"], "The splits to prepare.")
WORKERS = flags.DEFINE_integer("workers", None, "Processes; by default one a processor.")
MAX_UNREADABLE = flags.DEFINE_float(
    "max_unreadable", 0.01, "The share of a split's images that may be unreadable; these are left out and listed."
)
SHARD_IMAGES = flags.DEFINE_integer("shard_images", 1024, "At most so many images a file.")

EVERY = 30  # seconds between two lines of progress where there is no terminal


def main() -> None:
    dataset, out = cli.require(DATASET, "imagenet2012"), cli.require(OUT, "prepared/imagenet-256")
    # One thread a process in the linear algebra, set before it is loaded there: there are processes enough.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    received = []

    def stop(number, _):
        received.append(number)
        for other in (signal.SIGINT, signal.SIGTERM):  # what is left to do takes no time
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        _prepare(dataset, out)
    except KeyboardInterrupt:
        from alexnet_resnet.data import shards

        print(
            f"interrupted: {shards.count(out)} shards are finished and stay; the same command goes on.", file=sys.stderr
        )
        sys.exit(128 + received[0])


def _prepare(dataset: str, out: str) -> None:
    from alexnet_resnet.data import preparation
    from alexnet_resnet.data.shards import Progress

    options = preparation.Options(SIZE.value, SQUARE.value, QUALITY.value, tuple(SPLITS.value), SHARD_IMAGES.value)
    options.check()
    from alexnet_resnet import config as config_lib  # after the checks: it takes a while

    data = config_lib.default("resnet").data
    # No classes: as many as the dataset has.
    data.update(dataset=dataset, data_dir=DATA_DIR.value, num_classes=0, channels=3)
    processes = _processors() if WORKERS.value is None else WORKERS.value
    display = None
    try:
        with contextlib.closing(preparation.prepare(data, options, out, processes, MAX_UNREADABLE.value)) as events:
            for event in events:
                if isinstance(event, preparation.Started):
                    display = _Terminal(event) if sys.stderr.isatty() else _Lines(event)
                elif isinstance(event, Progress):
                    display.add(event.images)
                else:
                    manifest = event
    finally:
        if display:
            display.close()
    if not display:
        print(f"{out} is finished already.")
    _tell(manifest, out)


def _processors() -> int:
    """How many there are for this process, where the system can tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Terminal:
    """A bar on a terminal."""

    def __init__(self, started):
        from tqdm import tqdm

        self._bar = tqdm(total=started.images, initial=started.finished, unit=" images", unit_scale=True)

    def add(self, images: int) -> None:
        self._bar.update(images)

    def close(self) -> None:
        self._bar.close()


class _Lines:
    """A line now and then, for logs."""

    def __init__(self, started):
        self._done, self._total, self._began_with = started.finished, started.images, started.finished
        self._began = self._told = time.monotonic()
        print(f"{self._done:,} of {self._total:,} images are in finished shards.", file=sys.stderr)

    def add(self, images: int) -> None:
        self._done += images
        now = time.monotonic()
        if now - self._told >= EVERY:
            self._told = now
            speed = (self._done - self._began_with) / (now - self._began)
            left = (self._total - self._done) / speed / 60
            print(
                f"{self._done:,} of {self._total:,} images, {speed:,.0f} images/s, {left:,.0f} minutes left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        seconds = time.monotonic() - self._began
        made = self._done - self._began_with
        print(f"{made:,} images in {seconds:,.1f} s, {made / seconds:,.0f} images/s", file=sys.stderr)


def _tell(manifest, out: str) -> None:
    """What there is now, and how to train from it."""
    from alexnet_resnet.data import prepared

    for name, split in manifest.splits.items():
        print(
            f"{name}: {split.examples:,} images, {split.bytes / 1e6:,.1f} MB in {len(split.shards):,} shards, "
            f"{len(split.unreadable):,} unreadable"
        )
        for reason in split.unreadable:
            print(f"  left out: {reason}")
        found = prepared.read_statistics(os.path.join(os.path.expanduser(out), split.statistics))
        colour, values = (", ".join(f"{v:,.2f}" for v in part) for part in (found.mean_colour, found.eigenvalues))
        print(f"  mean colour ({colour}), eigenvalues of its covariance ({values}), over {found.pixels:,} pixels")
    print(
        f"written to {out}; train from it with --config.data.dataset=prepared --config.data.data_dir={out} "
        f"--config.data.num_classes={len(manifest.label_names)}"
    )


if __name__ == "__main__":
    cli.run(main)
