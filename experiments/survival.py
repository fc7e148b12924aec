"""A training that is killed and whose files are damaged ends as one to which nothing happened, bit for bit.

    python -m experiments.survival --data_dir=TFDS --out=results

TFDS is where TensorFlow Datasets has prepared cifar10; without --data_dir a small set of synthetic images is made. The
training is configs/resnet_cifar.py:8, narrow and 120 steps short, with a plateau schedule and a moving average, whose
state then counts; a field is changed as in training, such as --field=train.duration='300 steps'.

Kills: after two runs that nothing happens to, which must be equal, --kills=20 times a run is killed (kill -9) and the
same command started again. Half of the kills are aimed at a save: they come while Orbax' temporary folder is there. A
tenth comes before the first checkpoint, the rest at any step; all are drawn by --seed. A life, a run in a folder of its
own, takes up to --kills_per_life of them one after another, and then goes on to its end. There every checkpoint that
is kept (step, parameters, velocity, statistics, plateau, moving average, key) and every row of metrics.jsonl but for
timing must be the reference's. What is compared is thus the end of each life, which stands for all kills in it.

Damage: a run is killed behind a validation in its second half. Each file of its newest checkpoint, and the validation
error of its best, is harmed in each of five ways, and the trainer's own code restores, asks for the best step and saves
the next checkpoint. Outcomes: 'passed over' (the one before was taken, with a warning that names the damaged one),
'harmless' (all is as it was), 'refused' (a message names the checkpoint). Anything else is a failure: wrong values,
a traceback, a checkpoint passed over without a word. --commands=4 of the harms are also put before the command itself,
which has to end like the reference.

A failure ends this command with status 1. A kill -9 loses nothing that was written, but a power cut may: that is not
tried here. Measurements are compared at log.every='1 step': in a longer window a restart leaves the average of the
steps since its checkpoint. The table, the figure and the numbers are written to survival.txt, .png and .json.

Result (CIFAR-10, two busy CPU cores, 26 minutes with --commands=3; benchmarks/results/survival.txt and .png): 20 kills,
15 of them during a save, in four lives that all ended like the reference; 105 harms, of which 39 were passed over and
66 harmless.
"""

import contextlib
import json
import os
import sys
import tempfile
import time

import jax
import numpy as np
from absl import flags

from alexnet_resnet import cli
from alexnet_resnet.config import steps as in_steps
from alexnet_resnet.errors import UserError, check_at_least, check_choice
from alexnet_resnet.training import workdir as workdir_lib
from experiments import survival_damage as damage
from experiments import survival_kills as killing
from experiments.benchmarks import provenance

CONFIG = "configs/resnet_cifar.py:8"
FIELDS = {
    "model.width": "0.5",
    "train.batch_size": "16",
    "train.duration": "120 steps",
    "checkpoint.every": "10 steps",
    "evaluation.every": "15 steps",
    "log.every": "1 step",
    "log.tensorboard": "False",
    "optimizer.learning_rate": "0.02",
    "optimizer.boundaries": "()",
    "optimizer.plateau.times": "3",
    "optimizer.plateau.patience": "2",
    "optimizer.ema": "0.95",
}
CIFAR = {
    "data.train_split": "train[:4096]",
    "data.validation_split": "train[45000:45256]",
    "data.test_split": "test[:256]",
}
SYNTHETIC = {
    "data.dataset": "npz",
    "data.canvas_size": "12",
    "data.image_size": "8",
    "data.train_split": "train",
    "data.validation_split": "validation",
}

DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS has cifar10; without it images are made.")
OUT = flags.DEFINE_string("out", None, "The folder for the table, the figure and the numbers; made if it is missing.")
WORKDIR = flags.DEFINE_string("workdir", None, "An empty folder for the runs, which then stay; else a temporary one.")
KILLS = flags.DEFINE_integer("kills", 20, "How often a run is killed.")
PER_LIFE = flags.DEFINE_integer("kills_per_life", 5, "How many kills one run takes at most.")
COMMANDS = flags.DEFINE_integer("commands", 4, "Harms that the command itself is run on.")
HARMS = flags.DEFINE_list("harms", list(damage.HARMS), "The harms that each file is done.")
SEED = flags.DEFINE_integer("seed", 0, "Draws the kills and the synthetic images.")
FIELD = flags.DEFINE_multi_string("field", [], "A field of the training, such as train.duration='300 steps'.")


def synthetic(path: str, seed: int) -> None:
    """Writes noise of 8x8 pixels, a quarter of it brighter in each of four classes, with some wrong labels."""
    random, arrays = np.random.default_rng(seed), {}
    for split, count in (("train", 512), ("validation", 64), ("test", 64)):
        labels = random.integers(0, 4, count)
        images = random.integers(0, 120, (count, 8, 8, 3))
        for image, label in zip(images, labels, strict=True):
            image[4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 60
        wrong = random.random(count) < 0.2
        labels = np.where(wrong, random.integers(0, 4, count), labels)
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels}
    np.savez(path, **arrays)


def training_flags(scratch: str, data_dir: str | None, changed: list[str], seed: int) -> list[str]:
    """The flags of the training, but for its folder.

    Raises:
      UserError: a change is none.
    """
    fields = FIELDS | (CIFAR if data_dir else SYNTHETIC)
    if not data_dir:
        data_dir = os.path.join(scratch, "synthetic.npz")
        synthetic(data_dir, seed)
        fields |= {"data.num_classes": "4"}
    for change in changed:
        name, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"field={change!r}: expected one such as 'train.duration=300 steps'.")
        fields[name] = value
    fields["data.data_dir"] = data_dir
    return [f"--config={CONFIG}", *(f"--config.{name}={value}" for name, value in fields.items())]


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def trained(workdir: str) -> dict:
    """What a finished run was, from its folder."""
    config, saved = workdir_lib.read_config(workdir), damage.read(workdir)
    last = saved.states[max(saved.states)]
    return dict(
        network=f"{config.model.name}, {config.model.depth} layers, width {config.model.width:g}",
        data=f"{config.data.dataset} {config.data.train_split}",
        batch_size=config.train.batch_size,
        steps=max(saved.states),
        save_every=config.checkpoint.every,
        evaluate_every=config.evaluation.every,
        arrays=len(damage.named(last)),
        values=sum(array.size for array in damage.named(last).values()),
        rows=len(killing.measurements(workdir)),
        kept={str(step): error for step, error in saved.errors.items()},
        cuts_of_the_rate=int(last.opt_state.control.cuts),
    )


def control(workdir: str) -> bool:
    """Whether the comparison sees one bit of one array of the last checkpoint, for each of its arrays."""
    saved = damage.read(workdir)
    state = saved.states[max(saved.states)]
    leaves, tree = jax.tree.flatten(jax.device_get(state))
    seen = []
    for number, leaf in enumerate(leaves):
        raw = np.array(leaf).reshape(-1).view(np.uint8).copy()
        raw[raw.size // 2] ^= 1
        other = raw.view(leaf.dtype).reshape(leaf.shape)
        changed = tree.unflatten([*leaves[:number], other, *leaves[number + 1 :]])
        seen.append(len(damage.differing(changed, state)) == 1)
    return all(seen)


def kill_all(command: list[str], scratch: str, reference: str, pace: killing.Pace, steps: range) -> list[dict]:
    """All lives, each with what it differs in from the reference."""
    lives = []
    for number, aims in enumerate(killing.plan(KILLS.value, PER_LIFE.value, steps, SEED.value), start=1):
        folder = os.path.join(scratch, f"life{number}")
        life = killing.live(command, folder, aims, pace, say)
        differs = killing.differences(folder, reference) if life["status"] == 0 else [life["said"]]
        lives.append(life | dict(differs=differs, lost=killing.lost(life)))
        say(f"life{number}: {'; '.join(differs[:3]) or 'equal'}")
    return lives


def sample(rows: list[dict], count: int) -> list[dict]:
    """Harms of different parts of the checkpoint with different outcomes; those of large files that matter first."""
    kinds = {}
    for row in sorted(rows, key=lambda row: (row["outcome"] != damage.PASSED_OVER, -row["bytes"])):
        kinds.setdefault((row["outcome"], row["file"].split(os.sep)[0]), row)
    return [row for row in kinds.values() if row["outcome"] in (damage.PASSED_OVER, damage.HARMLESS)][:count]


def run_on_damage(command: list[str], workdir: str, scratch: str, reference: str, row: dict) -> dict:
    """The training's command on a folder with one harm, to its end."""
    folder, steps = os.path.join(scratch, "goes_on"), sorted(damage.read(workdir).states)
    with damage.damaged(workdir, folder, row["step"], row["file"], row["harm"]):
        life = killing.live(command, folder, [], None, say)
        with open(f"{folder}.log") as log:
            said = log.read()
        differs = killing.differences(folder, reference) if life["status"] == 0 else [life["said"]]
    warned = (
        os.path.join(folder, workdir_lib.CHECKPOINTS, f"{row['step']}:") in said and "trying the one before" in said
    )
    resumed = life["processes"][-1]["resumed"]
    expected = steps[-2] if row["outcome"] == damage.PASSED_OVER else steps[-1]
    right = resumed == expected and warned == (row["outcome"] == damage.PASSED_OVER)
    found = {name: row[name] for name in ("file", "harm", "outcome")}
    return found | dict(resumed=resumed, warned=warned, right=right, differs=differs)


def judge(result: dict) -> list[dict]:
    """The claims, and whether they hold."""
    kills = [kill for life in result["lives"] for kill in killing.kills(life)]
    saving, early = sum(kill["saving"] for kill in kills), sum(not kill["newest"] for kill in kills)
    what, known = result["training"], [kill for kill in kills if kill["next"] is not None]
    ends = f"{what['arrays']} arrays of {what['values']:,} values, {what['rows']} rows of metrics.jsonl"
    rows, runs = result["damage"], result["commands"]
    bad = [row for row in rows if row["outcome"] not in damage.GOOD]
    counts = {name: sum(row["outcome"] == name for row in rows) for name in damage.GOOD[:3]}
    found = [
        ("two runs that nothing happens to are equal", not result["references_differ"]),
        ("one bit changed in any array is seen by the comparison", result["control"]),
        (
            f"{len(kills)} of {result['kills']} kills came before the run's end: {saving} while a checkpoint was being "
            f"saved, {early} before the first was finished",
            len(kills) == result["kills"],
        ),
        (
            f"{len(known)} restarts lived to say where they began: at the newest finished checkpoint",
            not any(life["lost"] for life in result["lives"]),
        ),
        (
            f"{sum(not life['differs'] for life in result['lives'])} of {len(result['lives'])} killed runs ended like "
            f"the reference, bit for bit ({ends})",
            not any(life["differs"] for life in result["lives"]),
        ),
        (
            f"{len(rows) - sum(row['outcome'] == damage.UNCHANGED for row in rows)} harms to files: "
            + ", ".join(f"{count} {name}" for name, count in counts.items())
            + f", {len(bad)} of another kind",
            not bad,
        ),
        (
            f"{sum(run['right'] and not run['differs'] for run in runs)} of {len(runs)} commands on a damaged folder "
            "warned where they had to and ended like the reference, bit for bit",
            all(run["right"] and not run["differs"] for run in runs),
        ),
    ]
    return [dict(claim=claim, holds=bool(holds)) for claim, holds in found]


def experiment(scratch: str, command: list[str]) -> dict:
    """All of it: the numbers of the result, but for the machine's."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(scratch, "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # Reading checkpoints here takes the compiler's time too.
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    reference, again = (os.path.join(scratch, name) for name in ("reference", "again"))
    say("the reference")
    killing.uninterrupted(command, reference)
    say("the same again")
    # This one finds its programs compiled, as all that follow.
    pace, seconds = killing.uninterrupted(command, again)
    what = trained(reference)
    say(f"{seconds:.0f} s; first checkpoint after {pace.first_checkpoint:.1f}, a save takes {pace.save:.2f} s")
    save, evaluate = (round(in_steps("", what[name], 1)) for name in ("save_every", "evaluate_every"))
    result = dict(
        training=what,
        seconds=round(seconds, 1),
        pace=dict(vars(pace)),
        references_differ=killing.differences(again, reference),
        control=control(reference),
        kills=KILLS.value,
        lives=kill_all(command, scratch, reference, pace, range(1, what["steps"] - save)),
    )
    victim, middle = os.path.join(scratch, "victim"), what["steps"] // 2 // evaluate * evaluate
    stopped = killing.stopped(command, victim, list(range(middle, what["steps"], evaluate)))
    say(f"damage to the checkpoint of step {stopped}")
    result["damaged_step"] = stopped
    result["damage"] = damage.trials(victim, scratch, HARMS.value, say)
    newest = [row for row in result["damage"] if row["step"] == stopped]
    result["commands"] = [
        run_on_damage(command, victim, scratch, reference, row) for row in sample(newest, COMMANDS.value)
    ]
    result["claims"] = judge(result)
    return result


def main() -> None:
    out = cli.require(OUT, "results")
    check_at_least("kills", KILLS.value, 1)
    check_at_least("kills_per_life", PER_LIFE.value, 1)
    for how in HARMS.value:
        check_choice("harms", how, tuple(damage.HARMS))
    from experiments.survival_report import chart, table

    where = provenance.machine()
    with contextlib.ExitStack() as stack:
        scratch = os.path.abspath(WORKDIR.value or stack.enter_context(tempfile.TemporaryDirectory(prefix="survival")))
        try:
            for folder in (out, scratch):
                os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise UserError(f"out={out!r}: expected a folder that can be made ({error.strerror}).") from error
        if os.listdir(scratch):
            raise UserError(f"workdir={scratch!r}: expected an empty folder.")
        data_dir = os.path.abspath(DATA_DIR.value) if DATA_DIR.value else None
        result = dict(machine=where, **experiment(scratch, training_flags(scratch, data_dir, FIELD.value, SEED.value)))
    text, path = table(result), os.path.join(out, "survival")
    print(text)
    for ending, content in (("json", json.dumps(result, indent=1) + "\n"), ("txt", text + "\n")):
        with open(f"{path}.{ending}", "w") as file:
            file.write(content)
    chart(result, f"{path}.png")
    if not all(claim["holds"] for claim in result["claims"]):
        sys.exit(cli.FAILURE)


if __name__ == "__main__":
    cli.run(main)
