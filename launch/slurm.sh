#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains on SLURM's nodes, one task a node with all of its GPUs. In the checkout:
#   sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 \
#     launch/slurm.sh configs/pretrain_i21k.py:B/16 /shared/runs/b16 [FLAG...]
# or with another program and its flags, such as launch/slurm.sh eval --workdir=...
# WORKDIR is a folder that all nodes share. --dry_run, as the first argument and
# without sbatch, checks the recipe and prints the command of each task. $PYTHON is
# .venv/bin/python if not set.
#
#SBATCH --job-name=mixer
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# To the tasks, two minutes before the time limit: they save and exit with 75.
#SBATCH --signal=TERM@120
set -euo pipefail

usage() {
  cat >&2 <<'TEXT'
usage: sbatch [OPTION...] launch/slurm.sh CONFIG WORKDIR [FLAG...]
       sbatch [OPTION...] launch/slurm.sh (train | eval | sweep) FLAG...
       sbatch [OPTION...] launch/slurm.sh data ARGUMENT...
       launch/slurm.sh --dry_run ...
TEXT
  exit 2
}

[[ -e train.py ]] || {
  echo "error: There is no train.py in $PWD: run this in the checkout." >&2
  exit 2
}
# Not relative to this script, of which sbatch makes a copy elsewhere.
# shellcheck source=launch/common.sh
source launch/common.sh

dry_run=""
if [[ ${1-} == --dry_run ]]; then
  dry_run=yes
  shift
fi
if [[ $# -ge 2 && $1 == *.py* && $2 != -* ]]; then
  set -- train "--config=$1" "--workdir=$2" "${@:3}"
fi
[[ $# -gt 0 ]] || usage
select_program "$@" || usage
[[ $workdir == gs://* || $workdir != *://* ]] ||
  fail "$workdir is not supported: name a folder that all nodes share, or gs://BUCKET/DIR."

# The first task that exits must not end the others, which save, and srun's exit
# code is the highest of all tasks', in which 75 would be lost behind a kill.
command=(
  srun --kill-on-bad-exit=0 --wait=120 --cpu-bind=none
  "${PYTHON:-.venv/bin/python}" "${program[@]}" "${arguments[@]}"
)
if [[ -n $dry_run ]]; then
  check_recipe
  printf '%q ' "${command[@]}"
  echo
  exit
fi
[[ -n ${SLURM_JOB_ID-} ]] || usage

# New starts, as in again.sh.
readonly limit=100
code=0
"${command[@]}" || code=$?
case $code in
  75 | 134 | 137)  # as in again.sh; SLURM itself waits two minutes in between
    if ((${SLURM_RESTART_COUNT:-0} < limit)); then
      echo "slurm.sh: exited with $code; goes back into the queue." >&2
      scontrol requeue "$SLURM_JOB_ID"
    else
      echo "slurm.sh: exited with $code; started again $limit times, no more." >&2
    fi
    ;;
esac
exit "$code"
