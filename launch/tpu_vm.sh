#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains on a slice of TPU VMs, asked for as a queued resource:
#   launch/tpu_vm.sh create NAME --zone=us-central2-b --type=v4-32 --spot
#   launch/tpu_vm.sh run NAME --zone=us-central2-b \
#     -- --config=configs/pretrain_i21k.py:B/16 --workdir=gs://BUCKET/b16
# run waits for the machines, brings them this checkout's commit and starts it on
# all of them, where it goes on without us. WORKDIR is in a bucket, or in a folder
# that all of them share, which --setup mounts.
set -euo pipefail

usage() {
  cat >&2 <<'TEXT'
usage: launch/tpu_vm.sh COMMAND NAME --zone=ZONE [--project=PROJECT] [--dry_run] ...
  create  --type=v4-32 [--runtime=VERSION] [--spot | --reserved]
  run     [--setup=COMMAND] -- --config=CONFIG --workdir=DIR [FLAG...]
  resume  what create and run take: where the machines were taken away, asks for
          them anew; then runs
  status, logs [--worker=0], stop (saves first), delete
--setup runs on every machine before the run, such as to mount WORKDIR.
--dry_run prints what would be run; resume then supposes a lost machine.
TEXT
  exit 2
}

fail() {
  echo "error: $*" >&2
  exit "${code:-2}"
}

# Prints the command as a shell takes it, or runs it.
call() {
  local word line=""
  if [[ -z $dry_run ]]; then
    "$@"
    return
  fi
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
    line+="${line:+ }$word"
  done
  echo "$line"
}

queued() { call gcloud compute tpus queued-resources "$1" "$name" "${where[@]}" "${@:2}"; }
on() { call gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"; }

create() {
  queued create "--node-id=$name" "--accelerator-type=$type" \
    "--runtime-version=$runtime" ${tier:+"$tier"}
}

delete() { queued delete --force --quiet; }

# What a dry run supposes, or the state that the cloud tells; MISSING if nothing
# of that name was asked for.
ask_state() {
  local complaint
  state=$1
  if [[ $dry_run ]]; then
    queued describe '--format=value(state.state)'
    return
  fi
  complaint=$(mktemp)
  if ! state=$(queued describe '--format=value(state.state)' 2>"$complaint"); then
    state=MISSING
    grep --quiet NOT_FOUND "$complaint" || code=1 fail "$(<"$complaint")"
  fi
  rm "$complaint"
  [[ $state ]] || code=1 fail "The cloud does not say in which state $name is."
}

wait_for_machines() {
  ask_state ACTIVE
  while [[ $state != ACTIVE ]]; do
    case $state in
      SUSPEND* | FAILED | DELETING)
        code=1 fail "$name is $state: launch/tpu_vm.sh resume asks for it anew."
        ;;
      MISSING) code=1 fail "There is no $name: launch/tpu_vm.sh create asks for it." ;;
    esac
    echo "$name is $state; waits." >&2
    sleep "$poll"
    ask_state ACTIVE
  done
}

# What the machines do. A unit of systemd goes on without a connection, is there
# once, and at shutdown gets one SIGTERM, which again.sh passes on: the second
# would end a run before it has saved.
readonly install='set -e
if systemctl is-active --quiet mixer; then
  echo "A run is under way already: stop it first." >&2
  exit 1
fi
rm -rf mixer
git -c advice.detachedHead=false clone --quiet mixer.bundle mixer
cd mixer
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --python=3.11 .venv
python3 -m uv pip install --quiet --python=.venv/bin/python "jax[tpu]" gcsfs -r requirements.txt'
# shellcheck disable=SC2016  # their $HOME, not ours
readonly start='sudo systemd-run --unit=mixer --collect --uid="$(id -u)"'\
' --working-directory="$HOME/mixer" --setenv=PYTHONUNBUFFERED=1'\
' --property=KillMode=mixed --property=TimeoutStopSec=300'\
' --property=LimitMEMLOCK=infinity --property=LimitNOFILE=1048576'\
' "$HOME/mixer/launch/again.sh" "$HOME/mixer/.venv/bin/python" train.py'

run() {
  local bundle
  bundle=${TMPDIR:-/tmp}/mixer-$(git rev-parse HEAD).bundle
  wait_for_machines
  call git bundle create --quiet "$bundle" HEAD
  call gcloud compute tpus tpu-vm scp "$bundle" "$name:mixer.bundle" "${where[@]}" --worker=all
  call rm "$bundle"
  on all "$install"
  [[ -z $setup ]] || on all "$setup"
  on all "$start$(printf ' %q' "${flags[@]}")"
}

resume() {
  ask_state SUSPENDED
  while [[ $state == SUSPENDING || $state == DELETING ]]; do
    echo "$name is $state; waits." >&2
    sleep "$poll"
    ask_state SUSPENDED
  done
  case $state in
    SUSPENDED | FAILED)
      delete
      create
      ;;
    MISSING) create ;;  # as a resume that came no further leaves it
  esac
  run
}

status() {
  queued describe '--format=value(state.state)'
  # shellcheck disable=SC2016  # their names, not ours
  on all 'echo "$(hostname): $(systemctl is-active mixer)"'
}

what=${1-} name=${2-}
case $what in create | run | resume | status | logs | stop | delete) ;; *) usage ;; esac
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || usage
shift 2

type="" runtime="" tier="" setup="" worker=0 poll=30 dry_run="" zone="" recipe="" flags=()
where=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --zone=?*) zone=$1 ;;
    --project=?*) where+=("$1") ;;
    --type=?*) type=${1#*=} ;;
    --runtime=?*) runtime=${1#*=} ;;
    --spot | --reserved) tier=$1 ;;
    --setup=?*) setup=${1#*=} ;;
    --worker=?*) worker=${1#*=} ;;
    --poll=?*) poll=${1#*=} ;;  # seconds
    --dry_run) dry_run=yes ;;
    --)
      flags=("${@:2}")
      break
      ;;
    *) usage ;;
  esac
  shift
done
[[ $zone ]] || usage
where=("$zone" ${where[@]+"${where[@]}"})
cd "$(dirname "$0")/.."
case $what in create | resume) [[ $type ]] || usage ;; esac
case $type in
  v5litepod-*) runtime=${runtime:-v2-alpha-tpuv5-lite} ;;
  v5p-*) runtime=${runtime:-v2-alpha-tpuv5} ;;
  v6e-*) runtime=${runtime:-v2-alpha-tpuv6e} ;;
  *) runtime=${runtime:-tpu-ubuntu2204-base} ;;
esac
case $what in run | resume)
  [[ " ${flags[*]-} " == *" --config="* && " ${flags[*]-} " == *" --workdir="* ]] || usage
  for flag in "${flags[@]}"; do
    case $flag in
      --workdir=/* | --workdir=gs://*) ;;
      --workdir=*) fail "--workdir has to begin with gs:// or /: anything else lies in the machines' checkout, which the next run replaces." ;;
      --config=*) recipe=${flag#*=} ;;
    esac
  done
  git cat-file -e "HEAD:${recipe%%:*}" 2>/dev/null ||
    fail "The commit has no recipe ${recipe%%:*}: name one of its files, and commit what is new."
  [[ -z $(git status --porcelain --untracked-files=no) ]] ||
    fail "The checkout has changes that no commit holds: commit them, so that the run can say what it ran."
  ;;
esac
[[ $dry_run || -x $(command -v gcloud) ]] ||
  fail "There is no gcloud on this machine: install Google Cloud's command line."

case $what in
  stop) on all 'sudo systemctl stop mixer' ;;
  logs) on "$worker" 'sudo journalctl --unit=mixer --output=cat --lines=100 --follow' ;;
  *) "$what" ;;
esac
