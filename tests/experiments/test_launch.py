"""The launch scripts: two processes really train under a false srun; of a TPU pod only the command can be run here."""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "experiments/launch"
NODE, SLURM, TPU_POD, SWEEP = (LAUNCH / f"{name}.sh" for name in ("node", "slurm", "tpu_pod", "sweep"))
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
BASH = shutil.which("bash")
LIMIT = 420

# Starts SLURM_NTASKS processes with the variables that SLURM's tasks have, as if on one node, and passes SIGTERM on.
SRUN = f"""#!{sys.executable}
import itertools, os, signal, subprocess, sys
flags = list(itertools.takewhile(lambda word: word.startswith("-"), sys.argv[1:]))
print("srun", *flags, flush=True)
step = {{"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}}
tasks = [
    subprocess.Popen(
        sys.argv[1 + len(flags) :], env=os.environ | step | {{"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)}}
    )
    for n in range(int(os.environ["SLURM_NTASKS"]))
]
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
print("started", flush=True)
sys.exit(max(task.wait() for task in tasks))
"""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def environment(**variables):
    """This process's, without what a cluster or conftest.py has set, and with `variables`."""
    # Of several processes only the first fills the cache of compiled programs. The next time it would not compile, but
    # wait for the others that do, and gloo waits no longer than 30 seconds.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_"))}
    # gRPC would look for localhost behind a proxy.
    kept = {name: value for name, value in kept.items() if "proxy" not in name.lower()}
    return kept | {"JAX_PLATFORMS": "cpu", "PYTHON": sys.executable} | {k: str(v) for k, v in variables.items()}


@contextlib.contextmanager
def started(script, *arguments, **variables):
    """A script that runs; it and all that it started are killed at the end, or once it has taken too long."""
    process = subprocess.Popen(
        [BASH, script, *map(str, arguments)],
        cwd=ROOT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )

    def kill():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(LIMIT, kill)
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        kill()
        process.stdout.close()
        process.wait()


def free_job():
    """The number of a job whose port, as JAX derives it, is free."""
    for job in random.SystemRandom().sample(range(100_000, 200_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", job % 2**12 + 65536 - 2**12))
            return job
    raise AssertionError("no port is free")


def tiny(npz, workdir):
    fields = {
        "data.dataset": "npz",
        "data.data_dir": npz,
        "data.num_classes": 4,
        "data.channels": 3,
        "data.loader": "resident",
        "data.canvas_size": 32,
        "data.train_split": "train",
        "data.validation_split": "validation",
        "train.batch_size": 16,
        "train.duration": "160 steps",
        "evaluation.every": "80 steps",
        "checkpoint.every": "80 steps",
        "log.every": "5 steps",
    }
    return ["configs/lenet.py:full", workdir, *(f"--config.{name}={value}" for name, value in fields.items())]


@pytest.fixture
def cluster(tmp_path):
    """The variables of a job of SLURM, with false commands of it first in the path; `requeued` is what came back."""
    executable(tmp_path / "bin/srun", SRUN)
    executable(tmp_path / "bin/scontrol", f'#!{BASH}\necho "$*" >> "{tmp_path}/requeued"\n')
    return {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": free_job(), "SLURM_NTASKS": 2}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_bash_that_says_how_to_run_it(script):
    assert subprocess.run([BASH, "-n", script]).returncode == 0
    text = script.read_text()
    assert os.access(script, os.X_OK) and text.startswith("#!/usr/bin/env bash\n# ")
    what = "STUDY" if script == SWEEP else "CONFIG WORKDIR"
    assert re.search(rf"^# .*{script.name} {what} \[FLAG\.\.\.\]$", text, re.MULTILINE)
    assert "\nset -euo pipefail\n" in text
    assert f"experiments/launch/{script.name}" in (ROOT / "docs/launch.md").read_text()


def test_there_is_a_script_for_each_kind_of_cluster():
    assert {NODE, SLURM, TPU_POD, SWEEP} <= set(SCRIPTS)


RUN = ("configs/digits.py", "/runs/digits")
POD = {"TPU_NAME": "pod", "ZONE": "zone"}
REFUSED = {
    "node, nothing": (NODE, (), {}, "CONFIG and WORKDIR: expected both"),
    "node, no folder": (NODE, RUN[:1], {}, "CONFIG and WORKDIR: expected both"),
    "node, a flag first": (NODE, ("--config=a", "b"), {}, "CONFIG and WORKDIR: expected both"),
    "node, elsewhere": (NODE, RUN, {"cwd": "/"}, "the current folder is /: expected the repository's root"),
    "node, no Python": (NODE, RUN, {"PYTHON": "no/python"}, "PYTHON=no/python: expected the Python that"),
    "slurm, nothing": (SLURM, (), {"SLURM_JOB_ID": 1}, "CONFIG and WORKDIR: expected both"),
    "slurm, a flag second": (SLURM, ("a", "--b"), {"SLURM_JOB_ID": 1}, "CONFIG and WORKDIR: expected both"),
    "slurm, no job": (SLURM, RUN, {}, "SLURM_JOB_ID is not set: expected a job of SLURM"),
    "slurm, elsewhere": (SLURM, RUN, {"SLURM_JOB_ID": 1, "cwd": "/"}, "the current folder is /: expected"),
    "slurm, no Python": (SLURM, RUN, {"SLURM_JOB_ID": 1, "PYTHON": "no/python"}, "PYTHON=no/python: expected"),
    "sweep, nothing": (SWEEP, (), {"SLURM_ARRAY_TASK_ID": 1}, "STUDY: expected its name before any flag"),
    "sweep, a flag first": (
        SWEEP,
        ("--out=a",),
        {"SLURM_ARRAY_TASK_ID": 1},
        "STUDY: expected its name before any flag",
    ),
    "sweep, no array": (SWEEP, ("sweep",), {}, "SLURM_ARRAY_TASK_ID is not set: expected a job array"),
    "sweep, no study": (
        SWEEP,
        ("sweap",),
        {"SLURM_ARRAY_TASK_ID": 1},
        "STUDY=sweap: expected a module of",
    ),
    "sweep, no Python": (SWEEP, ("sweep",), {"SLURM_ARRAY_TASK_ID": 1, "PYTHON": "no/python"}, "PYTHON=no/python"),
    "pod, nothing": (TPU_POD, (), POD, "CONFIG and WORKDIR: expected both"),
    "pod, no name": (TPU_POD, RUN, {"ZONE": "zone"}, "TPU_NAME is not set: expected the pod's name"),
    "pod, no zone": (TPU_POD, RUN, {"TPU_NAME": "pod"}, "ZONE is not set: expected the pod's zone"),
    "pod, a folder of this host": (TPU_POD, ("a", "runs/b"), POD, "WORKDIR=runs/b: expected a folder that all hosts"),
    "pod, a bucket": (TPU_POD, ("a", "gs://b/c"), POD, "WORKDIR=gs://b/c: expected a folder that all hosts share"),
    "pod, no gcloud": (TPU_POD, RUN, POD | {"PATH": "/nowhere"}, "gcloud: expected Google Cloud's command"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_missing_is_one_line_that_names_it(case):
    script, arguments, variables, expected = REFUSED[case]
    variables = dict(variables)
    done = subprocess.run(
        [BASH, script, *arguments],
        cwd=variables.pop("cwd", ROOT),
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {expected}") and done.stderr.count("\n") == 1, done.stderr


def test_two_processes_train_are_stopped_in_time_and_one_goes_on(shapes_npz, cluster, tmp_path):
    """The whole way of a job: the time is up, all save one step, the job is requeued; then a single node goes on."""
    run = tiny(shapes_npz, tmp_path / "run")
    with started(SLURM, *run, JAX_NUM_CPU_DEVICES=2, **cluster) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if re.match(r"step 5/", line):
                process.send_signal(signal.SIGUSR1)
        said = "".join(said)
        assert process.wait() == 0, said
    assert "4 cpu device(s) as 4x1, data; 160 steps" in said, said
    saved = re.search(r"Told to stop \(SIGTERM\): saved after step (\d+), where the same command goes on", said)
    assert saved, said
    assert (tmp_path / "requeued").read_text() == f"requeue {cluster['SLURM_JOB_ID']}\n"
    assert (tmp_path / "run/checkpoints" / saved[1]).is_dir()

    with started(NODE, *run, JAX_NUM_CPU_DEVICES=4) as process:
        said, _ = process.communicate()
        assert process.returncode == 0, said
    assert f"4 cpu device(s) as 4x1, data; going on after step {saved[1]} of 160" in said, said
    assert (tmp_path / "run/checkpoints/160").is_dir()


# Ends well on SIGTERM, as training does; its argument is the exit status.
PATIENT = """#!{bash}
trap 'echo "told to stop"; exit {status}' TERM
echo working
while :; do sleep 0.1; done
"""


@pytest.mark.parametrize(
    ("name", "status", "requeued"), [("USR1", 0, True), ("USR1", 3, False), ("TERM", 0, False), ("TERM", 3, False)]
)
def test_a_signal_reaches_every_process_and_only_a_saved_run_is_requeued(name, status, requeued, cluster, tmp_path):
    python = executable(tmp_path / "python", PATIENT.format(bash=BASH, status=status))
    with started(SLURM, *RUN, **cluster | {"PYTHON": python, "SLURM_NTASKS": 3}) as process:
        # The three and srun have to be ready for it; what they write at once may stand in one line.
        said = ""
        while said.count("working") < 3 or "started" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        for _ in range(LIMIT // 5):
            process.send_signal(getattr(signal, f"SIG{name}"))
            # Bash misses what comes in the very moment in which it begins to wait.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
                break
        rest, _ = process.communicate()
        assert process.returncode == status
    assert rest.count("told to stop") == 3
    assert (tmp_path / "requeued").exists() == requeued


@pytest.mark.parametrize(("name", "status", "requeued"), [("USR1", 0, True), ("USR1", 3, False), ("TERM", 0, False)])
def test_a_task_of_a_sweep_is_requeued_once_it_has_saved(name, status, requeued, cluster, tmp_path):
    python = executable(tmp_path / "python", PATIENT.format(bash=BASH, status=status))
    array = {"SLURM_ARRAY_TASK_ID": 3, "SLURM_ARRAY_JOB_ID": 77, "PYTHON": python}
    with started(SWEEP, "sweep", **cluster | array) as process:
        assert process.stdout.readline() == "working\n"
        for _ in range(LIMIT // 5):
            process.send_signal(getattr(signal, f"SIG{name}"))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
                break
        rest, _ = process.communicate()
        assert process.returncode == status, rest
    assert rest.count("told to stop") == 1
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 77_3\n"


def test_a_task_of_a_sweep_starts_the_study_with_its_number(tmp_path):
    python = executable(tmp_path / "python", f"#!{BASH}\nprintf '<%s>' \"$@\"\nexit 5\n")
    with started(SWEEP, "resnet_table6", "--budget=3 epochs", PYTHON=python, SLURM_ARRAY_TASK_ID=2) as process:
        said, _ = process.communicate()
        assert process.returncode == 5
    assert said == "<-m><experiments.resnet_table6><--task=2><--budget=3 epochs>"


def test_a_step_that_fails_gives_the_job_its_status(cluster, tmp_path):
    python = executable(tmp_path / "python", f"#!{BASH}\nexit $((SLURM_PROCID + 1))\n")
    with started(SLURM, *RUN, **cluster | {"PYTHON": python}) as process:
        said, _ = process.communicate()
        assert process.returncode == 2, said
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize(
    ("given", "devices"),
    [
        ({"SLURM_NTASKS_PER_NODE": 4, "SLURM_GPUS_ON_NODE": 4}, "0"),
        ({"SLURM_NTASKS_PER_NODE": 1, "SLURM_GPUS_ON_NODE": 4}, "0,1,2,3"),
        ({"SLURM_NTASKS_PER_NODE": 1, "SLURM_GPUS_ON_NODE": 4, "JAX_LOCAL_DEVICE_IDS": "2,3"}, "2,3"),
        ({"SLURM_NTASKS_PER_NODE": 1}, "0"),
    ],
    ids=["one a GPU", "one a node", "some of a node", "no GPU"],
)
def test_what_jax_makes_of_the_job(given, devices, cluster, tmp_path):
    """Which GPUs JAX itself gives to a process that joins, so no more is simulated than srun."""
    join = "from alexnet_resnet.parallel import hosts; hosts.join()"
    # Without a GPU there is no other place to look.
    join += "; from jax._src import xla_bridge; print(xla_bridge.CUDA_VISIBLE_DEVICES.value)"
    python = executable(tmp_path / "python", f'#!{BASH}\nexec {sys.executable} -c "{join}"\n')
    with started(SLURM, *RUN, **cluster | {"PYTHON": python, "SLURM_NTASKS": 1} | given) as process:
        said, _ = process.communicate()
        assert process.returncode == 0, said
    assert said.splitlines()[-1] == devices


def test_srun_is_asked_for_what_the_job_has(cluster, tmp_path):
    python = executable(tmp_path / "python", f"#!{BASH}\nprintf '<%s>' \"$@\"\n")
    one = cluster | {"PYTHON": python, "SLURM_NTASKS": 1}
    with started(SLURM, *RUN, "--config.train.duration=8 epochs", "--heartbeat=60", **one) as process:
        said, _ = process.communicate()
    assert "srun --kill-on-bad-exit=0 --wait=120\n" in said
    expected = ["-m", "alexnet_resnet.train", "--distributed", f"--config={RUN[0]}", f"--workdir={RUN[1]}"]
    expected += ["--config.train.duration=8 epochs", "--heartbeat=60"]
    assert "".join(f"<{word}>" for word in expected) in said
    with started(SLURM, *RUN, **one | {"WAIT": 200, "SLURM_CPUS_PER_TASK": 6}) as process:
        said, _ = process.communicate()
    assert "srun --kill-on-bad-exit=0 --wait=200 --cpus-per-task=6\n" in said


def test_the_directives_of_the_job():
    """sbatch stops reading them at the first command."""
    before = SLURM.read_text().split("\nset -euo pipefail\n")[0]
    directives = re.findall(r"^#SBATCH (--\S+)$", before, re.MULTILINE)
    assert SLURM.read_text().count("\n#SBATCH ") == len(directives)
    assert {"--requeue", "--signal=B:USR1@90"} <= set(directives)


@pytest.mark.parametrize("project", ["", "my-project"])
def test_the_hosts_of_a_pod_are_given_the_very_words(project, tmp_path):
    """What gcloud is asked to run is run here, in a home folder with a false Python that repeats its arguments."""
    gcloud = executable(tmp_path / "bin/gcloud", f"#!{BASH}\nprintf '%s\\n' \"$@\"\n")
    home = tmp_path / "home"
    executable(home / "my clone/.venv/bin/python", f"#!{BASH}\npwd\nprintf '%s\\n' \"$@\"\n")
    flags = ["--config.train.duration=8 epochs", "--config.optimizer.boundaries=(0.3, 0.6)", "--config.model.name=it's"]
    done = subprocess.run(
        [BASH, TPU_POD, *RUN, *flags],
        env=environment(PATH=f"{gcloud.parent}:{os.environ['PATH']}", REPOSITORY="my clone", PROJECT=project, **POD)
        | {"PYTHON": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    *asked, command = done.stdout.splitlines()
    project = [f"--project={project}"] if project else []
    assert asked == ["compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=zone", *project, "--worker=all"]
    name, command = command.split("=", 1)
    assert name == "--command"
    there = subprocess.run([BASH, "-c", command], cwd=home, capture_output=True, text=True, timeout=60)
    assert there.returncode == 0, there.stderr
    folder, *words = there.stdout.splitlines()
    assert folder == str(home / "my clone")
    assert words == ["-m", "alexnet_resnet.train", "--distributed", *expected_flags(), *flags]


def expected_flags():
    return [f"--config={RUN[0]}", f"--workdir={RUN[1]}"]


def test_the_command_of_a_pod_is_one_that_training_knows():
    parse = "import sys; from absl import flags; from alexnet_resnet import train; flags.FLAGS(sys.argv)"
    words = ["train", "--distributed", *expected_flags()]
    done = subprocess.run(
        [sys.executable, "-c", parse, *words], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
