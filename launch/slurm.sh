#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains on SLURM's nodes, one task a node with all of its GPUs. In the checkout:
#   sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 \
#     launch/slurm.sh configs/pretrain_i21k.py:B/16 /shared/runs/b16 [FLAG...]
# WORKDIR is a folder that all nodes share. --dry_run, in front and without
# sbatch, prints what each job runs. $PYTHON is .venv/bin/python if not set.
#
#SBATCH --job-name=mixer
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# To the tasks, two minutes before the time limit: they save and leave with 75.
#SBATCH --signal=TERM@120
set -euo pipefail

usage() {
  echo "usage: sbatch [OPTION...] launch/slurm.sh CONFIG WORKDIR [FLAG...]" >&2
  echo "       launch/slurm.sh --dry_run CONFIG WORKDIR [FLAG...]" >&2
  exit 2
}

fail() {
  echo "error: $*" >&2
  exit 2
}

dry_run=""
if [[ ${1-} == --dry_run ]]; then
  dry_run=yes
  shift
fi
[[ $# -ge 2 && $1 != -* && $2 != -* ]] || usage
[[ $2 == gs://* || $2 != *://* ]] ||
  fail "$2 is not supported: name a folder that all nodes share, or gs://BUCKET/DIR."
[[ -e train.py ]] || fail "There is no train.py in $PWD: run this in the checkout."

# The first task to leave must not cut short what others save, and srun's exit
# code is the highest of all tasks', in which 75 would be lost behind a kill.
command=(
  srun --kill-on-bad-exit=0 --wait=120 --cpu-bind=none
  "${PYTHON:-.venv/bin/python}" train.py "--config=$1" "--workdir=$2" "${@:3}"
)
if [[ -n $dry_run ]]; then
  printf '%q ' "${command[@]}"
  echo
  exit
fi
[[ -n ${SLURM_JOB_ID-} ]] || usage

# One job lasts a day at the least where machines are not taken away.
readonly limit=100
code=0
"${command[@]}" || code=$?
case $code in
  75 | 134 | 137)  # as in again.sh; SLURM itself waits two minutes in between
    if ((${SLURM_RESTART_COUNT:-0} < limit)); then
      echo "slurm.sh: left with $code; goes back into the queue." >&2
      scontrol requeue "$SLURM_JOB_ID"
    else
      echo "slurm.sh: left with $code; started again $limit times, no more." >&2
    fi
    ;;
esac
exit "$code"
