#!/usr/bin/env bash
# Trains on the nodes of a SLURM cluster. Options of sbatch come before the script and win over those below.
#
#   sbatch [OPTION...] experiments/launch/slurm.sh CONFIG WORKDIR [FLAG...]
#   sbatch --nodes=4 experiments/launch/slurm.sh configs/resnet.py:50 runs/resnet50
#
# Submit it from the repository's root, in a folder that all nodes see; so must WORKDIR be.
#
# Below is one process a GPU, each with its own share of the node's cores to read images with. Every process must see
# all GPUs of its node, as JAX gives the first process the first GPU and so on: so no --gpus-per-task, no --gpu-bind.
# For one process a node: --ntasks-per-node=1 --cpus-per-task=64.
#SBATCH --job-name=alexnet_resnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@90
set -euo pipefail

PYTHON=${PYTHON:-.venv/bin/python}
# Seconds that the other processes have, once the first has ended, to end by themselves: more than --heartbeat + 30.
WAIT=${WAIT:-120}

fail() {
  echo "error: $1" >&2
  exit 2
}

[[ $# -ge 2 && $1 != -* && $2 != -* ]] ||
  fail "CONFIG and WORKDIR: expected both before any flag, such as sbatch ${0##*/} configs/resnet.py:50 runs/resnet50."
[[ -n ${SLURM_JOB_ID:-} ]] || fail "SLURM_JOB_ID is not set: expected a job of SLURM; submit this script with sbatch."
[[ -f alexnet_resnet/train.py ]] || fail "the current folder is $PWD: expected the repository's root."
command -v "$PYTHON" >/dev/null ||
  fail "PYTHON=$PYTHON: expected the Python that the package is installed for."

config=$1 workdir=$2
shift 2

# JAX would give a process of SLURM one GPU. One process a node takes all of them.
if [[ ${SLURM_NTASKS_PER_NODE:-} == 1 && ${SLURM_GPUS_ON_NODE:-1} -gt 1 ]]; then
  export JAX_LOCAL_DEVICE_IDS=${JAX_LOCAL_DEVICE_IDS:-$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))}
fi

# Training saves on SIGTERM and exits with 0, finished or not; only this shell can tell that the time was up. So SLURM's
# warning comes here (B:), as USR1, which scancel alone never sends; from here SIGTERM goes to srun, which passes it on
# to all processes. A shell that runs a command in the foreground hears nothing until it ends: hence `&` and `wait`.
signalled= requeue= step=
stop() {
  signalled=yes
  kill -TERM "$step" 2>/dev/null || true
}
trap 'requeue=yes; stop' USR1
trap stop TERM

# A process that fails must not have the others killed at once: process 0 may not have said yet what is wrong.
# srun has forgotten sbatch's --cpus-per-task.
srun --kill-on-bad-exit=0 --wait="$WAIT" ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
  "$PYTHON" -m alexnet_resnet.train --distributed --config="$config" --workdir="$workdir" "$@" &
step=$!

# A signal ends `wait` before srun has ended.
while :; do
  signalled=
  wait "$step" && status=0 || status=$?
  [[ $signalled ]] || break
done

if [[ $requeue && $status == 0 ]]; then
  echo "The time is up: back into the queue, to go on from the last checkpoint."
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
