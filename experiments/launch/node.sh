#!/usr/bin/env bash
# Trains on all GPUs of this machine. One process drives all of them.
#
#   experiments/launch/node.sh CONFIG WORKDIR [FLAG...]
#   experiments/launch/node.sh configs/alexnet.py runs/alexnet --config.parallel.strategy=columns
#
# Run it from the repository's root. CUDA_VISIBLE_DEVICES=0,1 takes only those GPUs.
set -euo pipefail

PYTHON=${PYTHON:-.venv/bin/python}

fail() {
  echo "error: $1" >&2
  exit 2
}

[[ $# -ge 2 && $1 != -* && $2 != -* ]] ||
  fail "CONFIG and WORKDIR: expected both before any flag, such as ${0##*/} configs/alexnet.py runs/alexnet."
[[ -f alexnet_resnet/train.py ]] || fail "the current folder is $PWD: expected the repository's root."
command -v "$PYTHON" >/dev/null ||
  fail "PYTHON=$PYTHON: expected the Python that the package is installed for."

config=$1 workdir=$2
shift 2
exec "$PYTHON" -m alexnet_resnet.train --config="$config" --workdir="$workdir" "$@"
