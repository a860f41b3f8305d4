# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2034  # variables are for the launchers
# Functions of the launchers, which source this file. Their last arguments name a
# program and its arguments:
#   [train] FLAG...     python train.py FLAG...
#   eval FLAG...        python eval.py FLAG...
#   NAME ARGUMENT...    python -m mixer NAME ARGUMENT..., such as sweep or data

fail() {
  echo "error: $*" >&2
  exit "${code:-2}"
}

# Sets `joined` to the arguments, with `--NAME VALUE` as `--NAME=VALUE` for the
# given names (one word), up to `--`.
join_flags() {
  local names=" $1 "
  shift
  joined=()
  while [[ $# -gt 0 && $1 != -- ]]; do
    if [[ $1 == --* && $names == *" ${1#--} "* && $# -gt 1 ]]; then
      joined+=("$1=$2")
      shift
    else
      joined+=("$1")
    fi
    shift
  done
  joined+=("$@")
}

# Sets `name`, `program` (the words after python), `arguments`, and the values of
# the flags `config` and `workdir`. Fails if the program needs these and lacks one.
select_program() {
  case ${1-} in
    train | eval | data | export | goodput | paper | predict | preflight | replay | sweep | weights)
      name=$1
      shift
      ;;
    *) name=train ;;
  esac
  arguments=("$@")
  case $name in
    train | eval) program=("$name.py") ;;
    *) program=(-m mixer "$name") ;;
  esac
  config="" workdir=""
  join_flags "config workdir" "$@"
  for argument in "${joined[@]}"; do
    case $argument in
      --config=*) config=${argument#*=} ;;
      --workdir=*) workdir=${argument#*=} ;;
    esac
  done
  case $name in
    train | sweep) [[ $config && $workdir ]] ;;
    eval) [[ $workdir ]] ;;
  esac
}

# Checks the recipe and the flags on this machine, before another one is paid for.
# Called in the checkout, after select_program.
check_recipe() {
  local python=${PYTHON:-.venv/bin/python}
  case $name in train | eval | sweep) ;; *) return 0 ;; esac
  if ! "$python" -c 'import flax, jax, ml_collections' 2>/dev/null; then
    echo "The recipe is not checked here: $python lacks packages of requirements.txt (set PYTHON)." >&2
    return 0
  fi
  JAX_PLATFORMS=cpu "$python" -m launch.check "$name" "${arguments[@]}" || exit 2
}
