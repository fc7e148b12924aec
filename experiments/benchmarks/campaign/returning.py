"""What comes back from a campaign: a report, and a few small archives."""

import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence

from alexnet_resnet.training.workdir import CHECKPOINTS, write_atomically
from experiments.benchmarks.campaign import stages as stages_lib
from experiments.benchmarks.campaign.data import ARRAYS, MEGABYTE, PARTS
from experiments.benchmarks.campaign.running import Result
from experiments.benchmarks.campaign.stages import TRAINING, Stage

NAME = "campaign"
ARCHIVE = f"{NAME}.tar.gz"
COMPILED = "compiled"
RETURNS = "returns"
# What stays in the campaign's folder, besides checkpoints.
STAYS = (ARRAYS, PARTS, COMPILED, RETURNS, ARCHIVE)
LARGEST = 4 * MEGABYTE  # of a single file that comes back


def table(stages: Sequence[Stage], results: Mapping[str, Result], out: str) -> str:
    """What became of every stage, a line each."""
    lines = [f"{'stage':<26}{'status':<9}{'seconds':>8}  {'steps':>15}  {'test error':>10}  {'published':>9}"]
    for stage in stages:
        result = results[stage.name]
        steps = error = published = ""
        if stage.kind == TRAINING:
            at = stages_lib.standing(stage, out)
            steps = f"{at.step:,}/{stage.total:,}"
            error = "" if at.error is None else f"{at.error:.2f}%"
            published = "" if stage.published is None else f"{stage.published:.2f}%"
        line = f"{stage.name:<26}{result.status:<9}{result.seconds:>8,.0f}  {steps:>15}  {error:>10}  {published:>9}"
        lines.append(line.rstrip())
        if result.text and not result.text.startswith("step "):
            lines.append(f"    {result.text}")
    return "\n".join(lines)


def report(out: str, heading: str, facts: Mapping, stages: Sequence[Stage], results: Mapping[str, Result]) -> str:
    """Writes campaign.txt and campaign.json into the campaign's folder; the text."""
    rows = []
    for stage in stages:
        at = stages_lib.standing(stage, out) if stage.kind == TRAINING else None
        rows.append(
            dict(name=stage.name, kind=stage.kind, **vars(results[stage.name]))
            | (dict(step=at.step, total=stage.total, test_error=at.error, published=stage.published) if at else {})
        )
    text = f"{heading}\n\n{table(stages, results, out)}"
    write_atomically(os.path.join(out, f"{NAME}.txt"), text + "\n")
    write_atomically(os.path.join(out, f"{NAME}.json"), json.dumps(dict(facts, stages=rows), indent=1) + "\n")
    return text


def pack(out: str, folder: str, most_mb: float) -> tuple[list[str], list[str]]:
    """Writes the archives that come back. Unpacked into another folder, the campaign goes on there.

    Args:
      out: the campaign's folder.
      folder: where the archives go; made if it is missing.
      most_mb: millions of bytes that an archive of checkpoints may have.

    Returns:
      The archives: all results, measurements and logs in one, the newest checkpoint of each training in others; and
      the files that are too large for any, relative to `out`.
    """
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(folder):
        if name == ARCHIVE or (name.startswith("checkpoints-") and name.endswith(".tar")):
            os.remove(os.path.join(folder, name))
    small, large = [], []
    for path in _files(out, skip=os.path.realpath(folder)):
        (small if os.path.getsize(os.path.join(out, path)) <= LARGEST else large).append(path)
    paths = [os.path.join(folder, ARCHIVE)]
    _write(paths[0], out, small, "w:gz")
    groups, room = [], 0.0
    for files in newest_checkpoints(out):
        # An archive has a header and padding for each file.
        size = sum(os.path.getsize(os.path.join(out, path)) + 1536 for path in files) + 10240
        if size > most_mb * MEGABYTE:
            large.append(os.path.commonpath([os.path.dirname(path) for path in files]))
            continue
        if size > room:
            groups.append([])
            room = most_mb * MEGABYTE
        groups[-1].extend(files)
        room -= size
    for number, files in enumerate(groups, start=1):
        paths.append(os.path.join(folder, f"checkpoints-{number}.tar"))
        _write(paths[-1], out, files, "w")
    return paths, large


def _files(out: str, skip: str) -> Iterator[str]:
    """All files that come back with the results."""
    for folder, names, files in os.walk(out):
        inside = os.path.relpath(folder, out)
        stays = STAYS if inside == "." else (CHECKPOINTS,)
        names[:] = sorted(n for n in names if n not in stays and os.path.realpath(os.path.join(folder, n)) != skip)
        for name in sorted(files):
            path = os.path.join(folder, name)
            if name not in stays and not name.endswith(".partial") and os.path.isfile(path):
                yield os.path.normpath(os.path.join(inside, name))


def newest_checkpoints(out: str) -> Iterator[list[str]]:
    """The files of each training's newest whole checkpoint, with what stands beside the checkpoints."""
    for stage in sorted(os.listdir(out)):
        top = os.path.join(out, stage, CHECKPOINTS)
        if not os.path.isdir(top):
            continue
        steps = [int(name) for name in os.listdir(top) if name.isdecimal()]
        found = []
        for folder, names, files in os.walk(top):
            if folder == top:
                names[:] = [str(max(steps))] if steps else []
            found += [os.path.relpath(os.path.join(folder, name), out) for name in sorted(files)]
        if steps:
            yield found


def _write(path: str, out: str, files: Sequence[str], mode: str) -> None:
    with tarfile.open(f"{path}.partial", mode) as archive:
        for name in files:
            archive.add(os.path.join(out, name), name)
    os.replace(f"{path}.partial", path)
