"""One page of all results: the paper's number, ours, the budget, the hardware and the command, and what was not run.

    python -m experiments.scoreboard
    python -m experiments.scoreboard runs/studies --out=runs/scoreboard

It reads every result.json below the folders that it is given (experiments/results by default) and writes README.md and
scoreboard.html with the figures to --out (that folder by default). Of a study with several results, all are shown, the
longest training first. Studies without one are listed as not run, with the command that runs them.
"""

import base64
import functools
import html
import importlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from alexnet_resnet import cli
from alexnet_resnet.errors import UserError
from alexnet_resnet.training.workdir import write_atomically
from experiments.study import report
from experiments.study.report import HEADER, Row, Study

RESULTS = "experiments/results"
MARKDOWN, PAGE = "README.md", "scoreboard.html"

# In the order of the page.
STUDIES = (
    *("alexnet_figure1", "alexnet_lrn_cifar", "alexnet_norms", "alexnet_ablations", "alexnet_table1", "alexnet_table2"),
    *("alexnet_figure3", "alexnet_figure4", "alexnet_feature_maps"),
    *("resnet_figure6", "resnet_table2", "resnet_table3", "resnet_table4", "resnet_table5", "resnet_table6"),
    *("resnet_figure7", "resnet_gradients", "alexnet_or_resnet"),
)
KNOWN = (*STUDIES, "sweep")


def study(name: str) -> Study:
    """A study by its name."""
    return importlib.import_module(f"experiments.{name}").STUDY


def read(folders: Iterable[str]) -> list[dict[str, Any]]:
    """Every result.json below some folders, with the folder that it lies in, in the order of the page.

    Raises:
      UserError: a folder is missing, or a record cannot be read.
    """
    found = []
    for top in folders:
        if not os.path.isdir(top):
            raise UserError(f"folder={top!r}: expected one with results of studies.")
        for folder, _, names in sorted(os.walk(top)):
            if report.RESULT not in names:
                continue
            path = os.path.join(folder, report.RESULT)
            try:
                with open(path) as file:
                    record = json.load(file)
                record["rows"] = [Row(**row) for row in record["rows"]]
                missing = {"study", "title", "source", "budget", "machine", "figures", "notes"} - record.keys()
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}: expected the record of a study ({error}).") from error
            if missing:
                raise UserError(f"{path}: expected the record of a study, which has {', '.join(sorted(missing))}.")
            found.append(record | {"folder": folder})
    place = {name: number for number, name in enumerate(KNOWN)}
    return sorted(found, key=lambda record: (place.get(record["study"], len(place)), -_size(record), record["folder"]))


def _size(record: dict[str, Any]) -> float:
    return record.get("training_seconds", 0.0)


def provenance(record: dict[str, Any]) -> str:
    """Where, when and from which commit, as one line."""
    machine, seconds = record["machine"], record.get("training_seconds", 0.0)
    spent = f"; {seconds / 60:,.0f} minutes of training" if seconds else ""
    commits = sorted({run["commit"] for run in record.get("runs", [])} - {machine["commit"]})
    trained = f" (trained at {', '.join(commits)})" if commits else ""
    return (
        f"{machine.get('devices', '')} ({machine['processor']}, {machine['cores']} cores), {machine['date']}, "
        f"commit {machine['commit']}{trained}{spent}"
    )


def summary(records: Sequence[dict[str, Any]]) -> str:
    """How much of the page has been run, as one sentence."""
    run = {record["study"] for record in records if was_run(record)} & set(STUDIES)
    rows = [row for record in records for row in record["rows"]]
    measured = [row for row in rows if row.ours is not None]
    beside = [row for row in measured if row.paper is not None]
    return (
        f"{len(run)} of {len(STUDIES)} studies have been run, in part or whole: {len(measured)} numbers of ours, "
        f"{len(beside)} of them beside one of a paper's. A row's budget says how much of the paper's training it is."
    )


def was_run(record: dict[str, Any]) -> bool:
    """Whether something was trained for a record, or could be measured without."""
    measured = any(row.ours is not None for row in record["rows"])
    return measured and bool(record.get("runs") or not record.get("not_run"))


def markdown(records: Sequence[dict[str, Any]], out: str) -> str:
    """The page in Markdown; figures are linked from `out`."""
    lines = ["# Scoreboard", "", "Written by `python -m experiments.scoreboard`.", summary(records), ""]
    for record in records:
        lines += [f"## {record['title']}", "", f"{record['source']}. `{record['machine']['command']}`", ""]
        lines += [f"{provenance(record)}.", "", report.markdown_table(record["rows"]), ""]
        lines += [f"{note}\n" for note in record["notes"]]
        lines += [f"![{name}]({_relative(record, name, out)})\n" for name in record["figures"]]
    lines += ["## Not run", "", "| study | source | command |", "|---|---|---|"]
    lines += [f"| {title} | {source} | `{command}` |" for title, source, command in not_run(records)]
    return "\n".join(lines) + "\n"


def not_run(records: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Title, source and command of the studies that no record is of."""
    run = {record["study"] for record in records if was_run(record)}
    missing = [study(name) for name in STUDIES if name not in run]
    return [(one.title, one.source, f"python -m experiments.{one.name}") for one in missing]


def _relative(record: dict[str, Any], name: str, out: str) -> str:
    return os.path.relpath(os.path.join(record["folder"], name), out)


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 0.5rem 0 1rem; font-size: 14px; }
th, td { border-bottom: 1px solid #ddd; padding: 0.25rem 0.7rem; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.ours { font-weight: 600; } .not-run { color: #999; font-weight: 400; }
code { background: #f4f4f4; padding: 0.1rem 0.3rem; } p.where { color: #666; font-size: 13px; }
img { max-width: 100%; } h2 { margin-top: 2.5rem; } nav a { margin-right: 1rem; }
"""


def page(records: Sequence[dict[str, Any]]) -> str:
    """The page in HTML, by itself: figures are part of it."""
    escape = html.escape
    body = [f"<h1>Scoreboard</h1><p>{escape(summary(records))}</p><nav>"]
    body += [f'<a href="#{n}">{escape(record["study"])}</a>' for n, record in enumerate(records)] + ["</nav>"]
    for number, record in enumerate(records):
        body.append(f'<h2 id="{number}">{escape(record["title"])}</h2>')
        body.append(f"<p>{escape(record['source'])}. <code>{escape(record['machine']['command'])}</code></p>")
        body.append(f'<p class="where">{escape(provenance(record))}.</p>')
        body.append(_html_table(record["rows"]))
        body += [f"<p>{escape(note)}</p>" for note in record["notes"]]
        body += [_html_figure(record, name) for name in record["figures"]]
    body.append("<h2>Not run</h2><table><tr><th>study</th><th>source</th><th>command</th></tr>")
    for title, source, command in not_run(records):
        body.append(
            f"<tr><td>{escape(title)}</td><td>{escape(source)}</td><td><code>{escape(command)}</code></td></tr>"
        )
    body.append("</table>")
    head = f'<meta charset="utf-8"><title>AlexNet and ResNet: scoreboard</title><style>{STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{''.join(body)}</body></html>\n"


def _html_table(rows: Sequence[Row]) -> str:
    out = ["<table><tr>", *(f"<th>{name}</th>" for name in HEADER), "</tr>"]
    for row in rows:
        what, measure, paper, ours, budget, note = map(html.escape, row.cells())
        kind = "number ours" if row.ours is not None else "number not-run"
        out.append(
            f'<tr><td>{what}</td><td>{measure}</td><td class="number">{paper}</td><td class="{kind}">{ours}</td>'
            f"<td>{budget}</td><td>{note}</td></tr>"
        )
    return "".join([*out, "</table>"])


def _html_figure(record: dict[str, Any], name: str) -> str:
    try:
        with open(os.path.join(record["folder"], name), "rb") as file:
            data = base64.b64encode(file.read()).decode()
    except OSError as error:
        raise UserError(f"{record['folder']}: expected the figure {name} ({error.strerror}).") from error
    return f'<p><img alt="{html.escape(name)}" src="data:image/png;base64,{data}"></p>'


def write(folders: Sequence[str], out: str) -> list[dict[str, Any]]:
    """Writes both pages, and gives the records that are on them.

    Raises:
      UserError: as `read`, or `out` cannot be written.
    """
    records = read(folders)
    try:
        os.makedirs(out, exist_ok=True)
        write_atomically(os.path.join(out, MARKDOWN), markdown(records, out))
        write_atomically(os.path.join(out, PAGE), page(records))
    except OSError as error:
        raise UserError(f"--out={out!r}: expected a folder that can be written ({error.strerror}).") from error
    return records


def _main(out: flags.FlagHolder, folders: list[str]) -> None:
    folders = folders or [RESULTS]
    out = out.value or folders[0]
    print(summary(write(folders, out)))
    print(f"written to {out}: {MARKDOWN}, {PAGE}")


if __name__ == "__main__":
    OUT = flags.DEFINE_string("out", "", "The folder of README.md and scoreboard.html; the (first) folder read.")
    cli.run(functools.partial(_main, OUT), positional=True)
