"""All that is to be measured on a GPU that is lent for minutes: numerics, benchmarks, and CIFAR-10 at full length.

    python -m experiments.benchmarks.gpu_campaign --out=runs/campaign --data=runs/cifar10 --minutes=25

The machine needs JAX with a GPU, no network and no TensorFlow; docs/gpu_campaign.md says which packages to carry. The
command first says what it will run and how long it thinks each stage takes. The stages, the most wanted first: numerics
on the device; throughput of ResNet-50 and AlexNet in bfloat16 beside PyTorch; accelerator_forms; ResNet-20 and plain-20
at full length; lrn; loop_overhead; ResNet-110; the rest of the throughput; roofline; memory; ResNet-56, 32 and 44; the
nets of AlexNet's author.

Every stage is a program of its own, so that one that fails does not stop the others. --margin seconds before its
minutes are over, or when SIGTERM or Ctrl-C comes, the command tells the stage that runs to save, packs what there is,
and ends. The same command goes on there: what is done is skipped, a training that was stopped is gone on with, what
failed is tried again. After each stage --returns (by default OUT/returns) has campaign.tar.gz with all results,
measurements and logs, and checkpoints-N.tar with each training's newest checkpoint; unpacked into an empty folder, they
let the campaign go on there, on another machine too. --collect_only packs and runs nothing.

CIFAR-10 travels in two files of about 51 MB, which a machine that has the dataset from TFDS writes before; the arrays
are made of them once all have come, in one call or in several:

    python -m experiments.benchmarks.gpu_campaign --pack=runs/cifar10 --data_dir=TFDS

Without them and without --data_dir (where TFDS has cifar10) the trainings wait, and the benchmarks run. --rehearse does
all stages at the smallest sizes on a CPU, on images made here. The exit status is 1 if a stage failed.
"""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from alexnet_resnet import cli
from alexnet_resnet.errors import UserError, check_at_least, check_choice

OUT = flags.DEFINE_string("out", None, "The campaign's folder: everything, checkpoints too. The same one goes on.")
MINUTES = flags.DEFINE_float("minutes", 25.0, "After so many minutes the command has ended.")
MARGIN = flags.DEFINE_float("margin", 45.0, "Seconds before that at which the running stage is told to save.")
DATA = flags.DEFINE_string("data", "", "The folder with parts of CIFAR-10 that --pack wrote.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Where TFDS has prepared cifar10, instead of --data or for --pack.")
PACK = flags.DEFINE_string("pack", "", "Writes CIFAR-10 from --data_dir in parts into this folder, and nothing else.")
PART_MB = flags.DEFINE_float("part_mb", 60.0, "With --pack: millions of bytes of a part, at most.")
RETURNS = flags.DEFINE_string("returns", "", "The folder for the archives that come back; OUT/returns by default.")
RETURN_MB = flags.DEFINE_float("return_mb", 16.0, "Millions of bytes of an archive of checkpoints, at most.")
ONLY = flags.DEFINE_list("only", [], "Runs these stages only.")
SKIP = flags.DEFINE_list("skip", [], "Leaves these stages out.")
COMMIT = flags.DEFINE_string("commit", "", "The commit that this code is of, where git cannot tell.")
COLLECT_ONLY = flags.DEFINE_bool("collect_only", False, "Packs what there is and runs nothing.")
REHEARSE = flags.DEFINE_bool("rehearse", False, "All stages at the smallest sizes, on a CPU.")

ROOT = Path(__file__).parents[2]
DEVICE = "import jax, json; d = jax.devices(); print(json.dumps([d[0].platform, d[0].device_kind, len(d)]))"


def main() -> int:
    began = time.monotonic()
    if PACK.value:
        return pack()
    out = os.path.abspath(cli.require(OUT, "runs/campaign"))
    returns = os.path.abspath(RETURNS.value or os.path.join(out, "returns"))
    check_at_least("margin", MARGIN.value, 1)
    check_at_least("return_mb", RETURN_MB.value, 0)
    if not MARGIN.value < 60 * MINUTES.value < math.inf:
        raise UserError(f"minutes={MINUTES.value:g}: expected more than the {MARGIN.value:g} seconds of --margin.")
    environment = programs_environment(out)
    # The device is the stages': what this process computes, if anything, it computes on the processor.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from experiments.benchmarks.campaign import stages

    device = ("", "", 0) if COLLECT_ONLY.value else devices(environment)
    every = stages.stages(REHEARSE.value)
    chosen = choose([stage.name for stage in every])
    for field, folder in (("out", out), ("returns", returns)):
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise UserError(f"{field}={folder!r}: expected a folder that can be made ({error.strerror}).") from error
    return run(began, out, returns, every, chosen, environment, device)


def run(began, out, returns, every, chosen, environment, device) -> int:
    """Runs the chosen stages, reports and packs; the exit status."""
    from experiments.benchmarks import provenance
    from experiments.benchmarks.campaign import returning
    from experiments.benchmarks.campaign.running import DONE, FAILED, MISSING, Campaign

    where = provenance.machine()
    if not COLLECT_ONLY.value:
        where["devices"] = f"{device[2]} x {device[1]}"
    missing, said = dataset(out)

    def collect(results):
        facts = dict(machine=where, rehearsal=REHEARSE.value, data=said, minutes=MINUTES.value)
        heading = provenance.heading(where) + ("\nA rehearsal: no figure means anything." if REHEARSE.value else "")
        text = returning.report(out, heading, facts, every, results)
        return text, *returning.pack(out, returns, RETURN_MB.value)

    until, grace = began + 60 * MINUTES.value - 0.2 * MARGIN.value, 0.8 * MARGIN.value
    campaign = Campaign(every, out, until, grace, str(ROOT), environment, chosen, missing, collect, say=say)
    if not COLLECT_ONLY.value:
        say(f"{where['devices']}; {said}; {MINUTES.value:g} minutes, {campaign.left():,.0f} s of them for stages")
        for stage, seconds, source, what in campaign.plan():
            say(f"  {stage.name:<26}{f'about {seconds:,.0f} s, {source}' if source else '':<58}{what}".rstrip())
        campaign.run()
    text, archives, large = collect(campaign.results)
    print(f"\n{text}\n")
    for path in archives:
        print(f"{path}: {os.path.getsize(path) / 1e6:.1f} MB")
    for path in large:
        print(f"{path} stays in {out}: too large to come back")
    statuses = [campaign.results[name].status for name in chosen]
    rest = sum(status != DONE for status in statuses)
    print(
        f"{len(statuses) - rest} of {len(statuses)} stages are done" + ("; the same command goes on." if rest else ".")
    )
    return cli.FAILURE if {FAILED, MISSING} & set(statuses) else 0


def dataset(out: str) -> tuple[str, str]:
    """Brings the images into `out`; what is missing of them, or '', and a sentence about where they are from."""
    from experiments.benchmarks.campaign import data

    if COLLECT_ONLY.value:
        return "", ""
    if REHEARSE.value:
        if not data.there(out, data.SYNTHETIC):
            data.save(data.synthetic(), out, data.SYNTHETIC)
        return "", "images made here instead of CIFAR-10"
    path, said = data.prepare(out, DATA.value, DATA_DIR.value)
    return "" if path else said, said


def pack() -> int:
    """Writes the parts of CIFAR-10."""
    from experiments.benchmarks.campaign import data

    if not 0 < PART_MB.value < math.inf:
        raise UserError(f"part_mb={PART_MB.value:g}: expected a number above zero.")
    arrays = data.read(DATA_DIR.value)
    for path in data.pack(arrays, PACK.value, PART_MB.value):
        print(f"{path}: {os.path.getsize(path) / 1e6:.1f} MB")
    print(f"fingerprint {arrays.fingerprint()}")
    return 0


def choose(names: list[str]) -> list[str]:
    """The stages that --only and --skip leave."""
    for field, values in (("only", ONLY.value), ("skip", SKIP.value)):
        for value in values:
            check_choice(field, value, names)
    return [name for name in names if name not in SKIP.value and (not ONLY.value or name in ONLY.value)]


def programs_environment(out: str) -> dict[str, str]:
    """What the stages' programs find in their environment."""
    from experiments.benchmarks import provenance

    if COMMIT.value:
        os.environ[provenance.COMMIT] = COMMIT.value
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    # A training that goes on does not compile anew. Benchmarks of compilation leave it out by themselves.
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(out, "compiled"))
    return environment | ({"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"} if REHEARSE.value else {})


def devices(environment: dict[str, str]) -> tuple[str, str, int]:
    """The platform, kind and number of JAX's devices, asked in another process: this one leaves them to the stages.

    Raises:
      UserError: JAX does not start, or finds no accelerator and this is no rehearsal.
    """
    try:
        found = subprocess.run(
            [sys.executable, "-c", DEVICE], env=environment, capture_output=True, text=True, timeout=120
        )
    except subprocess.TimeoutExpired as error:
        raise UserError("JAX did not find its devices within two minutes.") from error
    if found.returncode:
        raise UserError(f"JAX does not start here: {(found.stderr.strip() or 'it says nothing').splitlines()[-1]}")
    platform, kind, count = json.loads(found.stdout.strip().splitlines()[-1])
    if platform == "cpu" and not REHEARSE.value:
        raise UserError("JAX finds no accelerator here: expected a GPU (or --rehearse, for a processor).")
    return platform, kind, count


def say(text: str) -> None:
    """Tells how far the campaign is."""
    print(text, flush=True)


if __name__ == "__main__":
    cli.run(main)
