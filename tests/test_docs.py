"""What the documentation names is there: links, modules, configurations, and what its Python imports."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from experiments import scoreboard
from experiments.study import plan
from experiments.study.plan import Run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Files that the pages on extending have the reader write.
EXAMPLES = {
    "alexnet_resnet/models/all_conv.py",
    "alexnet_resnet/data/idx.py",
    "configs/all_conv.py",
    "experiments/digits_plain.py",
}
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page, language=""):
    """The code blocks of a page in a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [code for name, code in found if name == language]


def prose(page):
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_relative_links_lead_somewhere(page):
    dangling = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dangling.append(link)
    assert not dangling


@pages
def test_modules_that_are_started_exist(page):
    names = re.findall(r"python\s+-m\s+((?:alexnet_resnet|experiments)\.[a-z0-9_.]*[a-z0-9_])", page.read_text())
    for name in names:
        path = ROOT.joinpath(*name.split("."))
        there = path.with_suffix(".py").exists() or (path / "__main__.py").exists()
        assert there or f"{name.replace('.', '/')}.py" in EXAMPLES, name


@pages
def test_files_that_are_named_exist(page):
    folders = "alexnet_resnet|configs|docs|experiments|notebooks|tests"
    for name in re.findall(rf"`((?:{folders})/[\w/.]+\.(?:py|sh|md|txt|png|ipynb))[`:]", page.read_text()):
        # The tests of the examples are written by the reader too.
        example = name in EXAMPLES or name.startswith("tests/") and page.name.startswith("extending")
        assert example or (ROOT / name).exists(), name


@pages
def test_configurations_in_commands_are_configurations(page):
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            named = re.search(r"--config=configs/(\S+)", line)
            if not named or f"configs/{named[1].partition(':')[0]}" in EXAMPLES:
                continue
            config = plan.full_config(Run("", named[1]))
            for word in shlex.split(line):
                field = re.match(r"--config\.([\w.]+)=(.*)", word)
                assert not field or plan.assign(config, field[1], plan.parse_value(field[2])), word


@pages
def test_python_can_be_read_and_imports_what_there_is(page):
    written = {name.removesuffix(".py").replace("/", ".") for name in EXAMPLES}
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if not isinstance(node, ast.ImportFrom) or node.module in written:
                continue
            module = importlib.import_module(node.module)
            for alias in node.names:
                importable = hasattr(module, alias.name)
                assert importable or importlib.import_module(f"{node.module}.{alias.name}"), alias.name


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in PAGES if page.parent.name == "docs" and f"]({page.name})" not in index] == [
        "README.md"
    ]


@pytest.mark.parametrize("name", ["README.md", "docs/experiments.md"])
def test_every_study_is_named(name):
    text = (ROOT / name).read_text()
    assert [study for study in (*scoreboard.STUDIES, "sweep") if not re.search(rf"[`.]{study}`", text)] == []
