"""The notebooks run from top to bottom, and what is stored in them came of doing so."""

import ast
import base64
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
nbformat = pytest.importorskip("nbformat", reason="the 'notebooks' extra is not installed")
nbclient = pytest.importorskip("nbclient", reason="the 'notebooks' extra is not installed")
pytest.importorskip("ipykernel", reason="the 'notebooks' extra is not installed")

MOST_BYTES = 700_000
# Seconds that one cell may take on a machine that is busy with other things.
PATIENCE = 600
# What the parameters are in a test, wherever a notebook has them: so little that nothing is learnt.
TINY = {
    "EPOCHS": 0.05,
    "WIDTH": 0.125,
    "WEIGHTS": "",
    "CROPS": 2,
    "DEPTHS": (8,),
    "GRADIENT_DEPTHS": (8,),
    "IMAGENET_DEPTHS": (18, 34),
    "NETWORKS": ("AlexNet", "ResNet-18"),
}
# A folder of the machine that a notebook was executed on.
MACHINE = re.compile(r"(?<![\w.:/])/(home|root|tmp|work|usr|opt|var|content|Users|mnt|data)/")
PICTURES = ("image/png", "image/jpeg", "image/svg+xml")

every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, 4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters(notebook):
    return [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", ())]


def pictures(notebook):
    """Every figure among the outputs, as what it is and its bytes."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    return [(kind, data) for output in outputs for kind, data in output.get("data", {}).items() if kind in PICTURES]


def assigned(source):
    """The values that a cell of parameters gives to names."""
    statements = ast.parse(source).body
    assert all(isinstance(statement, ast.Assign) for statement in statements), "parameters are assignments and no more"
    return {statement.targets[0].id: ast.literal_eval(statement.value) for statement in statements}


def test_there_are_notebooks():
    assert {"1_alexnet", "3_predictions"} <= {path.stem for path in NOTEBOOKS}


@every
def test_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    notebook = read(path)
    (cell,) = parameters(notebook)
    values = assigned(cell.source)
    assert {"SEED", "FOLDER"} <= values.keys()
    values |= {name: TINY[name] for name in TINY.keys() & values.keys()}
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    for one in code(notebook):
        one.outputs, one.execution_count = [], None
    # As in this process: the tree under test, its quick compilation and what has been compiled before.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    client = nbclient.NotebookClient(
        notebook, timeout=PATIENCE, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert all(output.output_type != "error" for one in code(notebook) for output in one.outputs)
    # Where weights are not at hand their figures are not either.
    stored = len(pictures(read(path)))
    assert len(pictures(notebook)) >= (stored - 3 if "WEIGHTS" in values else stored) >= 3
    left = set(os.listdir(tmp_path)) - {"ipython"}
    assert left == {Path(values["FOLDER"]).parts[0]}, "a notebook writes into its folder only"


@every
def test_what_is_stored_came_of_running_it(path):
    notebook = read(path)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    for cell in code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            # Warnings and logs; what a cell has to say it prints.
            assert output.get("name") != "stderr", output
    shown = pictures(notebook)
    assert len(shown) >= 3
    for kind, data in shown:
        assert kind == "image/svg+xml" or len(base64.b64decode(data)) > 1000


@every
def test_is_clean(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < MOST_BYTES
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    identities = [cell.id for cell in notebook.cells]
    assert len(set(identities)) == len(identities)
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}, cell.id
        printed = [output.get("text", "") for output in cell.get("outputs", ())]
        printed += [str(output.get("data", {}).get("text/plain", "")) for output in cell.get("outputs", ())]
        for part in (cell.source, *printed):
            assert not MACHINE.search(part), (cell.id, MACHINE.search(part))


@every
def test_opens_with_its_title_the_installation_and_the_parameters(path):
    notebook = read(path)
    title, installation, given = notebook.cells[:3]
    assert title.cell_type == "markdown" and title.source.startswith("# ")
    assert "Open in Colab" in title.source and "minute" in title.source
    assert [given] == parameters(notebook)
    assert assigned(given.source)
    installing = [cell for cell in code(notebook) if re.search(r"\bpip\b", cell.source)]
    assert installing == [installation]
    assert re.search(r'^REPOSITORY = ""', installation.source, re.M), "the address is for whoever opens it to say"
    assert 'find_spec("alexnet_resnet")' in installation.source and "[notebooks]" in installation.source
    folder = assigned(given.source)["FOLDER"]
    assert folder.startswith("runs/") and not os.path.isabs(folder)


@every
def test_uses_public_names_only(path):
    for cell in code(read(path)):
        for node in ast.walk(ast.parse(cell.source)):
            names = []
            if isinstance(node, ast.Attribute):
                names = [node.attr]
            elif isinstance(node, ast.Import | ast.ImportFrom):
                module = getattr(node, "module", None) or ""
                names = [part for name in (module, *(alias.name for alias in node.names)) for part in name.split(".")]
            private = [name for name in names if name.startswith("_")]
            assert not private, (cell.id, private)


@every
def test_imports_no_configs_or_experiments(path):
    """They do not come with the installed package."""
    for cell in code(read(path)):
        for node in ast.walk(ast.parse(cell.source)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {module.split(".")[0] for module in modules} & {"configs", "experiments", "tests"}, cell.id
