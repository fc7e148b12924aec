"""The page of all results: what stands on it, in which order, and what was not run."""

import importlib
import json
import re
from pathlib import Path

import pytest

from alexnet_resnet.errors import UserError
from experiments import scoreboard
from experiments.study import Row
from experiments.study.plan import Budget, Settings
from experiments.study.report import NOT_RUN

EXPERIMENTS = Path(scoreboard.__file__).parent
MACHINE = dict(devices="1 x cpu", processor="A <fast> one", cores=2, date="2026-11-25 22:00 UTC", commit="abc1234",
               command="python -m experiments.resnet_figure6 --budget=0.1")  # fmt: skip


def record(study, rows, figures=("figure.png",), seconds=120.0):
    return dict(study=study, title=f"Title of {study}", source="He et al. 2016, figure 6", budget="0.1",
                machine=MACHINE, training_seconds=seconds, rows=[vars(row) for row in rows], figures=list(figures),
                notes=["A note."], runs=[dict(commit="def5678")])  # fmt: skip


@pytest.fixture
def results(tmp_path):
    rows = [
        Row("plain-20", "test error (%)", None, 30.0, budget="2 epochs of 64,000 steps"),
        Row("ResNet-20", "test error (%)", 8.75, 25.125, interval=(24.0, 26.0)),
        Row("ResNet-56", "test error (%)", 6.97, None),
    ]
    for folder, content in (
        ("b", record("resnet_figure6", rows)),
        ("larger", record("resnet_figure6", rows[:1], seconds=500.0)),
        ("c", record("alexnet_figure1", [Row("tanh / ReLU", "ratio", 6.0, 4.5)], figures=())),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "result.json").write_text(json.dumps(content))
        (tmp_path / folder / "figure.png").write_bytes(b"\x89PNG figure")
    return tmp_path


def test_every_number_stands_on_both_pages_and_what_was_not_run_says_so(results):
    scoreboard.write([str(results)], str(results))
    text, page = (results / "README.md").read_text(), (results / "scoreboard.html").read_text()
    assert "| ResNet-20 | test error (%) | 8.75 | **25.12 (24.00 to 26.00)** |" in text
    assert f"| ResNet-56 | test error (%) | 6.97 | {NOT_RUN} |" in text
    assert "![figure.png](b/figure.png)" in text and "`python -m experiments.resnet_figure6 --budget=0.1`" in text
    assert "commit abc1234 (trained at def5678); 2 minutes of training" in text
    for part in ("8.75", "25.12", NOT_RUN, "A &lt;fast&gt; one", "data:image/png;base64,iVBORyBmaWd1cmU=", "A note."):
        assert part in page
    # AlexNet's come first; of one study the largest budget.
    order = re.findall(r"## Title of (\w+)", text)
    assert order == ["alexnet_figure1", "resnet_figure6", "resnet_figure6"]
    assert text.index("larger/figure.png") < text.index("](b/figure.png")


def test_the_studies_without_a_record_are_listed_with_their_command(results):
    records = scoreboard.read([str(results)])
    missing = [command for _, _, command in scoreboard.not_run(records)]
    assert len(missing) == len(scoreboard.STUDIES) - 2
    assert "python -m experiments.resnet_table6" in missing and "python -m experiments.resnet_figure6" not in missing
    assert f"2 of {len(scoreboard.STUDIES)} studies" in scoreboard.summary(records)
    assert "4 numbers of ours, 2 of them beside one of a paper's" in scoreboard.summary(records)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{"what": "x"}]}', '{"rows": [{"wat": 1}]}'])
def test_a_record_that_is_none_is_named(text, tmp_path):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UserError, match="result.json: expected the record of a study"):
        scoreboard.read([str(tmp_path)])


def test_a_missing_folder_or_figure_is_named(results):
    with pytest.raises(UserError, match="folder='nowhere'"):
        scoreboard.read(["nowhere"])
    (results / "b" / "figure.png").unlink()
    with pytest.raises(UserError, match=r"b: expected the figure figure.png"):
        scoreboard.write([str(results)], str(results))


def test_every_study_stands_on_the_page_and_can_be_announced(tmp_path):
    modules = [path.stem for path in EXPERIMENTS.glob("*.py") if re.search(r"^STUDY\b", path.read_text(), re.M)]
    assert sorted(modules) == sorted(scoreboard.KNOWN)
    for name in scoreboard.STUDIES:
        study = scoreboard.study(name)
        assert study.name == name and importlib.import_module(f"experiments.{name}").__doc__.count(name) >= 1
        options = study.default_options()
        study.check(options)
        runs = study.runs(options)
        assert len({run.label for run in runs}) == len(runs)
        settings = Settings(str(tmp_path), budget=Budget("0.01"), options=options)
        assert len({settings.workdir(run) for run in runs}) == len(runs)


def test_the_committed_results_are_on_the_committed_page(tmp_path):
    committed = EXPERIMENTS / "results"
    records = scoreboard.read([str(committed)])
    assert scoreboard.markdown(records, str(committed)) == (committed / "README.md").read_text()
    for one in records:
        assert not re.search(r"/(work|root|home|tmp)/", json.dumps(one["machine"]) + json.dumps(one["options"]))
