"""The benchmarks of memory and of starting: what they choose, decide and say; and both from end to end."""

import json
import os
from unittest import mock

import jax
import pytest
from chosen_flags import chosen
from jax.experimental.compilation_cache import compilation_cache

from alexnet_resnet.errors import UserError
from experiments.benchmarks import memory, memory_case, processes, startup, timing

GIB = 2**30


def row(network, form, batch=64, peak=GIB, seconds=10.0):
    return dict(
        network=network, form=form, batch_size=batch, peak=peak, planned=peak // 2, temporary=1, before=1,
        compile_seconds=seconds,
    )  # fmt: skip


def test_cases_leave_out_what_takes_a_processor_too_long():
    def names(**options):
        found = memory.cases(["resnet110", "resnet1202"], list(memory_case.FORMS), [], **options)
        return [str(case) for case in found]

    here = names(on_cpu=True, all_of_them=False)
    assert "resnet1202,scan+block,64" in here
    assert "resnet110,plain,64" in here
    assert not {"resnet1202,plain,64", "resnet1202,block,64", "resnet1202,parts,64"} & set(here)
    assert "resnet1202,plain,64" in names(on_cpu=True, all_of_them=True)
    assert "resnet1202,plain,128" in names(on_cpu=False, all_of_them=False)
    assert memory.cases(["resnet20"], ["plain"], [8], True, False) == [memory_case.Case("resnet20", "plain", 8)]


@pytest.mark.parametrize("peak, seconds, holds", [(8 * GIB, 20.0, [True, True]), (9 * GIB, 21.0, [False, False])])
def test_what_1202_layers_are_held_to(peak, seconds, holds):
    rows = [row("resnet1202", "scan+block", peak=peak, seconds=seconds), row("resnet110", "scan+block")]
    assert [found["holds"] for found in memory.judge(rows)] == holds
    assert memory.judge(rows)[1]["figure"] == seconds / 10
    assert [found["requirement"] for found in memory.judge(rows[:1])] == [memory.judge(rows)[0]["requirement"]]
    assert memory.judge(rows[1:]) == memory.judge([rows[0] | dict(failure="out of memory")]) == []


def test_a_case_that_fails_is_a_row(monkeypatch):
    found = iter(
        [
            dict(failure=processes.OUT_OF_MEMORY),
            {k: v for k, v in row("", "").items() if k not in ("network", "form", "batch_size")},
        ]
    )
    monkeypatch.setattr(memory.processes, "run", lambda module, arguments: next(found))
    monkeypatch.setattr(memory.processes, "platform", lambda: "cpu")
    with chosen(memory.FLAGS, networks=["resnet20"], forms=["plain", "block"], batch_sizes=["8"]):
        result = memory.measure()
    assert [r.get("failure") for r in result["rows"]] == ["out of memory", None]
    lines = memory.table(result).splitlines()
    assert lines[1].split() == ["resnet20", "plain", "8", "out", "of", "memory"]
    assert lines[2].split() == ["resnet20", "block", "8", "0.50", "0.00", "1.00", "0.00", "10.0"]


def test_of_a_process_that_ends_badly_the_reason_is_told():
    assert processes.run("json.tool", ["--no-such-flag"])["failure"] == "ended with status 2"
    assert (
        processes.run("timeit", ["-s", "import time", "-n", "1", "time.sleep(9)"], 0.5)["failure"] == "more than 0.5 s"
    )
    # It prints what is no result.
    assert processes.run("platform", [])["failure"] == "ended with status 0"


@pytest.mark.parametrize(
    "module, field, value, said",
    [
        (memory, "networks", ["resnet21"], r"^networks='resnet21': expected one of 'resnet20'"),
        (memory, "forms", ["all"], r"^forms='all': expected one of 'plain'"),
        (memory, "forms", [], r"^forms='': expected at least one of 'plain'"),
        (memory, "batch_sizes", ["0"], r"^batch_sizes='0': expected whole numbers above zero"),
        (startup, "networks", ["vgg"], r"^networks='vgg': expected one of 'digits'"),
        (startup, "depths", ["21"], r"^depths='21': expected numbers of layers 6n \+ 2"),
        (startup, "limit", 0, r"^limit=0: expected"),
    ],
)
def test_refused_before_anything_is_measured(module, field, value, said, monkeypatch):
    monkeypatch.setattr(module.processes, "run", None)
    monkeypatch.setattr(startup, "import_seconds", None)
    with chosen(module.FLAGS, **{field: value}), pytest.raises(UserError, match=said):
        module.measure()


@pytest.mark.parametrize("error", [RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), MemoryError()])
def test_what_does_not_fit_is_a_result(error, monkeypatch, capsys):
    monkeypatch.setattr(memory_case.training_steps, "create", mock.Mock(side_effect=error))
    with chosen(memory_case.FLAGS, one="resnet20,plain,8"):
        memory_case.main()
        assert json.loads(capsys.readouterr().out) == dict(failure="out of memory")
        monkeypatch.setattr(memory_case.training_steps, "create", mock.Mock(side_effect=RuntimeError("else")))
        with pytest.raises(RuntimeError, match="else"):
            memory_case.main()


def test_compiling_for_a_benchmark_leaves_the_cache_out(tmp_path):
    fields = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in fields}
    for name, value in zip(fields, (str(tmp_path), 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        x = jax.device_put(1.0)
        jax.jit(lambda x: x + 17).lower(x).compile()
        kept = os.listdir(tmp_path)
        program, seconds = timing.compiled(jax.jit(lambda x: x * 19), x)
        assert kept and sorted(os.listdir(tmp_path)) == sorted(kept)
        assert program(x) == 19 and seconds > 0
        jax.jit(lambda x: x - 23).lower(x).compile()
        assert len(os.listdir(tmp_path)) > len(kept)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@pytest.mark.parametrize("text", ["", "resnet20,plain", "resnet21,plain,4", "resnet20,some,4", "resnet20,plain,x"])
def test_a_case_has_three_parts(text):
    with pytest.raises(UserError, match=f"^one={text!r}: expected NETWORK,FORM,BATCH"):
        memory_case.case_of(text)


def test_the_second_start_is_compared_with_the_first(monkeypatch):
    taken = iter([8.0, 9.0, 3.0, 6.0, 12.0, 2.0, 7.0, 6.0, 2.5])
    caches = []

    def start(network, data, workdir, cache):
        caches.append(cache)
        begun = next(taken)
        return begun, begun + 1.0

    monkeypatch.setattr(startup, "start", start)
    rows = startup.starts(["resnet20"], list(startup.STARTS), rounds=3)
    assert [(r["cache"], r["seconds"], r["lowest"], r["highest"], r["reported"]) for r in rows] == [
        ("none", 7.0, 6.0, 8.0, 8.0),
        ("empty", 9.0, 6.0, 12.0, 10.0),
        ("filled", 2.5, 2.0, 3.0, 3.5),
    ]
    # Each round has a cache of its own, which its second start finds.
    assert caches[0::3] == ["", "", ""]
    assert caches[1::3] == caches[2::3] and len(set(caches[1::3])) == 3
    (found,) = startup.judge(rows)
    assert found["ratio"] == 9 / 2.5
    assert found["holds"]


def test_the_figures_are_drawn(tmp_path):
    where = dict(devices="1 x cpu", date="today", commit="abc", cores=2)
    drawn = dict(machine=where, rows=[row("resnet20", "plain"), dict(failure="x")], counted_by="process")
    memory.draw(drawn, str(tmp_path / "memory.png"))
    starts = [
        dict(network="resnet20", cache=kind, seconds=5.0, lowest=4.0, highest=6.0) for kind in startup.STARTS
    ]  # fmt: skip
    compiled = [
        dict(depth=d, form=f, trace_seconds=1.0, compile_seconds=d / 10) for d in (20, 56) for f in startup.FORMS
    ]
    result = dict(machine=where, import_seconds=2.0, starts=starts, compilations=compiled, requirements=[])
    startup.draw(result, str(tmp_path / "startup.png"))
    assert all(path.stat().st_size > 5000 for path in tmp_path.iterdir())


def test_memory_from_end_to_end(command, tmp_path):
    done = command("experiments.benchmarks.memory", "--quick", f"--out={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "memory.json").read_text())
    (found,) = result["rows"]
    assert 0 < found["temporary"] < found["planned"] < found["before"] < found["peak"]
    assert (tmp_path / "memory.txt").read_text().strip() in done.stdout
    assert (tmp_path / "memory.png").exists()


def test_startup_from_end_to_end(command, tmp_path):
    done = command("experiments.benchmarks.startup", "--quick", f"--out={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "startup.json").read_text())
    assert [row["cache"] for row in result["starts"]] == ["empty", "filled"]
    assert all(row["reported"] > row["seconds"] > result["import_seconds"] / 2 for row in result["starts"])
    (compiled,) = result["compilations"]
    assert compiled["form"] == "scanned" and compiled["lines"] > 100
    assert "second start" in (tmp_path / "startup.txt").read_text()
