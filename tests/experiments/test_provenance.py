"""What a result says of the code that made it."""

import shutil
import subprocess

import pytest

from experiments.benchmarks import provenance


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with one commit, of which the results are told to be."""
    for name in ("experiments/benchmarks/provenance.py", "experiments/results/a/table.md", "setup.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "experiments/benchmarks/provenance.py"))
    return tmp_path


pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")


@pytest.mark.parametrize(
    ("changed", "said"), [("experiments/results/a/table.md", False), ("setup.py", True), (None, False)]
)
def test_changed_code_is_told_and_changed_results_are_not(project, changed, said):
    if changed:
        (project / changed).write_text("changed")
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=project, capture_output=True, text=True)
    expected = head.stdout.strip() + (" with uncommitted changes" if said else "")
    assert provenance.machine()["commit"] == expected


def test_a_copy_of_the_files_is_told_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv(provenance.COMMIT, "abc1234")
    assert provenance.machine()["commit"] == "abc1234"
