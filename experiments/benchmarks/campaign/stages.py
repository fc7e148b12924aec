"""What a campaign runs, in which order, and how long each stage may take."""

import dataclasses
import importlib.util
import json
import os
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence

from alexnet_resnet import config as config_lib
from alexnet_resnet.errors import UserError
from alexnet_resnet.training import workdir as workdir_lib
from experiments.benchmarks.campaign.data import ARRAYS
from experiments.study import cifar, plan

BENCHMARK, TRAINING = "benchmark", "training"

# Seconds of a training: its start, each layer's compilation, each layer's part of a step; on a GPU, and in a rehearsal.
# Guesses that were written before anything was measured; what has run corrects them.
GUESSES = dict(start=30.0, compile=1.0, step=1e-4)
REHEARSED = dict(start=8.0, compile=0.3, step=1e-3)
# Seconds of a benchmark on a GPU and, with --quick, on a processor: guesses too.
NUMERICS, LRN, LOOP, MEMORY, DEEPEST = (90, 20), (60, 15), (120, 20), (240, 30), (120, 30)
ROOFLINE, FORMS_OF_STEPS = (240, 20), (180, 20)
# By the memory's benchmark: a case is a process with a compilation of its own, and 1,202 layers compile long.
FORMS = ("--networks=resnet50,resnet110", "--batch_sizes=128", "--forms=plain,block,scan+block")
DEEPEST_FORMS = ("--networks=resnet1202", "--batch_sizes=64", "--forms=scan+block")
# Of the throughput, by what is asked of it: first what is to be accepted, then the others in pieces that fit into the
# minutes that are left, each row more briefly.
BRIEF = ("--rounds=3", "--seconds=1")
THROUGHPUT = {
    "first": ((180, 30), "--networks=resnet50,alexnet", "--dtypes=bfloat16", "--peers=torch"),
    "cifar": ((240, 30), "--networks=resnet20,resnet110", "--dtypes=float32,bfloat16", "--peers=torch,linen", *BRIEF),
    "float32": ((200, 30), "--networks=resnet50,alexnet", "--dtypes=float32", "--peers=torch,linen", *BRIEF),
    "rest": ((240, 30), "--networks=resnet18,resnet152,vgg16", "--dtypes=bfloat16", "--peers=torch", *BRIEF),
}

# What every training of a campaign has changed, beside its source: fewer pauses, for a device that is lent by the
# minute, and no files of TensorBoard, whose writer would be one more package to carry.
FIELDS = {
    "log.tensorboard": False,
    "log.every": "100 steps",
    "train.steps_per_call": 100,
    "evaluation.every": "10 epochs",
    "evaluation.batch_size": 1000,
    "checkpoint.every": "10 epochs",
}
# One step a call: XLA's convolutions inside a loop are ten times slower on a processor.
REHEARSED_FIELDS = {
    "train.duration": "60 steps",
    "train.batch_size": 16,
    "train.steps_per_call": 1,
    "log.every": "5 steps",
    "evaluation.every": "40 steps",
    "evaluation.batch_size": 64,
    "checkpoint.every": "20 steps",
}
REHEARSED_WIDTH = 0.25
SYNTHETIC = 256  # images that a rehearsal trains on
# The author's numbers for these two are of nine views.
NINE_CROPS = ("11pct", "13pct")
NINE_CROP = {"evaluation.views": "nine_crop", "evaluation.every": "40 epochs"}
# Evaluations and checkpoints take about a tenth of the time of the steps.
PAUSES = 1.1
# Test errors in percent that the author of cuda-convnet published.
AUTHOR = {"11pct": 11.0, "18pct": 18.0, "13pct": 13.0}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One program of a campaign.

    Attributes:
      name: of the stage and of its folder below the campaign's.
      kind: 'benchmark', which is done in one go or not at all, or 'training', which goes on where it was stopped.
      arguments: of the Python interpreter, in which {out} stands for the campaign's folder.
      start: guessed seconds of a benchmark, or of a training before its first step.
      step: guessed seconds of each of a training's steps.
      total: steps of a training.
      layers: of a training's network, in proportion to which its steps take time within a family.
      family: the trainings that can be told from each other so.
      published: a training's published test error in percent; None for none.
    """

    name: str
    kind: str
    arguments: tuple[str, ...]
    start: float
    step: float = 0.0
    total: int = 0
    layers: int = 0
    family: str = ""
    published: float | None = None

    @property
    def guess(self) -> float:
        """Seconds that it takes from its beginning, before anything is known."""
        return self.start + self.step * self.total

    @property
    def settings(self) -> str:
        """What tells this stage from one of the same name that was done with other settings."""
        return shlex.join(self.arguments)

    def command(self, out: str) -> list[str]:
        """What is started."""
        return [sys.executable, *(part.replace("{out}", out) for part in self.arguments)]

    def is_missing(self) -> bool:
        """Whether it is a module that is not there."""
        return self.arguments[0] == "-m" and importlib.util.find_spec(self.arguments[1]) is None


def stages(rehearse: bool) -> list[Stage]:
    """All stages, the most wanted first; for a rehearsal at the smallest sizes."""
    guesses = REHEARSED if rehearse else GUESSES

    def measured(name: str, seconds: tuple[float, float], module: str = "", *flags: str) -> Stage:
        quick = ("--quick",) if rehearse else ()
        arguments = ("-m", f"experiments.benchmarks.{module or name}", f"--out={{out}}/{name}", *quick, *flags)
        return Stage(name, BENCHMARK, arguments, seconds[rehearse])

    def throughput(part: str) -> Stage:
        seconds, *flags = THROUGHPUT[part]
        return measured(f"train_throughput_{part}", seconds, "train_throughput", *flags)

    def resnet(depth: int, residual: bool = True) -> Stage:
        run, name = cifar.resnet(depth, residual), f"{'resnet' if residual else 'plain'}{depth}"
        if rehearse:
            # The shallowest of the family: a rehearsal waits for the compiler.
            run = cifar.resnet(8, residual)
            run = dataclasses.replace(run, fields=run.fields | {"model.width": REHEARSED_WIDTH})
        layers = 8 if rehearse else depth
        return _training(name, run, guesses, rehearse, layers, cifar.TABLE6[depth] if residual else None)

    def author(variant: str) -> Stage:
        run = cifar.cuda_convnet(variant)
        if variant in NINE_CROPS:
            run = dataclasses.replace(run, fields=run.fields | NINE_CROP)
        # Their layers are wider than the family's: a step is guessed to take what ten of those take.
        return _training(f"author_{variant}", run, guesses, rehearse, 10, AUTHOR[variant])

    return [
        measured("numerics", NUMERICS),
        throughput("first"),
        measured("accelerator_forms", FORMS_OF_STEPS),
        resnet(20),
        resnet(20, residual=False),
        measured("lrn", LRN),
        measured("loop_overhead", LOOP),
        resnet(110),
        throughput("cifar"),
        throughput("float32"),
        throughput("rest"),
        measured("roofline", ROOFLINE, "", "--dtypes=float32,bfloat16"),
        measured("memory", MEMORY, "", *FORMS),
        measured("memory_1202", DEEPEST, "memory", *DEEPEST_FORMS),
        resnet(56),
        resnet(32),
        resnet(44),
        author("18pct"),
        author("13pct"),
        author("11pct"),
    ]


def _training(name: str, run: plan.Run, guesses: Mapping, rehearse: bool, layers: int, published) -> Stage:
    """A stage that trains one of the studies' runs on the arrays in the campaign's folder."""
    fields = {**FIELDS, **run.fields, **(REHEARSED_FIELDS if rehearse else {}), "data.dataset": "npz"}
    config = plan.full_config(dataclasses.replace(run, fields=fields))
    config_lib.check(config)
    duration, images = config.train.duration, SYNTHETIC if rehearse else 50_000
    total = config_lib.steps("train.duration", duration, images / config.train.batch_size)
    changes = [f"--config.{field}={value}" for field, value in fields.items()]
    return Stage(
        name,
        TRAINING,
        (
            *("-m", "alexnet_resnet.train", f"--config=configs/{run.config}", f"--workdir={{out}}/{name}"),
            *(f"--config.data.data_dir={{out}}/{ARRAYS}", *changes),
        ),
        start=guesses["start"] + layers * guesses["compile"],
        step=layers * guesses["step"],
        total=total,
        layers=layers,
        family=run.config.split(":")[0],
        published=published,
    )


@dataclasses.dataclass(frozen=True)
class Standing:
    """How far a training is, by what its folder says.

    Attributes:
      step: the last step that was reported.
      saved: the step of the newest checkpoint, where the next call goes on; 0 for none.
      error: its last test error in percent; None where it was not judged.
      step_seconds: of a step, from its reports; None before the first that is without compilation.
      finished: whether it has come to its end and was judged there.
    """

    step: int = 0
    saved: int = 0
    error: float | None = None
    step_seconds: float | None = None
    finished: bool = False


def standing(stage: Stage, out: str) -> Standing:
    """How far a training is."""
    folder = os.path.join(out, stage.name)
    try:
        rows = list(workdir_lib.read_metrics(folder))
        with open(os.path.join(folder, workdir_lib.CONFIG), encoding="utf-8") as file:
            batch = json.load(file)["train"]["batch_size"]
    except (OSError, UserError):
        return Standing()
    top = os.path.join(folder, workdir_lib.CHECKPOINTS)
    steps = [int(name) for name in (os.listdir(top) if os.path.isdir(top) else ()) if name.isdecimal()]
    judged = [row for row in rows if "test/error" in row]
    rates = [row["train/images_per_second"] for row in rows if "train/images_per_second" in row]
    return Standing(
        step=rows[-1]["step"] if rows else 0,
        saved=max(steps, default=0),
        error=100 * judged[-1]["test/error"] if judged else None,
        step_seconds=batch / statistics.median(rates) if rates else None,
        finished=bool(judged) and judged[-1]["step"] == stage.total,
    )


def expected(stage: Stage, out: str, every: Sequence[Stage], taken: Mapping[str, float]) -> tuple[float, str]:
    """Seconds that a stage still takes, and what that is known from.

    Args:
      stage: one that is not done.
      out: the campaign's folder.
      every: all stages.
      taken: the seconds that stages took which are done, by name.
    """
    if stage.kind == BENCHMARK:
        ratios = [taken[other.name] / other.guess for other in every if other.kind == BENCHMARK and other.name in taken]
        if ratios:
            return stage.guess * statistics.median(ratios), "a guess, scaled by the benchmarks so far"
        return stage.guess, "a guess"
    at = standing(stage, out)
    if at.step_seconds is not None:
        return stage.start + PAUSES * at.step_seconds * (stage.total - at.saved), "its own steps so far"
    by_layer = [
        found.step_seconds / other.layers
        for other in every
        if other.family == stage.family and (found := standing(other, out)).step_seconds is not None
    ]
    if by_layer:
        step = statistics.median(by_layer) * stage.layers
        return stage.start + PAUSES * step * stage.total, "the steps of its family so far, by layers"
    return stage.guess, "a guess"
