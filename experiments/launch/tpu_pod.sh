#!/usr/bin/env bash
# Trains on all hosts of a TPU pod, from a machine that has gcloud.
#
#   TPU_NAME=my-pod ZONE=us-east5-b experiments/launch/tpu_pod.sh CONFIG WORKDIR [FLAG...]
#   TPU_NAME=my-pod ZONE=us-east5-b experiments/launch/tpu_pod.sh configs/resnet.py:50 /mnt/shared/resnet50
#
# CONFIG and WORKDIR are as the hosts see them; WORKDIR lies in a folder that they share. The repository is on each of
# them, installed with pip install -e '.[tpu]'.
set -euo pipefail

TPU_NAME=${TPU_NAME:-}
ZONE=${ZONE:-}
# gcloud's own default where this is empty.
PROJECT=${PROJECT:-}
# On each host: the repository, from the home folder on, and the environment's Python, from the repository on.
REPOSITORY=${REPOSITORY:-alexnet_resnet}
PYTHON=${PYTHON:-.venv/bin/python}

fail() {
  echo "error: $1" >&2
  exit 2
}

[[ $# -ge 2 && $1 != -* && $2 != -* ]] ||
  fail "CONFIG and WORKDIR: expected both before any flag, such as ${0##*/} configs/resnet.py:50 /mnt/shared/resnet50."
[[ -n $TPU_NAME ]] || fail "TPU_NAME is not set: expected the pod's name, such as TPU_NAME=my-pod."
[[ -n $ZONE ]] || fail "ZONE is not set: expected the pod's zone, such as ZONE=us-east5-b."
[[ $2 == /* ]] ||
  fail "WORKDIR=$2: expected a folder that all hosts share, from the root on, such as /mnt/shared/resnet50."
command -v gcloud >/dev/null || fail "gcloud: expected Google Cloud's command on this machine."

config=$1 workdir=$2
shift 2

# Another shell reads this on each host: %q keeps spaces and quotes as they are.
printf -v quoted ' %q' "$PYTHON" -m alexnet_resnet.train --distributed --config="$config" --workdir="$workdir" "$@"
printf -v folder '%q' "$REPOSITORY"
exec gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"} \
  --worker=all --command="cd $folder && exec$quoted"
