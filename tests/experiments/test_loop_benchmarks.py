"""The benchmarks of the loop, of LRN and of the gradients on processors: what they compare, and their commands."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chosen_flags import chosen
from PIL import Image

from alexnet_resnet.errors import UserError
from alexnet_resnet.ops import linear
from experiments.benchmarks import (
    accelerator_forms,
    bare_step,
    cpu_gradients,
    loop_turns,
    lrn_contenders,
    training_steps,
)
from experiments.benchmarks import command as command_lib
from experiments.benchmarks.loop_turns import Turns, Watch


@pytest.fixture(autouse=True)
def quick_flags():
    with chosen(command_lib.FLAGS, quick=True):
        yield


def normalised(x):
    """Section 3.3's formula in float64, one channel after the other; [C]."""
    found = np.zeros(len(x))
    for i in range(len(x)):
        squares = sum(x[j] ** 2 for j in range(max(0, i - 2), min(len(x), i + 3)))
        found[i] = x[i] / (2 + 1e-4 * squares) ** 0.75
    return found


def test_the_reference_is_the_formula_and_its_central_difference():
    random = np.random.default_rng(0)
    x, g = random.normal(size=(3, 9), scale=100), random.normal(size=(3, 9))
    output, gradient = lrn_contenders.reference(x, g)
    for row in range(3):
        np.testing.assert_allclose(output[row], normalised(x[row]), rtol=1e-13)
        step = 1e-4 * np.eye(9)
        slopes = [(normalised(x[row] + s) - normalised(x[row] - s)) @ g[row] / 2e-4 for s in step]
        np.testing.assert_allclose(gradient[row], slopes, rtol=1e-6)


@pytest.mark.parametrize("name", lrn_contenders.CONTENDERS)
def test_every_lrn_is_the_formula_in_value_and_gradient(name):
    random = np.random.default_rng(1)
    x, g = (random.normal(size=(2, 3, 12), scale=scale).astype(np.float32) for scale in (100, 1))
    wanted = lrn_contenders.reference(x, g)
    found = jax.jit(lrn_contenders.both(lrn_contenders.CONTENDERS[name]))(x, g)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_ours_keeps_its_input_alone_and_the_others_more():
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        x = jax.ShapeDtypeStruct((2, 3, 16), dtype)
        kept = {n: lrn_contenders.kept_bytes(f, x) / (2 * 3 * 16) for n, f in lrn_contenders.CONTENDERS.items()}
        assert kept.pop("ours") == width
        # At least the input and the scale in float32.
        assert min(kept.values()) >= 8


def test_the_difference_is_a_share_of_the_largest_value_of_the_first_images():
    assert lrn_contenders.difference(jnp.asarray([[1.0, 2.0], [9.0, 9.0]]), np.array([[1.0, -4.0]])) == 6 / 4


def test_lrn_end_to_end(command, tmp_path):
    done = command("experiments.benchmarks.lrn", "--quick", "--batch=1", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "lrn.json").read_text())
    assert [(place["place"], place["dtype"]) for place in result["places"]] == [
        (place, dtype) for place in ("after conv1", "after conv2") for dtype in ("float32", "bfloat16")
    ]
    for place in result["places"]:
        assert list(place["rows"]) == list(lrn_contenders.CONTENDERS) and place["shape"][0] == 1
        width, most = {"float32": (4, 1e-5), "bfloat16": (2, 0.01)}[place["dtype"]]
        assert place["rows"]["ours"]["kept_bytes"] == width * np.prod(place["shape"])
        for name, row in place["rows"].items():
            assert 0 < row["output_error"] < most and 0 < row["gradient_error"] < most, name
            medians = [rows["both_seconds"]["median"] for rows in (row, place["rows"]["ours"])]
            assert row["both_to_ours"] == pytest.approx(medians[0] / medians[1])
            assert re.search(rf"{name} +{1e3 * row['forward_seconds']['median']:.3f} ", done.stdout)
    assert (tmp_path / "lrn.txt").read_text() == done.stdout
    assert Image.open(tmp_path / "lrn.png").width > 1000


def test_lrn_of_no_image_is_one_line(command, tmp_path):
    done = command("experiments.benchmarks.lrn", "--batch=0", f"--out={tmp_path}")
    assert done.returncode == 2 and done.stderr == "error: batch=0: expected a number of at least 1.\n"


@pytest.mark.parametrize(
    "case",
    [
        cpu_gradients.Case("net", "conv", 2, 9, 3, 4, 3, 2, (1, 1)),
        cpu_gradients.Case("net", "pool", 2, 8, 5, 0, 3, 2, (0, 1)),
    ],
    ids=lambda case: case.kind,
)
def test_both_gradients_of_a_case_are_one(case, monkeypatch):
    row = cpu_gradients.measure_case(case, 2)
    assert row["difference"] < 1e-5 and row["kind"] == case.kind and row["used"]
    assert row["ratio"] == row["seconds"]["XLA"]["median"] / row["seconds"]["ours"]["median"]
    # One that is wrong shows.
    x, by, g = cpu_gradients.operands(case, 2)
    gradients = cpu_gradients.gradients(case)
    assert gradients["ours"](x, by, g).shape == by.shape
    twice = gradients | {"ours": lambda x, by, g: 2 * gradients["XLA"](x, by, g)}
    monkeypatch.setattr(cpu_gradients, "gradients", lambda case: twice)
    assert cpu_gradients.measure_case(case, 2)["difference"] == pytest.approx(1)


def test_a_step_is_traced_with_the_gradients_it_is_measured_with():
    config = cpu_gradients.steps()["ResNet-8"]

    def customs():
        step = bare_step.streamed(config, jax.devices()[:1])
        return str(jax.make_jaxpr(step.function)(jax.eval_shape(step.create), *step.arguments)).count("dot_general")

    ours = customs()
    with cpu_gradients.xla_gradients():
        assert linear.convolve_cpu is cpu_gradients.convolve_xla
        xla = customs()
    # The kernel gradient of each of seven convolutions is a product of matrices with one of them alone.
    assert ours - xla == 7


# A convolution in products, one that is left to XLA, a pooling.
SHOWN = "stage 3", "conv2", "pool2"


def test_the_gradients_as_a_table_and_where_there_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr(
        cpu_gradients, "CASES", [case for case in cpu_gradients.CASES if case.layer in SHOWN and case.side <= 16]
    )
    result = cpu_gradients.measure()
    assert [row["kind"] for row in result["rows"]] == ["convolution", *cpu_gradients.HEADINGS]
    assert [row["used"] for row in result["rows"]] == [True, False, True, True]
    step = result["rows"][-1]
    assert step["difference"] < 1e-3
    text = cpu_gradients.table(result)
    for row in result["rows"]:
        star = "" if row["used"] else "[*]"
        assert re.search(rf"{row['title']}{star} +2 +{1e3 * row['seconds']['ours']['median']:.2f} ", text)
    machine = dict(cores=1, processor="none", date="today", commit="abc")
    cpu_gradients.draw(result | dict(machine=machine), tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").width > 1000
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    none = cpu_gradients.measure()
    assert none["rows"] == [] and "on gpu the networks use XLA's own" in cpu_gradients.table(none)
    cpu_gradients.draw(none, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def begun(turns):
    assert turns.total % turns.call == 0 and turns.every % turns.call == 0
    numbers = range(turns.call, turns.total + 1, turns.call)
    found = [(n, turns.begins(n)) for n in numbers if turns.begins(n)]
    for (start, what), (end, _) in zip(found, found[1:], strict=False):
        assert end - start == (loop_turns.RUN_UP * turns.call if what == "bare" else turns.steps)
    assert found[-1][0] == turns.total
    return found


@pytest.mark.parametrize(("steps", "call", "rounds"), [(100, 1, 3), (100, 10, 2), (6, 2, 1)])
def test_each_round_has_as_many_steps_with_a_save_as_without(steps, call, rounds):
    turns = Turns(steps, call, rounds, saves=True)
    found = begun(turns)
    assert [what for _, what in found] == ["bare", *["loop", "saving", "bare"] * rounds]
    saves = range(turns.save_every, turns.total + 1, turns.save_every)
    # The save comes once the step after the beginning has been handed over, with the rest of the steps to end.
    for (start, what), (end, _) in zip(found, found[1:], strict=False):
        assert [n - start for n in saves if start < n <= end] == ([call] if what == "saving" else [])


@pytest.mark.parametrize(("steps", "call", "rounds"), [(100, 1, 3), (100, 10, 2), (6, 2, 1)])
def test_the_rate_is_measured_without_saves(steps, call, rounds):
    turns = Turns(steps, call, rounds, saves=False)
    assert [what for _, what in begun(turns)] == ["bare", *["loop", "bare"] * rounds]
    assert turns.save_every > turns.total


def test_a_watch_holds_the_loop_for_the_bare_step_and_times_both(monkeypatch):
    clock = dict(now=0.0)
    monkeypatch.setattr(loop_turns.time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(loop_turns.time, "process_time", lambda: clock["now"] / 2)
    turns, calls = Turns(steps=10, call=1, rounds=2, saves=True), []

    def bare(steps):
        calls.append(steps)
        clock["now"] += 3.0 * steps
        return jnp.zeros(())

    watch = Watch(turns, bare)
    for number in range(1, turns.total + 1):
        # A step takes four seconds; a save five more.
        clock["now"] += 4.0 + 5.0 * (number > 1 and (number - 1) % turns.every == 0)
        watch(number)
    assert calls == [1, 10] * 3 and watch.held == 3 * 11 * 3.0
    assert watch.seconds == {
        "bare": [(3.0, 1.5)] * 3,
        "loop": [(4.0, 2.0)] * 2,
        "saving": [(4.5, 2.25)] * 2,
    }
    seconds = {name: [wall for wall, _ in taken] for name, taken in watch.seconds.items()}
    assert loop_turns.rates(seconds) == dict(median=0.75, lowest=0.75, highest=0.75)
    # Five seconds of a hundred steps of four.
    assert loop_turns.costs(seconds, 10)["median"] == pytest.approx(0.0125)


def test_the_loop_is_compared_with_the_bare_step_before_and_after_it():
    found = loop_turns.rates(dict(bare=[1.0, 3.0, 1.0], loop=[2.0, 4.0]))
    assert found == dict(median=0.75, lowest=0.5, highest=1.0)
    costs = loop_turns.costs(dict(loop=[2.0, 4.0], saving=[2.0, 5.0]), 50)
    assert costs == dict(median=0.0625, lowest=0.0, highest=0.125)


@pytest.mark.parametrize(("rate", "cost", "holds"), [(0.97, 0.029, [True, True]), (0.96, 0.03, [False, False])])
def test_what_is_required_of_the_loop(rate, cost, holds):
    wall = dict(rate=dict(median=rate), save_cost=dict(median=cost))
    found = loop_turns.judge({"resident": dict(wall=wall)})
    assert [line["holds"] for line in found] == holds and [line["figure"] for line in found] == [rate, cost]


def test_the_loop_end_to_end(command, tmp_path):
    done = command("experiments.benchmarks.loop_overhead", "--quick", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "loop_overhead.json").read_text())
    try:
        import tensorflow  # noqa: F401

        assert list(result["paths"]) == ["resident", "prepared"] and not result["missing"]
    except ImportError:
        assert list(result["paths"]) == ["resident"]
        assert "not measured: TensorFlow is not installed" in done.stdout
    assert [row["steps_per_call"] for row in result["paths"].values()] == [2, 1][: len(result["paths"])]
    for path, row in result["paths"].items():
        seconds, saving = row["seconds"]["wall"], row["seconds_of_saving"]["wall"]
        assert {name: len(values) for name, values in seconds.items()} == dict(bare=2, loop=1)
        assert {name: len(values) for name, values in saving.items()} == dict(bare=4, loop=3, saving=3)
        bare, loop = seconds["bare"], seconds["loop"]
        assert row["wall"]["rate"]["median"] == pytest.approx(sum(bare) / 2 / loop[0])
        costs = sorted((a / b - 1) * 6 / 100 for a, b in zip(saving["saving"], saving["loop"], strict=True))
        assert row["wall"]["save_cost"]["median"] == pytest.approx(costs[1])
        assert re.search(rf"{path} +4 +{row['steps_per_call']} +{1e3 * sum(bare) / 2:.2f} ", done.stdout)
        assert (
            f"{path}: the loop at least 0.97 of the bare step's rate: {row['wall']['rate']['median']:.3f}"
            in done.stdout
        )
    # What the training says is not the table.
    assert "parameters;" not in done.stdout and "parameters;" in done.stderr
    assert Image.open(tmp_path / "loop_overhead.png").width > 1000


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--steps=0"], "steps=0: expected a number of at least 1"),
        (["--steps=25", "--steps_per_call=10"], "steps=25: expected a multiple of steps_per_call=10"),
        (["--window=25", "--steps_per_call=10"], "window=25: expected a multiple of steps_per_call=10"),
        (["--batch_size=0"], "batch_size=0: expected a number of at least 1"),
        (["--paths=records"], "paths='records': expected some of 'resident', 'prepared'"),
        (["--network=resnet_cifar:20"], "network='resnet_cifar:20': config='resnet_cifar:20': expected one of"),
    ],
)
def test_what_is_wrong_is_one_line(command, given, message, tmp_path):
    done = command("experiments.benchmarks.loop_overhead", *given, f"--out={tmp_path}")
    assert done.returncode == 2 and message in done.stderr and not done.stdout
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == done.stderr.splitlines()[-1:]


@pytest.mark.parametrize("name", ["alexnet", "resnet50"])
def test_each_of_accelerators_forms_is_replaced_by_a_plain_one(name, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config = training_steps.config(name, "float32", 4, quick=True)

    def program(*forms):
        with accelerator_forms.plainly(*forms):
            step, shapes, batch, _ = training_steps.lowerable(config, jax.devices()[:1])
            return step.lower(shapes, batch).as_text()

    ours = program()
    assert program() == ours
    changed = {form: program(form) != ours for form in accelerator_forms.PLAIN}
    assert changed == {form: accelerator_forms.has(name, form) for form in accelerator_forms.PLAIN}


def test_without_an_accelerator_its_forms_are_not_measured():
    with chosen(command_lib.FLAGS, quick=False), pytest.raises(UserError, match="finds no accelerator here"):
        accelerator_forms.measure()
    for fields, said in ((dict(batch=0), "batch=0"), (dict(networks=[]), "networks=''"), (dict(dtype="int8"), "int8")):
        with chosen(accelerator_forms.FLAGS, **fields), pytest.raises(UserError, match=said):
            accelerator_forms.measure()
