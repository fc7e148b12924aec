"""Several processes on loopback: they train as one, and end together however one of them ends."""

import functools
import json
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

# Seconds: the processes' own --heartbeat, and what the project allows besides.
HEARTBEAT, GRACE = 10, 30


class Processes:
    """`count` processes of a command, each with `devices` simulated devices."""

    def __init__(self, launcher, folder, flags, count, devices=1, command="train", others=()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        cluster = ["--distributed", f"--coordinator_address={address}", f"--num_processes={count}"]
        cluster.append(f"--heartbeat={HEARTBEAT}")
        folder.mkdir(exist_ok=True)
        self.files, self.processes = [], []
        for number in range(count):
            # Files, not pipes: whoever is not read is not held up.
            paths = folder / f"{number}.out", folder / f"{number}.err"
            extra = others[number] if others else ()
            process = launcher.start(
                command,
                *(*flags, *extra, *cluster, f"--process_id={number}"),
                devices=devices,
                out=paths[0],
                err=paths[1],
                cache=f"{number} of {count}",
            )
            self.files.append(paths)
            self.processes.append(process)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.wait()

    def wait(self, timeout=300):
        """The exit status of each."""
        end = time.monotonic() + timeout
        return [process.wait(max(1, end - time.monotonic())) for process in self.processes]

    def said(self, number):
        """What one of them has written to its standard output and error, but for what the runtime writes there."""
        # Its threads write at once, so that a line may end where another has begun.
        return tuple(re.sub(r"\[Gloo\].*", "", path.read_text()).lstrip("\n") for path in self.files[number])

    def last_words(self, number):
        """What the watcher of one has said; it may do so a moment after its process is gone."""
        end = time.monotonic() + 30
        while "The same command" not in (said := self.said(number)[1]) and time.monotonic() < end:
            time.sleep(0.1)
        return said

    def until(self, ready, timeout=240):
        """Waits until something is so, while all run."""
        end = time.monotonic() + timeout
        while not ready():
            assert all(process.poll() is None for process in self.processes), [
                self.said(i) for i in range(len(self.files))
            ]
            assert time.monotonic() < end, "nothing came of it"
            time.sleep(0.02)


@pytest.fixture(scope="session")
def cluster(launcher):
    """Starts `Processes`."""
    return functools.partial(Processes, launcher)


def saved(workdir):
    """The steps that have a whole checkpoint."""
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {(row["step"], name): row[name] for row in rows for name in row if name.endswith(("loss", "error", "norm"))}


@pytest.fixture(scope="module")
def small(flags_for):
    """Flags of a run that is compiled fast and does not import TensorFlow."""
    fields = {"data.loader": "resident", "data.canvas_size": 32, "data.image_size": 32, "data.channels": 3}
    fields |= {"data.random_crop": False, "log.tensorboard": False, "optimizer.learning_rate": 0.01}
    return lambda workdir, **more: flags_for(workdir, "configs/lenet.py:full", **fields | more)


@pytest.fixture(scope="module")
def alone(small, tmp_path_factory, command):
    """A run of one process on four devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    result = command("train", *small(workdir, **{"checkpoint.every": "30 steps"}), devices=4)
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.mark.parametrize(("count", "loader"), [(2, "tf"), (4, "resident")])
def test_processes_train_as_one_with_as_many_devices(alone, small, tmp_path, count, loader, cluster):
    workdir = tmp_path / "run"
    flags = small(workdir, **{"data.loader": loader, "checkpoint.every": "30 steps"})
    with cluster(tmp_path / "said", flags, count, 4 // count) as processes:
        assert processes.wait() == [0] * count, [processes.said(number) for number in range(count)]
        for number in range(1, count):
            assert processes.said(number) == ("", ""), "only the first speaks"
        out, _ = processes.said(0)
    assert "4 cpu device(s) as 4x1" in out and "(20 examples)" in out and "(27 examples)" in out
    found, expected = losses(workdir), losses(alone)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=2e-4, err_msg=str(key))
    assert saved(workdir)[-1] == 30
    assert (workdir / "curve.png").exists()


def test_processes_agree_on_a_course_that_the_errors_decide(small, tmp_path, command, final_state, cluster):
    """Plateau, warm-up by the training error, average and parts, under the strategy that splits the state."""
    course = {
        "parallel.strategy": "fsdp",
        "optimizer.plateau.times": 2,
        "optimizer.plateau.patience": 1,
        "optimizer.plateau.least": 0.1,
        "optimizer.boundaries": "()",
        "optimizer.warmup_until_error": 0.75,
        "optimizer.ema": 0.9,
        "train.accumulate": 2,
        "evaluation.every": "5 steps",
        "checkpoint.every": "30 steps",
    }
    one, two = tmp_path / "one", tmp_path / "two"
    result = command("train", *small(one, **course), devices=2)
    assert result.returncode == 0, result.stderr
    with cluster(tmp_path / "said", small(two, **course), 2) as processes:
        assert processes.wait() == [0, 0], [processes.said(number) for number in range(2)]
        assert processes.said(1) == ("", "") and "no longer falls" in processes.said(0)[0]
    found, expected = losses(two), losses(one)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=2e-4, err_msg=str(key))
    controls = [final_state(workdir).opt_state.control for workdir in (one, two)]
    assert int(controls[0].cuts) == int(controls[1].cuts) == 2


@pytest.fixture(scope="module")
def together(small, tmp_path_factory, cluster):
    """A run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("together")
    with cluster(folder / "said", small(folder / "run"), 2) as processes:
        assert processes.wait() == [0, 0], [processes.said(number) for number in range(2)]
    return folder / "run"


@pytest.mark.parametrize(("victim", "how"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_when_one_is_lost_all_end_and_the_same_command_goes_on(
    together, small, tmp_path, victim, how, command, final_state, assert_same, cluster
):
    workdir, other = tmp_path / "run", 1 - victim
    with cluster(tmp_path / "lost", small(workdir), 2) as processes:
        processes.until(lambda: saved(workdir))
        processes.processes[victim].send_signal(how)
        # A process that is stopped is as silent as one behind a broken wire: its connections stay open.
        assert processes.processes[other].wait(HEARTBEAT + GRACE) != 0
        last = saved(workdir)[-1]
        assert 0 < last < 30
        for number in (0, 1) if how == signal.SIGKILL else (other,):
            told = processes.last_words(number)
            found = re.search(rf"process {number} of 2 ended after step (\d+)\. The same.* after step {last},", told)
            assert found and int(found[1]) >= last, told
    if how == signal.SIGSTOP:
        return
    if victim:
        # On fewer.
        shutil.copytree(workdir, tmp_path / "fewer")
        result = command("train", *small(tmp_path / "fewer"), devices=1)
        assert result.returncode == 0, result.stderr
        assert f"going on after step {last} of 30" in result.stdout and saved(tmp_path / "fewer")[-1] == 30
    with cluster(tmp_path / "again", small(workdir), 2) as processes:
        assert processes.wait() == [0, 0], [processes.said(number) for number in range(2)]
        assert f"going on after step {last} of 30" in processes.said(0)[0]
    assert_same(final_state(workdir), final_state(together))


@pytest.mark.parametrize(("told", "how"), [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_to_one_saves_the_same_step_on_all(
    together, small, tmp_path, told, how, command, final_state, assert_same, cluster
):
    workdir = tmp_path / "run"
    with cluster(tmp_path / "stopped", small(workdir), 2) as processes:
        processes.until(lambda: saved(workdir))
        processes.processes[told].send_signal(how)
        assert processes.wait() == [0, 0], [processes.said(number) for number in range(2)]
        out = processes.said(0)[0]
        assert "ended after" not in processes.said(0)[1] + processes.said(1)[1], "the watchers have nothing to say"
    stopped = re.search(r"saved after step (\d+)", out)
    assert stopped and int(stopped[1]) == saved(workdir)[-1] < 30, out
    if told == 0:
        with cluster(tmp_path / "again", small(workdir), 2) as processes:
            assert processes.wait() == [0, 0], [processes.said(number) for number in range(2)]
        assert_same(final_state(workdir), final_state(together))
        return
    # On fewer processes, though the same devices.
    result = command("train", *small(workdir), devices=2)
    assert result.returncode == 0, result.stderr
    assert f"going on after step {stopped[1]} of 30" in result.stdout
    found, expected = losses(workdir), losses(together)
    assert (int(stopped[1]), "train/loss") in found, "what was measured until then is written down"
    # But for the window that the stop has cut in two.
    for key in {key for key in expected if not 0 < key[0] - int(stopped[1]) < 5}:
        np.testing.assert_allclose(found[key], expected[key], rtol=2e-4, err_msg=str(key))


def test_columns_may_lie_on_different_hosts(flags_for, tmp_path, command, cluster):
    """Then both read the same examples."""
    fields = {
        "data.canvas_size": 67,
        "data.image_size": 67,
        "data.loader": "resident",
        "data.random_crop": False,
        "data.lighting": "none",
        "evaluation.every": "2 steps",
        "log.every": "1 step",
        "log.tensorboard": False,
        "model.width": 1 / 16,
        "parallel.strategy": "columns",
        "train.duration": "2 steps",
    }
    flags = lambda name: flags_for(tmp_path / name, "configs/alexnet.py", **fields)  # noqa: E731
    with cluster(tmp_path / "said", flags("two"), 2) as processes:
        assert processes.wait() == [0, 0], [processes.said(number) for number in range(2)]
        assert "2 cpu device(s) as 1x2, columns" in processes.said(0)[0]
    result = command("train", *flags("one"), devices=2)
    assert result.returncode == 0, result.stderr
    found, expected = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert found.keys() == expected.keys() and (2, "validation/loss") in found
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, err_msg=str(key))


def test_evaluate_runs_on_several_processes_too(together, tmp_path, command, cluster):
    flags = [f"--workdir={together}"]
    with cluster(tmp_path / "said", flags, 2, command="evaluate") as processes:
        assert processes.wait() == [0, 0], [processes.said(number) for number in range(2)]
        out = processes.said(0)[0]
        assert not processes.said(1)[0]
    assert "27 examples" in out
    assert out == command("evaluate", *flags).stdout


def test_an_ensemble_on_several_processes_counts_every_example_once(together, alone, tmp_path, command, cluster):
    files = lambda name: [f"--predictions={tmp_path / name}.npz", f"--results={tmp_path / name}.jsonl"]  # noqa: E731
    flags = lambda name: [f"--workdir={together},{alone}", "--batch_size=6", *files(name)]  # noqa: E731
    with cluster(tmp_path / "said", flags("two"), 2, command="evaluate") as processes:
        assert processes.wait() == [0, 0], [processes.said(number) for number in range(2)]
        assert "their mean softmax, on 27 examples" in processes.said(0)[0]
        assert processes.said(1) == ("", ""), "only the first speaks"
    assert command("evaluate", *flags("one")).returncode == 0
    found, expected = (json.loads((tmp_path / f"{name}.jsonl").read_text()) for name in ("two", "one"))
    assert (found["processes"], found["examples"]) == (2, 27)
    assert found["top1_errors"] == expected["top1_errors"]
    with np.load(tmp_path / "two.npz") as found, np.load(tmp_path / "one.npz") as expected:
        np.testing.assert_array_equal(found["row"], np.arange(27))
        np.testing.assert_array_equal(found["label"], expected["label"])
        np.testing.assert_allclose(found["softmax"], expected["softmax"], rtol=1e-4, atol=1e-6)


def test_processes_with_different_configurations_are_refused_by_all(small, tmp_path, cluster):
    others = [[], ["--config.optimizer.learning_rate=0.1"]]
    with cluster(tmp_path / "said", small(tmp_path / "run"), 2, others=others) as processes:
        assert processes.wait() == [2, 2]
        error = "error: --config.optimizer.learning_rate=0.1 of process 1: expected that of process 0, 0.01.\n"
        assert processes.said(0)[1].endswith(error)
        assert "error" not in processes.said(1)[1]
    assert not (tmp_path / "run").exists()


def test_what_one_process_cannot_read_is_said_by_the_first(small, tmp_path, cluster):
    others = [[], [f"--config.data.data_dir={tmp_path / 'nowhere.npz'}"]]
    with cluster(tmp_path / "said", small(tmp_path / "run"), 2, others=others) as processes:
        assert processes.wait() == [2, 2]
        assert "error: process 1: data.data_dir=" in processes.said(0)[1]
    assert not (tmp_path / "run").exists()


def test_a_folder_that_they_do_not_share_is_refused_by_all(small, tmp_path, cluster):
    others = [[f"--workdir={tmp_path / 'one'}"], [f"--workdir={tmp_path / 'two'}"]]
    with cluster(tmp_path / "said", small("unused"), 2, others=others) as processes:
        assert processes.wait() == [2, 2]
        assert "expected one folder that all processes see, but here it is another" in processes.said(0)[1]
