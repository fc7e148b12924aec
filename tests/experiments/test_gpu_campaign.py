"""The GPU campaign: planning and stopping with stubs and a clock of the tests', data in parts, and a rehearsal.

The rehearsal is in an environment in which TensorFlow cannot be imported.
"""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from alexnet_resnet.training import workdir
from experiments.benchmarks import numerics_operations
from experiments.benchmarks.campaign import data, returning, running
from experiments.benchmarks.campaign import stages as stages_lib
from experiments.benchmarks.campaign.running import DONE, FAILED, MISSING, NO_TIME, STOPPED, WAITING, Campaign
from experiments.benchmarks.campaign.stages import BENCHMARK, TRAINING, Stage

NAME = "experiments.benchmarks.gpu_campaign"
ROOT = Path(__file__).parents[2]

# A training in a few lines: a step at a time, from where its folder stands, until it is told to stop.
STUB = """
import json, os, signal, sys, time
folder, total, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
told = []
signal.signal(signal.SIGTERM, lambda *given: told.append(1))
json.dump({"train": {"batch_size": 10}}, open(f"{folder}/config.json", "w"))
path = f"{folder}/metrics.jsonl"
step = len(open(path).readlines()) if os.path.exists(path) else 0
while step < total and not told:
    step += 1
    row = {"step": step, "train/images_per_second": 5.0, **({"test/error": 0.25} if step == total else {})}
    with open(path, "a") as file:
        file.write(json.dumps(row) + chr(10))
    time.sleep(pause)
"""


def program(name, code, start=10.0):
    """A benchmark that is a line of Python."""
    return Stage(name, BENCHMARK, ("-c", code, "{out}"), start)


def stub(name="net", total=3, pause=0.0, start=10.0, step=1.0, layers=2):
    arguments = ("-c", STUB, f"{{out}}/{name}", str(total), str(pause))
    return Stage(name, TRAINING, arguments, start, step, total, layers, "nets", 8.75)


class Clock:
    """One that stands at 0 until something has happened, then far in the future, and goes on by a second a look."""

    def __init__(self, happened, late=10_000.0):
        self.happened, self.late, self.now = happened, late, None

    def __call__(self):
        if self.now is None and self.happened():
            self.now = self.late
        if self.now is None:
            return 0.0
        self.now += 1.0
        return self.now


def campaign(stages, out, left=1000.0, grace=50.0, said=None, **options):
    options = dict(clock=lambda: 0.0, say=(said if said is not None else []).append) | options
    return Campaign(stages, str(out), left + grace, grace, str(ROOT), dict(os.environ), **options)


# What is run, and in which order.


def test_the_stages_come_in_the_order_in_which_they_are_wanted():
    names = [stage.name for stage in stages_lib.stages(rehearse=False)]
    assert names == [
        *("numerics", "train_throughput_first", "accelerator_forms"),
        *("resnet20", "plain20", "lrn", "loop_overhead", "resnet110"),
        *(
            "train_throughput_cifar",
            "train_throughput_float32",
            "train_throughput_rest",
            "roofline",
            "memory",
            "memory_1202",
        ),
        *("resnet56", "resnet32", "resnet44"),
        *("author_18pct", "author_13pct", "author_11pct"),
    ]
    assert [stage.name for stage in stages_lib.stages(rehearse=True)] == names


def test_trainings_are_the_papers_at_full_length_on_the_resident_path():
    every = {stage.name: stage for stage in stages_lib.stages(rehearse=False)}
    nets = [stage for stage in every.values() if stage.kind == TRAINING]
    assert all("--config.data.loader=resident" in stage.arguments for stage in nets)
    assert all("--config.data.data_dir={out}/cifar10.npz" in stage.arguments for stage in nets)
    assert {every[f"resnet{depth}"].total for depth in (20, 32, 44, 56, 110)} == {64_000}
    # 140 epochs of 50,000 images in batches of 128.
    assert every["author_18pct"].total == 54_688 and every["author_11pct"].total == 203_125
    assert "--config.evaluation.views=nine_crop" in every["author_11pct"].arguments
    assert "--config=configs/resnet_cifar.py:20+plain" in every["plain20"].arguments
    published = {name: stage.published for name, stage in every.items() if stage.published}
    assert published["resnet20"] == 8.75 and published["resnet110"] == 6.43 and published["author_11pct"] == 11
    assert not any("duration" in argument for stage in nets for argument in stage.arguments)
    # As many steps, and each as many layers' time: none is guessed to take less than a shallower one.
    guesses = [every[f"resnet{depth}"].guess for depth in (20, 32, 44, 56, 110)]
    assert guesses == sorted(guesses)


def test_what_is_asked_of_the_throughput_first_is_what_is_to_be_accepted():
    first = next(s for s in stages_lib.stages(rehearse=False) if s.name == "train_throughput_first")
    assert first.arguments[1] == "experiments.benchmarks.train_throughput"
    assert {"--networks=resnet50,alexnet", "--dtypes=bfloat16", "--peers=torch"} <= {*first.arguments}
    assert "--out={out}/train_throughput_first" in first.arguments and "--quick" not in first.arguments
    rehearsed = next(s for s in stages_lib.stages(rehearse=True) if s.name == "train_throughput_first")
    assert "--quick" in rehearsed.arguments
    # All networks are measured in the end, each by one stage and type.
    asked = [
        (network, dtype)
        for stage in stages_lib.stages(rehearse=False)
        if stage.name.startswith("train_throughput")
        for network in re.search(r"--networks=(\S+)", stage.settings)[1].split(",")
        for dtype in re.search(r"--dtypes=(\S+)", stage.settings)[1].split(",")
    ]
    assert len({*asked}) == len(asked) == 11
    assert {network for network, _ in asked} == {
        *("alexnet", "resnet18", "resnet50", "resnet152", "vgg16", "resnet20", "resnet110")
    }


# How long it takes.


def test_expected_seconds_are_refined_by_what_was_measured(tmp_path):
    first, second = program("first", "", start=100), program("second", "", start=40)
    shallow, deep, other = (
        stub("shallow", total=100, layers=10, step=1),
        stub("deep", total=100, layers=30, step=3),
        dataclasses.replace(stub("other", total=100, layers=10, step=1), family="others"),
    )
    every = [first, second, shallow, deep, other]

    def expected(stage, taken):
        return stages_lib.expected(stage, str(tmp_path), every, taken)

    assert expected(second, {}) == (40, "a guess")
    assert expected(second, {"first": 50})[0] == 20
    assert expected(deep, {})[0] == 10 + 300
    # Reports of 20 images a second in batches of 10 are half a second a step.
    folder = tmp_path / "shallow"
    folder.mkdir()
    (folder / "config.json").write_text('{"train": {"batch_size": 10}}')
    (folder / "metrics.jsonl").write_text('{"step": 45, "train/images_per_second": 20.0}\n')
    (folder / "checkpoints" / "40").mkdir(parents=True)
    (folder / "checkpoints" / "50.orbax-checkpoint-tmp-0").mkdir()
    assert expected(shallow, {})[0] == pytest.approx(10 + 1.1 * 0.5 * 60)
    assert expected(deep, {})[0] == pytest.approx(10 + 1.1 * 1.5 * 100)
    assert expected(other, {}) == (10 + 100, "a guess")
    at = stages_lib.standing(shallow, str(tmp_path))
    assert at == stages_lib.Standing(step=45, saved=40, error=None, step_seconds=0.5, finished=False)


def test_the_plan_says_what_the_minutes_are_enough_for(tmp_path):
    every = [
        program("short", "", start=30),
        stub("net", total=100, step=2),
        program("long", "", start=500),
        stub("next", total=100, step=2),
        Stage("gone", BENCHMARK, ("-m", "experiments.benchmarks.not_there"), 5),
    ]
    plan = campaign(every, tmp_path, left=340).plan()
    assert [(stage.name, seconds, what.split(",")[0]) for stage, seconds, _, what in plan] == [
        ("short", 30, "all of it"),
        ("net", 210, "all of it"),
        # Seven tenths of a whole call.
        ("long", 500, "needs about 238 s"),
        ("next", 210, "the first part of it"),
        ("gone", 5, "there is no experiments.benchmarks.not_there"),
    ]
    # One that is longer than any call is tried when there is most of one.
    assert campaign(every[2:3], tmp_path, left=340).plan()[0][3] == "if it is faster than that"
    # A training that could hardly begin is not.
    assert campaign(every[1:2], tmp_path, left=29).plan()[0][3].startswith("needs about 30 s")
    assert campaign(every[1:2], tmp_path, left=31).plan()[0][3] == "the first part of it"


# Running.


def test_what_is_done_is_not_done_again_but_with_other_settings(tmp_path):
    code = "import sys; open(sys.argv[1] + '/count', 'a').write('x')"
    for _ in range(2):
        results = campaign([program("one", code)], tmp_path).run()
        assert results["one"].status == DONE
    assert (tmp_path / "count").read_text() == "x"
    assert campaign([program("one", code + "; 1")], tmp_path).run()["one"].status == DONE
    assert (tmp_path / "count").read_text() == "xx"


def test_one_that_fails_is_told_of_with_its_log_and_stops_no_other(tmp_path):
    said, after = [], []
    stages = [
        program("bad", "print('so far'); raise RuntimeError('out of luck')"),
        Stage("gone", BENCHMARK, ("-m", "experiments.benchmarks.not_there"), 5),
        stub("net"),
        program("good", "print('fine')"),
        program("left_out", "raise SystemExit(1)"),
    ]
    run = campaign(
        *(stages, tmp_path),
        said=said,
        chosen=["bad", "gone", "net", "good"],
        after=lambda results: after.append(dict(results)),
    )
    results = run.run()
    assert {name: result.status for name, result in results.items()} == dict(
        bad=FAILED, gone=MISSING, net=DONE, good=DONE, left_out=NO_TIME
    )
    assert "out of luck" in results["bad"].tail and "exit status 1" in results["bad"].text
    assert any("out of luck" in line for line in said)
    assert said[-1].strip() == "done: net, good; remaining: bad, gone"
    assert len(after) == 3 and after[0]["bad"].status == FAILED
    assert (tmp_path / "good" / "log.txt").read_text().endswith("fine\n")
    # At the next call what failed is tried again, and only that.
    said.clear()
    campaign(stages[:4], tmp_path, said=said).run()
    assert [line.split(":")[0] for line in said if "begins" in line] == ["bad"]


def test_trainings_wait_for_the_dataset(tmp_path):
    results = campaign([stub(), program("one", "")], tmp_path, data="part 2 has not come yet").run()
    assert results["net"].status == WAITING and "part 2" in results["net"].text
    assert results["one"].status == DONE
    assert campaign([stub()], tmp_path).run()["net"].status == DONE


def test_a_training_is_stopped_when_the_minutes_are_over_and_gone_on_with(tmp_path):
    rows = tmp_path / "net" / "metrics.jsonl"
    stages = [stub(total=50, pause=0.02), program("later", "", start=10)]
    clock = Clock(lambda: rows.exists() and rows.read_text().count("\n") >= 2)
    results = campaign(stages, tmp_path, clock=clock).run()
    stopped = results["net"]
    assert stopped.status == STOPPED and stopped.text.endswith("the minutes were over")
    # The stub ended by itself: it had been told, not killed.
    done = rows.read_text().count("\n")
    assert 2 <= done < 50 and f"step {done} of 50" in stopped.text
    # Nothing more is begun.
    assert results["later"].status == NO_TIME
    results = campaign(stages, tmp_path).run()
    assert results["net"].status == DONE and "test error 25.00%" in results["net"].text
    assert [json.loads(line)["step"] for line in rows.read_text().splitlines()] == [*range(1, 51)]
    # Its seconds are those of both calls.
    assert results["net"].seconds >= stopped.seconds > 0
    assert results["later"].status == DONE


def test_what_an_earlier_call_left_of_a_training_stays_known_where_this_one_has_no_time(tmp_path):
    rows = tmp_path / "net" / "metrics.jsonl"
    stage = stub(total=50, pause=0.02)
    campaign([stage], tmp_path, clock=Clock(rows.exists)).run()
    result = campaign([stage], tmp_path, left=5).run()["net"]
    assert result.status == STOPPED and "step " in result.text and "needs about" in result.text


def test_one_that_does_not_heed_is_killed_in_time_with_its_children(tmp_path):
    child = "import time; time.sleep(600)"
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}]);"
        "open(sys.argv[1] + '/pid', 'w').write(str(child.pid)); time.sleep(600)"
    )
    pid = tmp_path / "pid"
    clock = Clock(lambda: pid.exists() and pid.read_text())
    begin = time.monotonic()
    run = campaign([program("deaf", code)], tmp_path, grace=20.0, clock=clock)
    result = run.run()["deaf"]
    assert result.status == STOPPED and "it begins anew" in result.text
    # Before the grace was over, of which the rest is for packing.
    assert clock.now < 10_000 + 20
    for _ in range(100):
        # It is init's to bury.
        state = Path(f"/proc/{pid.read_text()}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child lives")
    assert time.monotonic() - begin < 60


def test_a_benchmark_that_takes_far_longer_than_expected_makes_room(tmp_path):
    code = "import sys, time; open(sys.argv[1] + '/begun', 'w'); time.sleep(600)"
    # 130 seconds later: beyond three times its ten and the least patience, but not beyond the minutes.
    clock = Clock((tmp_path / "begun").exists, late=130.0)
    results = campaign([program("slow", code), program("next", "")], tmp_path, clock=clock).run()
    assert results["slow"].status == STOPPED and "took more than 120 s" in results["slow"].text
    assert results["next"].status == DONE
    # It has three times what was not enough in the next call.
    (tmp_path / "begun").unlink()
    clock = Clock((tmp_path / "begun").exists, late=500.0)
    slow = campaign([program("slow", code)], tmp_path, clock=clock).run()["slow"]
    assert re.search(r"took more than 39\d s", slow.text), slow.text


def test_a_signal_to_the_campaign_stops_the_stage_and_ends_it(tmp_path):
    rows = tmp_path / "net" / "metrics.jsonl"

    before = signal.getsignal(signal.SIGTERM)

    def send():
        while not rows.exists():
            time.sleep(0.01)
        if signal.getsignal(signal.SIGTERM) is not before:
            os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    results = campaign([stub(total=500, pause=0.02), program("next", "")], tmp_path).run()
    sender.join()
    assert results["net"].status == STOPPED and "SIGTERM" in results["net"].text
    assert results["next"].status == NO_TIME and not (tmp_path / "next").exists()
    assert signal.getsignal(signal.SIGTERM) is before


# What comes back.


def run_folder(out, name, steps, size=1000):
    for step in steps:
        folder = out / name / "checkpoints" / str(step) / "state"
        folder.mkdir(parents=True)
        (folder / "array").write_bytes(bytes([step]) * size)
    (out / name / "metrics.jsonl").write_text('{"step": 1}\n')


def test_the_archives_hold_results_and_newest_checkpoints_and_go_on_elsewhere(tmp_path):
    out, back = tmp_path / "out", tmp_path / "back"
    code = "import sys; open(sys.argv[1] + '/one/one.json', 'w').write('[1]')"
    run = campaign([program("one", code)], out)
    run.run()
    run_folder(out, "a", (1, 2, 10))
    run_folder(out, "b", (3,))
    (out / "b" / "checkpoints" / "4.orbax-checkpoint-tmp-0").mkdir()
    run_folder(out, "c", (7,), size=40_000)
    (out / "one" / "huge.bin").write_bytes(bytes(returning.LARGEST + 1))
    (out / data.ARRAYS).write_bytes(b"images")
    (out / data.PARTS).mkdir()
    (out / data.PARTS / "part").write_bytes(b"images")
    (out / returning.COMPILED).mkdir()
    (out / returning.COMPILED / "program").write_bytes(b"program")
    text = returning.report(str(out), "here", dict(minutes=1), run.stages, run.results)
    assert re.search(r"^one +done", text, re.MULTILINE)
    for _ in range(2):
        # Room for a and b together; c is too large for any.
        archives, large = returning.pack(str(out), str(back), 0.03)
    assert [Path(path).name for path in archives] == ["campaign.tar.gz", "checkpoints-1.tar"]
    assert sorted(os.listdir(back)) == ["campaign.tar.gz", "checkpoints-1.tar"]
    assert sorted(large) == ["c/checkpoints/7/state", "one/huge.bin"]
    elsewhere = tmp_path / "elsewhere"
    for path in archives:
        with tarfile.open(path) as archive:
            archive.extractall(elsewhere, filter="data")
    found = {str(path.relative_to(elsewhere)) for path in elsewhere.rglob("*") if path.is_file()}
    assert found == {
        *("campaign.json", "campaign.txt", "one/one.json", "one/log.txt", "one/stage.json"),
        *("a/metrics.jsonl", "b/metrics.jsonl", "c/metrics.jsonl"),
        *("a/checkpoints/10/state/array", "b/checkpoints/3/state/array"),
    }
    assert (elsewhere / "a/checkpoints/10/state/array").read_bytes() == bytes([10]) * 1000
    assert running.record(run.stages[0], str(elsewhere)).status == DONE
    rows = json.loads((elsewhere / "campaign.json").read_text())
    assert rows["minutes"] == 1 and rows["stages"][0]["name"] == "one" and rows["stages"][0]["status"] == DONE
    # Where one archive of checkpoints is not enough there are more.
    archives, _ = returning.pack(str(out), str(back), 0.0151)
    assert [Path(path).name for path in archives[1:]] == ["checkpoints-1.tar", "checkpoints-2.tar"]


# Numerics.


def test_an_operation_that_is_wrong_is_beyond_its_tolerance(monkeypatch):
    found = {row["what"]: row for row in numerics_operations.normalisations(np.random.default_rng(0))}
    assert all(row["holds"] for row in found.values()) and "local response normalisation, gradient" in found
    right = numerics_operations.local_response_norm
    monkeypatch.setattr(numerics_operations, "local_response_norm", lambda x: right(x, size=3))
    rows = list(numerics_operations.normalisations(np.random.default_rng(0)))
    wrong = {row["what"] for row in rows if not row["holds"]}
    assert wrong == {"local response normalisation", "local response normalisation, gradient"}


def test_what_is_not_a_number_holds_at_no_tolerance():
    row = numerics_operations.compare("x", "highest", [1.0, np.nan], [1.0, 2.0], 10.0)
    assert not row["holds"]
    assert numerics_operations.compare("x", "highest", [1.0, 2.1], [1.0, 2.0], 0.051)["holds"]
    assert not numerics_operations.compare("x", "highest", [1.0, 2.1], [1.0, 2.0], 0.049)["holds"]
    with pytest.raises(ValueError, match="shapes"):
        numerics_operations.compare("x", "highest", [1.0], [1.0, 2.0], 1.0)


# The command.


@pytest.fixture(scope="module")
def without_tensorflow(tmp_path_factory):
    """An environment in which TensorFlow cannot be imported by any program."""
    folder = tmp_path_factory.mktemp("site")
    code = "import sys\nfor name in ('tensorflow', 'tensorflow_datasets', 'keras'): sys.modules[name] = None\n"
    (folder / "sitecustomize.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"}
    tried = subprocess.run([sys.executable, "-c", "import tensorflow"], env=environment, capture_output=True)
    assert tried.returncode == 1
    return environment


def test_a_rehearsal_without_tensorflow_is_stopped_for_lack_of_minutes_and_goes_on(without_tensorflow, tmp_path):
    out, back = tmp_path / "out", tmp_path / "back"
    out.mkdir()
    data.save(data.synthetic(), str(out), data.SYNTHETIC)
    every = stages_lib.stages(rehearse=True)
    rows = out / "resnet20" / "metrics.jsonl"
    # The minutes are over as soon as the training has said something.
    clock = Clock(lambda: rows.exists() and rows.read_text().count("\n"))
    environment = without_tensorflow | {"JAX_NUM_CPU_DEVICES": "1"}
    # The clock goes on by a second at each look, ten of which are a second.
    first = Campaign(every, str(out), 9000.0, 2000.0, str(ROOT), environment, ["resnet20"], clock=clock)
    stopped = first.run()["resnet20"]
    log = out / "resnet20" / "log.txt"
    assert stopped.status == STOPPED, log.read_text()
    training = next(stage for stage in every if stage.name == "resnet20")
    at = stages_lib.standing(training, str(out))
    step = at.saved
    assert 0 < step == at.step < training.total

    # What comes back is enough to go on, on another machine.
    for path in returning.pack(str(out), str(back), 16.0)[0]:
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path / "elsewhere", filter="data")
    out = tmp_path / "elsewhere"
    log = out / "resnet20" / "log.txt"

    arguments = [f"--out={out}", f"--returns={back}", "--rehearse", "--only=numerics,resnet20", "--commit=0123abc"]
    done = subprocess.run(
        [sys.executable, "-m", NAME, *arguments], cwd=ROOT, env=without_tensorflow, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"going on after step {step} of {training.total}" in log.read_text()
    # It first says what it will run, then what is done.
    said = done.stdout
    assert said.index("numerics  ") < said.index("numerics: begins") < said.index("numerics: done")
    assert "done: numerics, resnet20; remaining: nothing" in said and "A rehearsal" in said
    assert json.loads((out / "resnet20" / "stage.json").read_text())["seconds"] > stopped.seconds > 0
    assert [row["step"] for row in workdir.read_metrics(str(out / "resnet20"))][-1] == training.total
    assert json.loads((out / "numerics" / "numerics.json").read_text())["beyond"] == 0
    facts = json.loads((out / "campaign.json").read_text())
    assert facts["rehearsal"] and facts["machine"]["commit"]
    assert {s["name"] for s in facts["stages"] if s["status"] == DONE} == {"numerics", "resnet20"}
    assert sorted(os.listdir(back)) == ["campaign.tar.gz", "checkpoints-1.tar"]
    with tarfile.open(back / "campaign.tar.gz") as archive:
        names = set(archive.getnames())
    assert {"campaign.txt", "numerics/numerics.txt", "resnet20/metrics.jsonl", "resnet20/log.txt"} <= names
    assert not any("checkpoints" in name or name.endswith(".npz") for name in names)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--out is missing"),
        (["--out=OUT/a", "--minutes=0.5"], "minutes=0.5: expected more than the 45 seconds of --margin"),
        (["--out=OUT/a", "--rehearse", "--only=resnet21"], "only='resnet21': expected one of 'numerics'"),
        (["--out=OUT/a"], "JAX finds no accelerator here"),
        (["--out=OUT/file/a", "--collect_only"], "expected a folder that can be made"),
        (["--pack=OUT/a", "--data_dir=OUT/nowhere"], "data.data_dir="),
    ],
)
def test_what_is_wrong_is_one_line(command, flags, message, tmp_path):
    (tmp_path / "file").write_text("")
    result = command(NAME, *[flag.replace("OUT", str(tmp_path)) for flag in flags])
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["file"]
