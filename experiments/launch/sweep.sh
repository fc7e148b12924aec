#!/usr/bin/env bash
# The runs of a sweep, or of any study, as the tasks of a SLURM array: the N-th task trains the N-th run, from 0.
#
#   sbatch --array=FIRST-LAST [OPTION...] experiments/launch/sweep.sh STUDY [FLAG...]
#   sbatch --array=0-4 experiments/launch/sweep.sh sweep --config=configs/resnet_cifar.py:110 --grid=seed=0,1,2,3,4
#   sbatch --array=0-8 experiments/launch/sweep.sh resnet_table6 --data_dir=/data/tfds
#
# Submit it from the repository's root, in a folder that all nodes see; --out must be in one too. The same study with
# --dry_run lists its runs; with --collect it makes the table of those that are finished.
#SBATCH --job-name=sweep
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@90
set -euo pipefail

PYTHON=${PYTHON:-.venv/bin/python}

fail() {
  echo "error: $1" >&2
  exit 2
}

[[ $# -ge 1 && $1 != -* ]] || fail "STUDY: expected its name before any flag, such as sweep or resnet_table6."
[[ -n ${SLURM_ARRAY_TASK_ID:-} ]] ||
  fail "SLURM_ARRAY_TASK_ID is not set: expected a job array; submit this script with sbatch --array=0-4."
[[ -f experiments/$1.py ]] || fail "STUDY=$1: expected a module of experiments/ below the current folder, $PWD."
command -v "$PYTHON" >/dev/null ||
  fail "PYTHON=$PYTHON: expected the Python that the package is installed for."

study=$1
shift

# As in slurm.sh: a study that is told to stop saves and exits with 0, and only this shell knows that the time was up.
signalled= requeue= child=
stop() {
  signalled=yes
  kill -TERM "$child" 2>/dev/null || true
}
trap 'requeue=yes; stop' USR1
trap stop TERM

"$PYTHON" -m "experiments.$study" --task="$SLURM_ARRAY_TASK_ID" "$@" &
child=$!
while :; do
  signalled=
  wait "$child" && status=0 || status=$?
  [[ $signalled ]] || break
done

if [[ $requeue && $status == 0 ]]; then
  echo "The time is up: back into the queue, to go on from the last checkpoint."
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
