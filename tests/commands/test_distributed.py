"""Several processes on loopback: they train as one, and end together however one of them ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

# Seconds: the processes' own --heartbeat, and what the project allows besides.
HEARTBEAT, GRACE = 10, 30


class Processes:
    """`count` processes of a command, each with `devices` simulated devices."""

    def __init__(self, folder, flags, count, devices=1, command="train", others=()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        cluster = ["--distributed", f"--coordinator_address={address}", f"--num_processes={count}"]
        cluster.append(f"--heartbeat={HEARTBEAT}")
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        folder.mkdir(exist_ok=True)
        self.files, self.processes = [], []
        for number in range(count):
            # Files, not pipes: whoever is not read is not held up.
            paths = folder / f"{number}.out", folder / f"{number}.err"
            extra = others[number] if others else ()
            arguments = [f"alexnet_resnet.{command}", *flags, *extra, *cluster, f"--process_id={number}"]
            with open(paths[0], "w") as out, open(paths[1], "w") as err:
                process = subprocess.Popen(
                    [sys.executable, "-m", *arguments], cwd=ROOT, env=environment, stdout=out, stderr=err
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
        return tuple(re.sub(r"\[Gloo\].*\n", "", path.read_text()) for path in self.files[number])

    def until(self, ready, timeout=240):
        """Waits until something is so, while all run."""
        end = time.monotonic() + timeout
        while not ready():
            assert all(process.poll() is None for process in self.processes), [
                self.said(i) for i in range(len(self.files))
            ]
            assert time.monotonic() < end, "nothing came of it"
            time.sleep(0.02)


def saved(workdir):
    """The steps that have a whole checkpoint."""
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {(row["step"], name): row[name] for row in rows for name in row if name.endswith(("loss", "error", "norm"))}


@pytest.fixture(scope="module")
def resident(flags_for):
    """Flags of a run without TensorFlow, which takes long to import."""
    return lambda workdir, **fields: flags_for(workdir, **{"data.loader": "resident"} | fields)


@pytest.fixture(scope="module")
def alone(flags_for, tmp_path_factory, command):
    """A run of one process on four devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    result = command("train", *flags_for(workdir), devices=4)
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.mark.parametrize(("count", "loader"), [(2, "tf"), (4, "resident")])
def test_processes_train_as_one_with_as_many_devices(alone, flags_for, tmp_path, count, loader):
    workdir = tmp_path / "run"
    flags = flags_for(workdir, **{"data.loader": loader})
    with Processes(tmp_path / "said", flags, count, 4 // count) as processes:
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


@pytest.fixture(scope="module")
def together(resident, tmp_path_factory):
    """A run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("together")
    with Processes(folder / "said", resident(folder / "run"), 2) as processes:
        assert processes.wait() == [0, 0], [processes.said(number) for number in range(2)]
    return folder / "run"


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_all_end_and_the_same_command_goes_on(
    together, resident, tmp_path, victim, final_state, assert_same
):
    workdir = tmp_path / "run"
    with Processes(tmp_path / "killed", resident(workdir), 2) as processes:
        processes.until(lambda: saved(workdir))
        processes.processes[victim].kill()
        codes = processes.wait(HEARTBEAT + GRACE)
        assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, None)
        last = saved(workdir)[-1]
        assert 0 < last < 30
        for number in range(2):
            # The watcher may still be writing when its process is gone.
            for _ in range(100):
                if "The same command" in (said := processes.said(number)[1]):
                    break
                time.sleep(0.1)
            told = re.search(
                rf"process {number} of 2 ended after step (\d+)\. The same command.* after step {last}", said
            )
            assert told and int(told[1]) >= last, said
    with Processes(tmp_path / "again", resident(workdir), 2) as processes:
        assert processes.wait() == [0, 0], [processes.said(number) for number in range(2)]
        assert f"going on after step {last} of 30" in processes.said(0)[0]
    assert_same(final_state(workdir), final_state(together))


@pytest.mark.parametrize("told", [0, 1])
def test_sigterm_to_one_saves_the_same_step_on_all(together, resident, tmp_path, told, command, final_state):
    workdir = tmp_path / "run"
    with Processes(tmp_path / "stopped", resident(workdir), 2) as processes:
        processes.until(lambda: saved(workdir))
        processes.processes[told].send_signal(signal.SIGTERM)
        assert processes.wait() == [0, 0], [processes.said(number) for number in range(2)]
        out = processes.said(0)[0]
        assert "ended after" not in processes.said(0)[1] + processes.said(1)[1], "the watchers have nothing to say"
    stopped = re.search(r"saved after step (\d+)", out)
    assert stopped and int(stopped[1]) == saved(workdir)[-1] < 30, out
    # On fewer processes, though the same devices.
    result = command("train", *resident(workdir), devices=2)
    assert result.returncode == 0, result.stderr
    assert f"going on after step {stopped[1]} of 30" in result.stdout
    found, expected = losses(workdir), losses(together)
    assert (int(stopped[1]), "train/loss") in found, "what was measured until then is written down"
    # But for the window that the stop has cut in two.
    for key in {key for key in expected if not 0 < key[0] - int(stopped[1]) < 5}:
        np.testing.assert_allclose(found[key], expected[key], rtol=2e-4, err_msg=str(key))


def test_columns_may_lie_on_different_hosts(flags_for, tmp_path, command):
    """Then both read the same examples."""
    fields = {
        "data.canvas_size": 67,
        "data.image_size": 67,
        "train.duration": "2 steps",
        "evaluation.every": "2 steps",
        "log.every": "1 step",
        "log.tensorboard": False,
        "model.width": 1 / 16,
        "parallel.strategy": "columns",
        "data.loader": "resident",
    }
    rest = [*flags_for("unused", **fields)[2:]]
    rest = [flag for flag in rest if not flag.startswith(("--config.model.d", "--config.data.view"))]
    config = "--config=configs/alexnet.py"
    with Processes(tmp_path / "said", [config, f"--workdir={tmp_path / 'two'}", *rest], 2) as processes:
        assert processes.wait() == [0, 0], [processes.said(number) for number in range(2)]
    result = command("train", config, f"--workdir={tmp_path / 'one'}", *rest, devices=2)
    assert result.returncode == 0, result.stderr
    found, expected = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert found.keys() == expected.keys() and (2, "test/loss") in found
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, err_msg=str(key))


def test_evaluate_runs_on_several_processes_too(together, tmp_path, command):
    flags = [f"--workdir={together}"]
    with Processes(tmp_path / "said", flags, 3, command="evaluate") as processes:
        assert processes.wait() == [0, 0, 0], [processes.said(number) for number in range(3)]
        out = processes.said(0)[0]
        assert not processes.said(1)[0]
    assert "27 examples" in out
    assert out == command("evaluate", *flags).stdout


def test_processes_with_different_configurations_are_refused_by_all(resident, tmp_path):
    others = [[], ["--config.optimizer.learning_rate=0.1"]]
    with Processes(tmp_path / "said", resident(tmp_path / "run"), 2, others=others) as processes:
        assert processes.wait() == [2, 2]
        error = "error: --config.optimizer.learning_rate=0.1 of process 1: expected that of process 0, 0.05.\n"
        assert processes.said(0)[1].endswith(error)
        assert "error" not in processes.said(1)[1]
    assert not (tmp_path / "run").exists()


def test_what_one_process_cannot_read_is_said_by_the_first(resident, tmp_path):
    others = [[], [f"--config.data.data_dir={tmp_path / 'nowhere.npz'}"]]
    with Processes(tmp_path / "said", resident(tmp_path / "run"), 2, others=others) as processes:
        assert processes.wait() == [2, 2]
        assert "error: process 1: data.data_dir=" in processes.said(0)[1]
    assert not (tmp_path / "run").exists()
