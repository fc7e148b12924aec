"""Imports go downwards, and TensorFlow is asked for in `data` only."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "alexnet_resnet"

# Rooms from the bottom up; a room may import those before it and its own.
FLOORS = [["ops"], ["models", "data", "parallel"], ["training", "evaluation", "pretrained", "analysis"], ["commands"]]
LEAVES = {"errors"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
            if node.module == "alexnet_resnet":
                yield from (f"alexnet_resnet.{alias.name}" for alias in node.names)


def is_command(path):
    """Whether a file is run, not imported: those at the top, and one that stands beside what it shows."""
    return "cli.run(main" in path.read_text()


def file_of(module):
    return PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")


def test_these_are_the_commands():
    commands = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if is_command(path)}
    named = {"train.py", "evaluate.py", "predict.py", "summarize.py", "prepare.py", "data/show.py"}
    named.add("analysis/curves/__main__.py")
    assert commands == named, "a command may import everything: a new one is named here"


def room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else None


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    own = "commands" if is_command(path) else path.relative_to(PACKAGE).parts[0]
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for module in imports(path):
        assert not module.startswith(("configs", "experiments", "tests")), module
        if module.startswith("alexnet_resnet.") and file_of(module).exists():
            assert not is_command(file_of(module)), f"{path.name} imports the command {module}"
        if own in floor and module.startswith("alexnet_resnet"):
            other = room(module)
            assert other is None or floor[other] <= floor[own], f"{path.name} imports {module}"
            if own == "ops":
                assert other in (None, "ops")
            if own in ("models", "data"):
                assert other not in {"models", "data"} - {own}, f"{own} must not know {other}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_tensorflow_is_imported_in_data_only(path):
    names = {module.split(".")[0] for module in imports(path)}
    if path.relative_to(PACKAGE).parts[0] != "data":
        assert not names & {"tensorflow", "tensorflow_datasets", "keras"}


def test_everything_but_the_tf_pipeline_imports_without_tensorflow():
    modules = [
        "alexnet_resnet." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py" and not is_command(path)
    ]
    modules.remove("alexnet_resnet.data.pipeline")
    code = (
        "import sys, importlib\n"
        "for name in ('tensorflow', 'tensorflow_datasets', 'keras', 'torch'): sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "import jax; from alexnet_resnet import models\n"
        "assert jax.eval_shape(lambda: 1) is not None and models.NETWORKS\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_training_begins_without_what_it_needs_later_only():
    code = (
        "import sys, alexnet_resnet.training.loop\n"
        "found = {'orbax', 'matplotlib', 'tensorflow', 'tensorboardX'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_without_orbax_nothing_begins(tmp_path):
    code = (
        "import sys; sys.modules['orbax'] = None\n"
        "from alexnet_resnet.training.checkpoints import Checkpoints\n"
        f"Checkpoints({str(tmp_path / 'c')!r})\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert "ModuleNotFoundError" in result.stderr.splitlines()[-1] and "orbax" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "c").exists()


def test_tensorflow_says_nothing_when_a_command_imports_it():
    code = "from alexnet_resnet import cli\ndef main(): import alexnet_resnet.data.pipeline\ncli.run(main)\n"
    silent = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, env=silent, capture_output=True, text=True
    )
    assert result.returncode == 0 and result.stdout + result.stderr == "", result.stderr
