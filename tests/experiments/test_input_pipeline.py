"""The benchmark of the input pipeline, run as its first lines say, but for its size. No speed is asserted."""

import json
import os
import re

import pytest
from PIL import Image

NAME = "experiments.benchmarks.input_pipeline"


@pytest.fixture(scope="module")
def quick(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("figures") / "new"
    done = command(NAME, "--quick", f"--out={out}")
    assert done.returncode == 0, done.stderr
    return out, done.stdout, json.loads((out / "input_pipeline.json").read_text())


def test_every_contender_is_measured_and_stands_in_the_table(quick):
    out, printed, result = quick
    rows = result["rows"]
    expected = {(form, group) for form in ("full", "256") for group in ("ours", "flax", "PIL")}
    expected |= {("full", "limit"), ("256-square", "ours"), ("480", "ours")}
    assert {(row["images"], row["group"]) for row in rows.values()} == expected
    table = printed.split("images/s", 1)[1]
    for name, row in rows.items():
        rate, cpu = row["images_per_second"], row["cpu_us"]
        assert 0 < rate["lowest"] <= rate["median"] <= rate["highest"] and cpu["median"] > 0
        assert row["ratio_to_limit"] == pytest.approx(rate["median"] / rows["decode"]["images_per_second"]["median"])
        assert row["rounds"] == 1
        assert re.search(rf"{re.escape(row['title'])}\*? +{rate['median']:,.0f} ", table), name
    assert (out / "input_pipeline.txt").read_text() == printed
    assert Image.open(out / "input_pipeline.png").width > 1000


def test_the_requirements_compare_what_is_alike(quick):
    _, printed, result = quick
    rates = {name: row["images_per_second"]["median"] for name, row in result["rows"].items()}
    limit = rates["decode"]
    found = {line["requirement"]: line for line in result["requirements"]}
    expected = {f"{name} on full-size JPEGs >= 0.9 of the limit": (rates[name] / limit, 0.9)
                for name in ("alexnet", "resnet", "area")}  # fmt: skip
    forms = {"alexnet-256": "256", "area-256": "256", "alexnet-square": "256 --square", "resnet-480": "480"}
    for name, form in forms.items():
        expected[f"{name}, prepared, --size={form}, >= 4 times the limit"] = rates[name] / limit, 4
    for suffix, mine in (("", ("alexnet", "resnet", "area")), ("-256", ("alexnet-256", "area-256"))):
        for name in mine:
            for peer in ("flax", "pil"):
                ratio = rates[name] / rates[peer + suffix]
                expected[f"{name} not below {peer}{suffix}, same images"] = ratio, 1
    assert found.keys() == expected.keys()
    for text, (ratio, least) in expected.items():
        assert found[text]["ratio"] == pytest.approx(ratio)
        assert found[text]["holds"] is (ratio >= least)
        assert f"{text}: {ratio:.2f} {'yes' if ratio >= least else 'no'}" in printed


def test_the_file_says_where_and_with_what_it_was_measured(quick):
    _, printed, result = quick
    where = result["machine"]
    assert where["cores"] == os.cpu_count() and where["processor"] and where["platform"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", where["date"])
    assert where["command"].startswith(f"python -m {NAME} --quick")
    assert {"python", "jax", "numpy", "pillow"} <= where["versions"].keys()
    for fact in (where["processor"], where["platform"], where["date"], where["command"]):
        assert fact in printed
    assert {form: facts["images"] for form, facts in result["images"].items()} == dict.fromkeys(
        ("full", "256", "256-square", "480"), 8
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--out is missing"),
        (["--out=OUT/file"], "expected a folder"),
        (["--out=OUT", "--rounds=0"], "rounds=0: expected a number of at least 1"),
        (["--out=OUT", "--seconds=0"], "seconds=0.0: expected a number above zero"),
        (["--out=OUT", "--memory=more"], "memory='more': expected one of 'training', 'default'"),
        (["--only=alexnot"], "only='alexnot': expected one of"),
        (["--out=OUT", "--data_dir=OUT"], "data.data_dir="),
    ],
)
def test_what_is_wrong_is_one_line(command, flags, message, tmp_path):
    (tmp_path / "file").write_text("")
    result = command(NAME, *[flag.replace("OUT", str(tmp_path)) for flag in flags])
    assert result.returncode == 2 and message in result.stderr
    assert re.fullmatch(r"(preparing: .*\n)*error: .*\n", result.stderr)
    assert os.listdir(tmp_path) == ["file"]
