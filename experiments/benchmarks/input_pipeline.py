"""The input pipeline keeps up with the JPEG decoder, and images prepared once make it several times as fast.

    python -m experiments.benchmarks.input_pipeline --data_dir=TFDS --out=results/input_pipeline

TFDS is where TensorFlow Datasets has prepared imagenet2012; the variable TFDS_DATA_DIR by default. The table is
printed and written to input_pipeline.txt and .json, and drawn as .png. A quarter of an hour, on a quiet machine.

Result: results/input_pipeline.txt. Ours 1.0 to 1.1 times the limit, prepared 3.6 times; the peers 0.4 to 0.7 times.

Every contender runs in processes of its own, so that none meets another's threads and memory, for a few seconds in
each of several rounds that go through all of them; median, lowest and highest are over the rounds. The first seconds
and at least the first pass over the images are not counted: by then all encoded images are in memory (the PIL peer's
files in the system's cache), so disks play no part. `CPU` is the processor time of all threads and processes by image,
which other programs on the machine disturb less than the wall clock.

The limit is decoding alone: tf.data maps `tf.io.decode_jpeg` over the encoded images on all processors and one value of
each picture is looked at. It and ours have the C library keep freed memory where the training command does so; the
peers run as their users run them. Ours hands on bytes, since mirroring, mean and lighting are the device's; the peers
mirror and normalise to float32 on the host, as published:
  flax    tf.data as the Flax ImageNet example has it: an Inception crop by TensorFlow's sample_distorted_bounding_box,
          only its part of the JPEG decoded, bicubic to 224, mirrored, normalised; order not kept.
  PIL     PyTorch's ImageNet recipe: RandomResizedCrop(224), mirroring, a normalised float tensor; one process a
          processor, each of which makes whole batches in shared memory.
"""

import dataclasses
import glob
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import flags

from alexnet_resnet import cli
from alexnet_resnet.errors import UserError, check_at_least, check_choice
from experiments.benchmarks import peers, provenance
from experiments.benchmarks.peers import BATCH, SIDE

# Everything else is imported by the contenders that need it: a process pool should fork before threads are there.
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS has imagenet2012; by default the variable TFDS_DATA_DIR.")
OUT = flags.DEFINE_string("out", None, "The folder for the table and the chart; made if it is missing.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each contender is measured.")
SECONDS = flags.DEFINE_float("seconds", 5.0, "How long each measurement is.")
IMAGES = flags.DEFINE_integer("images", 1024, "At most so many images of the training split.")
QUICK = flags.DEFINE_bool("quick", False, "One short round on small images made here, to see that everything runs.")
MEMORY = flags.DEFINE_string("memory", "training", "Freed memory: as in 'training', or 'default', the C library's way.")
ONLY = flags.DEFINE_list("only", [], "Measures these contenders in this process and prints a JSON object for each.")
FOLDER = flags.DEFINE_string("folder", None, "With --only: where the images are, as a run without --only makes it.")

WARM_UP = 3.0
DCT = "INTEGER_ACCURATE"  # ours: `alexnet_resnet/data/pipeline.py`

# The sets of images: the source's, and what `alexnet_resnet.prepare` makes of them.
FULL = "full"
PREPARED = {"256": dict(size=256), "256-square": dict(size=256, square=True), "480": dict(size=480)}
TITLES = {
    FULL: "full-size JPEGs",
    "256": "prepared, --size=256",
    "256-square": "prepared, --size=256 --square",
    "480": "prepared, --size=480",
}
GROUPS = {"limit": "decoding alone", "ours": "ours", "flax": "flax peer", "PIL": "PIL peer"}


@dataclasses.dataclass(frozen=True)
class Contender:
    """A row of the table: who reads (`GROUPS`), which images (`TITLES`), and what of them."""

    group: str
    images: str
    title: str
    options: dict = dataclasses.field(default_factory=dict)


ALEXNET, RESNET, AREA = dict(view="canvas"), dict(view="scale"), dict(view="area")
CONTENDERS = {
    "decode": Contender("limit", FULL, "decode alone (the limit)", dict(dct=DCT)),
    "decode-fast": Contender("limit", FULL, "decode alone, TensorFlow's own DCT", dict(dct="")),
    "alexnet": Contender("ours", FULL, "AlexNet: 224 of 256", ALEXNET),
    "resnet": Contender("ours", FULL, "ResNet: 224 of 256..480", RESNET),
    "area": Contender("ours", FULL, "Inception crop", AREA),
    "flax": Contender("flax", FULL, "flax example: Inception crop"),
    "pil": Contender("PIL", FULL, "PIL, processes: Inception crop"),
    "alexnet-256": Contender("ours", "256", "AlexNet: 224 of 256", ALEXNET),
    "area-256": Contender("ours", "256", "Inception crop", AREA),
    "flax-256": Contender("flax", "256", "flax example: Inception crop"),
    "pil-256": Contender("PIL", "256", "PIL, processes: Inception crop"),
    "alexnet-square": Contender("ours", "256-square", "AlexNet: 224 of 256", ALEXNET),
    "resnet-480": Contender("ours", "480", "ResNet: 224 of 256..480", RESNET),
}


# The contenders: each yields the number of images of a batch once it is there, and the processor time of other
# processes up to then in seconds.


def limit(images: list[bytes], dct: str):
    """All processors decode, and nothing else."""
    import tensorflow as tf

    encoded = tf.constant(images)
    first = lambda index: tf.io.decode_jpeg(encoded[index], channels=3, dct_method=dct)[0, 0]  # noqa: E731
    places = tf.data.Dataset.range(len(images)).repeat()
    batches = places.map(first, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)
    for batch in batches.as_numpy_iterator():
        yield len(batch), 0.0


def ours(data, examples, view: str):
    """The training batches of this project, from the same call as training has."""
    from alexnet_resnet.data import loaders

    data.update(canvas_size=256, image_size=SIDE, view=view, scale_range=(256, 480), random_crop=True, random_flip=True)
    for batch in loaders.create(data, examples).training_batches(BATCH, seed=0):
        yield len(batch["image"]), 0.0


# Measuring.


def _load(source: dict):
    """The `data` section for a source, and its training images."""
    from alexnet_resnet import config as config_lib
    from alexnet_resnet.data import sources

    data = config_lib.default("alexnet").data
    data.update(num_classes=0, mean_position="centre", **source)
    count = len(sources.load(data, "train"))
    return data, sources.load(data, f"train[:{min(count, IMAGES.value)}]")


def _encoded(source: dict) -> list[bytes]:
    """The JPEGs of a source; the few images of another kind are for ours alone, which reads them too."""
    from alexnet_resnet.data import encoded

    _, examples = _load(source)
    images = [examples.read(index)[0] for index in range(len(examples))]
    headers = [encoded.describe(image) for image in images]
    return [i for i, h in zip(images, headers, strict=True) if h.format == "JPEG" and h.components in (1, 3)]


def measure(batches, images: int, warm_up: float, seconds: float) -> dict[str, float]:
    """Images a second and microseconds of processor time an image, after the warm-up."""
    start, seen = time.perf_counter(), 0
    while seen < images or time.perf_counter() - start < warm_up:
        count, others = next(batches)
        seen += count
    start, used, seen, elapsed = time.perf_counter(), peers.processor_seconds() + others, 0, 0.0
    while elapsed < seconds:
        count, others = next(batches)
        seen, elapsed = seen + count, time.perf_counter() - start
    used = peers.processor_seconds() + others - used
    batches.close()
    return dict(images_per_second=seen / elapsed, cpu_us=1e6 * used / seen, images=seen)


def measure_here(names: list[str], folder: str) -> None:
    """Measures some contenders one after another in this process; a JSON object for each on the standard output."""
    with open(os.path.join(folder, "sources.json")) as file:
        sources = json.load(file)
    warm_up, seconds = (0.1, 0.1) if QUICK.value else (WARM_UP, SECONDS.value)
    for name in names:
        contender, kept = CONTENDERS[name], False
        if contender.group in ("limit", "ours") and MEMORY.value == "training":
            from alexnet_resnet.parallel.host import keep_freed_memory

            kept = keep_freed_memory()
        source = sources[contender.images]
        if contender.group == "ours":
            data, examples = _load(source)
            batches, count = ours(data, examples, **contender.options), len(examples)
        elif contender.group == "PIL":
            files = sorted(glob.glob(os.path.join(folder, f"files-{contender.images}", "*.jpg")))
            batches, count = peers.pil(files), len(files)
        else:
            images = _encoded(source)
            reader = limit if contender.group == "limit" else peers.flax
            batches, count = reader(images, **contender.options), len(images)
        print(json.dumps(dict(name=name, memory_kept=kept, **measure(batches, count, warm_up, seconds))), flush=True)


def lay_out(source: dict, folder: str) -> dict[str, dict]:
    """Prepares the images in all forms below a folder; where each form is and what it has."""
    from alexnet_resnet import config as config_lib
    from alexnet_resnet.data import preparation

    sources, facts = {FULL: source}, {}
    data = config_lib.default("alexnet").data
    data.update(num_classes=0, **source)
    for form, options in PREPARED.items():
        place = os.path.join(folder, f"prepared-{form}")
        print(f"preparing: {TITLES[form]}", file=sys.stderr)
        options = preparation.Options(splits=("train",), **options)
        for _ in preparation.prepare(data, options, place, 1 if QUICK.value else os.cpu_count() or 1):
            pass
        sources[form] = dict(dataset="prepared", data_dir=place)
    for form, where in sources.items():
        images = _encoded(where)
        facts[form] = dict(images=len(images), mean_kilobytes=round(sum(map(len, images)) / len(images) / 1000, 1))
        if any(c.group == "PIL" and c.images == form for c in CONTENDERS.values()):
            place = os.path.join(folder, f"files-{form}")
            os.mkdir(place)
            for number, image in enumerate(images):
                with open(os.path.join(place, f"{number:06}.jpg"), "wb") as file:
                    file.write(image)
    with open(os.path.join(folder, "sources.json"), "w") as file:
        json.dump(sources, file)
    return facts


def rounds(folder: str, count: int):
    """Every contender's measurements, each in a process of its own."""
    passed = ("images", "seconds", "memory", "quick")
    options = [f"--{name}={flags.FLAGS[name].value}" for name in passed]
    # Where the figures mean nothing, TensorFlow is started once.
    teams = [[name] for name in CONTENDERS]
    if QUICK.value:
        teams = [[n for n, c in CONTENDERS.items() if (c.group == "PIL") == forked] for forked in (False, True)]
    for number in range(count):
        for team in teams:
            command = [sys.executable, "-m", __spec__.name, f"--only={','.join(team)}", f"--folder={folder}", *options]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                raise UserError(f"{' '.join(team)}: ended with status {done.returncode}.")
            for line in done.stdout.splitlines():
                found = json.loads(line)
                rate, cpu = found["images_per_second"], found["cpu_us"]
                print(f"round {number + 1}: {found['name']:<16}{rate:9,.0f} images/s{cpu:9,.0f} us", file=sys.stderr)
                yield found


# Telling.


def judge(rows: dict[str, dict]) -> list[dict]:
    """The requirements, each with the figure that decides."""

    def rate(name):
        return rows[name]["images_per_second"]["median"]

    def on(images, group):
        return [name for name, c in CONTENDERS.items() if c.images == images and c.group == group]

    found = []
    for name in on(FULL, "ours"):
        figure = rate(name) / rate("decode")
        found.append((f"{name} on full-size JPEGs >= 0.9 of the limit", figure, 0.9))
    for form in PREPARED:
        for name in on(form, "ours"):
            found.append((f"{name}, {TITLES[form]}, >= 4 times the limit", rate(name) / rate("decode"), 4.0))
    for form in TITLES:
        for name in on(form, "ours"):
            for peer in on(form, "flax") + on(form, "PIL"):
                found.append((f"{name} not below {peer}, same images", rate(name) / rate(peer), 1.0))
    return [dict(requirement=text, ratio=ratio, holds=bool(ratio >= least)) for text, ratio, least in found]


def summarise(measured: list[dict]) -> dict[str, dict]:
    """A row for each contender: median, lowest and highest over the rounds, the ratio to the limit."""
    rows = {}
    for name, contender in CONTENDERS.items():
        mine = [found for found in measured if found["name"] == name]
        spread = {
            field: dict(median=statistics.median(values), lowest=min(values), highest=max(values))
            for field in ("images_per_second", "cpu_us")
            if (values := [found[field] for found in mine])
        }
        rows[name] = dict(
            group=contender.group,
            images=contender.images,
            title=contender.title,
            memory_kept=mine[0]["memory_kept"],
            rounds=len(mine),
            **spread,
        )
    for row in rows.values():
        row["ratio_to_limit"] = row["images_per_second"]["median"] / rows["decode"]["images_per_second"]["median"]
    return rows


def table(result: dict) -> str:
    """The result as text."""
    where, lines = result["machine"], []
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    lines += [f"{where['cores']} cores, {where['processor']}, {where['platform']}, load {where['load_before']} before"]
    lines += [f"{where['date']}, commit {where['commit']}, {versions}", where["command"], ""]
    head = ("median", "lowest", "highest", "limit", "CPU us")
    lines.append(f"{'images/s':<36}" + "".join(f"{word:>9}" for word in head))
    for form, title in TITLES.items():
        facts = result["images"][form]
        lines.append(f"{title}: {facts['images']} images, {facts['mean_kilobytes']} kB each")
        for row in result["rows"].values():
            if row["images"] == form:
                rate, kept = row["images_per_second"], "*" if row["memory_kept"] else ""
                name = f"{'ours, ' if row['group'] == 'ours' else ''}{row['title']}{kept}"
                numbers = "".join(f"{rate[field]:9,.0f}" for field in ("median", "lowest", "highest"))
                lines.append(f"  {name:<34}{numbers}{row['ratio_to_limit']:8.2f}x{row['cpu_us']['median']:9,.0f}")
    if any(row["memory_kept"] for row in result["rows"].values()):
        lines.append("* the C library keeps freed memory, as the training command has it on this machine")
    lines.append("")
    for found in result["requirements"]:
        lines.append(f"{found['requirement']}: {found['ratio']:.2f} {'yes' if found['holds'] else 'no'}")
    return "\n".join(lines)


def chart(result: dict, path: str) -> None:
    """A bar for each row, and lines at the limit, 0.9 and 4 of it."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = list(result["rows"].values())
    figure = Figure(figsize=(9, 0.42 * len(rows) + 1.8), layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(GROUPS, ("0.55", "C0", "C1", "C2"), strict=True))
    for place, row in enumerate(rows):
        rate = row["images_per_second"]
        error = [[rate["median"] - rate["lowest"]], [rate["highest"] - rate["median"]]]
        axes.barh(place, rate["median"], xerr=error, color=colours[row["group"]], ecolor="0.3", capsize=2)
        note = f"  {rate['median']:,.0f} ({row['ratio_to_limit']:.2f}x)"
        axes.text(rate["highest"], place, note, va="center", fontsize=8)
    limit_ = result["rows"]["decode"]["images_per_second"]["median"]
    for share, style in ((1, "-"), (0.9, ":"), (4, "--")):
        axes.axvline(share * limit_, color="0.4", lw=0.8, ls=style, zorder=0)
    names = [f"{row['title']}\n{TITLES[row['images']]}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.set(xlabel="images/s (median, lowest and highest; lines: the limit, 0.9 of it and 4 times it)")
    axes.set_xlim(0, 1.25 * max(4 * limit_, *(row["images_per_second"]["highest"] for row in rows)))
    axes.invert_yaxis()
    axes.legend(handles=[Patch(color=colours[g], label=text) for g, text in GROUPS.items()], fontsize=8)
    where = result["machine"]
    axes.set_title(f"{where['cores']} cores, {where['processor']}, {where['date']}, {where['commit']}", fontsize=8)
    figure.savefig(path, dpi=120)


def _made_here(folder: str) -> dict:
    """A few noisy JPEGs, with --quick."""
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(8):
        place = os.path.join(folder, "images", "train", f"class{number % 2}")
        os.makedirs(place, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8))
        coarse.resize((360, 300)).save(os.path.join(place, f"{number}.JPEG"))
    return dict(dataset="folder", data_dir=os.path.join(folder, "images"))


def main() -> None:
    check_choice("memory", MEMORY.value, ("training", "default"))
    for flag in (ROUNDS, IMAGES):
        check_at_least(flag.name, flag.value, 1)
    if not SECONDS.value > 0:
        raise UserError(f"seconds={SECONDS.value}: expected a number above zero.")
    for name in ONLY.value:
        check_choice("only", name, tuple(CONTENDERS))
    if ONLY.value:
        measure_here(ONLY.value, cli.require(FOLDER, "FOLDER"))
        return
    out = cli.require(OUT, "results/input_pipeline")
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out!r}: expected a folder that can be made ({error.strerror}).") from error
    where = provenance.machine()
    with tempfile.TemporaryDirectory() as folder:
        source = dict(dataset="imagenet2012", data_dir=DATA_DIR.value or os.environ.get("TFDS_DATA_DIR", ""))
        facts = lay_out(_made_here(folder) if QUICK.value else source, folder)
        rows = summarise(list(rounds(folder, 1 if QUICK.value else ROUNDS.value)))
    result = dict(machine=where, images=facts, rows=rows, requirements=judge(rows))
    text = table(result)
    print(text)
    for name, content in (("json", json.dumps(result, indent=1) + "\n"), ("txt", text + "\n")):
        with open(os.path.join(out, f"input_pipeline.{name}"), "w") as file:
            file.write(content)
    chart(result, os.path.join(out, "input_pipeline.png"))


if __name__ == "__main__":
    cli.run(main)
