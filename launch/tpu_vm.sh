#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains on a slice of TPU VMs, requested as a queued resource:
#   launch/tpu_vm.sh create NAME --zone=us-central2-b --type=v4-32 --spot
#   launch/tpu_vm.sh run NAME --zone=us-central2-b \
#     -- --config=configs/pretrain_i21k.py:B/16 --workdir=gs://BUCKET/b16
# run waits for the machines, copies this checkout's commit to them and starts it on
# all of them, where it continues without a connection. WORKDIR is in a bucket, or
# in a folder that all of them share, which --setup mounts.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

usage() {
  cat >&2 <<'TEXT'
usage: launch/tpu_vm.sh COMMAND NAME --zone=ZONE [--project=PROJECT] [--dry_run] ...
  create  --type=v4-32 [--runtime=VERSION] [--spot | --reserved]
  run     [--setup=COMMAND] [--worker=all] -- --config=CONFIG --workdir=DIR [FLAG...]
  resume  the flags of create and run: requests machines again if they were taken
          away; then runs
  status, logs [--worker=0], stop (saves first), delete
-- eval FLAG..., -- sweep FLAG... or -- data ARGUMENT... runs that program.
--setup runs on every machine before the run, such as to mount WORKDIR.
--dry_run prints the commands; resume then assumes lost machines.
TEXT
  exit 2
}

# Runs a command, or prints it as a shell reads it.
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

queued() { call gcloud compute tpus queued-resources "$1" "$slice" "${where[@]}" "${@:2}"; }
on() { call gcloud compute tpus tpu-vm ssh "$slice" "${where[@]}" "--worker=$1" "--command=$2"; }

# Makes a firewall rule for the port of host 0, unless it is there.
rule() {
  local message
  message=$(call gcloud compute firewall-rules create "$1" "${where[@]:1}" \
    --direction=INGRESS --rules=tcp:8482 --target-tags=mixer "${@:2}" 2>&1) ||
    [[ $message == *"already exists"* ]] || { echo "$message" >&2; return 1; }
  [[ -z $dry_run ]] || echo "$message"
}

create() {
  rule mixer-hosts --action=ALLOW --source-tags=mixer --priority=900 &&
    rule mixer-others --action=DENY --priority=1000 ||
    echo "Port 8482 stays as open as the network: gcloud could not make a firewall rule for it. The machines are requested." >&2
  queued create "--node-id=$slice" "--accelerator-type=$type" \
    "--runtime-version=$runtime" --tags=mixer ${tier:+"$tier"}
}

delete() { queued delete --force --quiet; }

# Sets `state` to that of the request, MISSING without one; in a dry run to $1.
read_state() {
  local message
  state=$1
  if [[ $dry_run ]]; then
    queued describe '--format=value(state.state)'
    return
  fi
  message=$(mktemp)
  if ! state=$(queued describe '--format=value(state.state)' 2>"$message"); then
    state=MISSING
    grep --quiet NOT_FOUND "$message" || code=1 fail "$(<"$message")"
  fi
  rm "$message"
  [[ $state ]] || code=1 fail "gcloud reports no state of $slice."
}

wait_for_machines() {
  read_state ACTIVE
  while [[ $state != ACTIVE ]]; do
    case $state in
      SUSPEND* | FAILED | DELETING)
        code=1 fail "$slice is $state: launch/tpu_vm.sh resume requests it again."
        ;;
      MISSING) code=1 fail "There is no $slice: launch/tpu_vm.sh create requests it." ;;
    esac
    echo "$slice is $state; waits." >&2
    sleep "$poll"
    read_state ACTIVE
  done
}

# Commands on the machines. A systemd unit runs without a connection and only once.
# At shutdown it gets one SIGTERM, which again.sh passes on: a second one would end
# a run before it has saved.
readonly install='set -e
if systemctl is-active --quiet mixer; then
  echo "A run is active already: stop it first." >&2
  exit 1
fi
rm -rf mixer
git -c advice.detachedHead=false clone --quiet mixer.bundle mixer
cd mixer
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --python=3.13 .venv
python3 -m uv pip install --quiet --python=.venv/bin/python "jax[tpu]" gcsfs -r requirements.txt'
# shellcheck disable=SC2016  # their $HOME, not ours
readonly start='sudo systemd-run --unit=mixer --collect --uid="$(id -u)"'\
' --working-directory="$HOME/mixer" --setenv=PYTHONUNBUFFERED=1'\
' --property=KillMode=mixed --property=TimeoutStopSec=300'\
' --property=LimitMEMLOCK=infinity --property=LimitNOFILE=1048576'\
' "$HOME/mixer/launch/again.sh" "$HOME/mixer/.venv/bin/python"'

run() {
  local bundle
  bundle=${TMPDIR:-/tmp}/mixer-$(git rev-parse HEAD).bundle
  wait_for_machines
  call git bundle create --quiet "$bundle" HEAD
  call gcloud compute tpus tpu-vm scp "$bundle" "$slice:mixer.bundle" "${where[@]}" "--worker=${worker:-all}"
  call rm "$bundle"
  on "${worker:-all}" "$install"
  [[ -z $setup ]] || on "${worker:-all}" "$setup"
  on "${worker:-all}" "$start$(printf ' %q' "${program[@]}" "${arguments[@]}")"
  [[ $worker != all ]] || worker=0
  echo "Its log: $(dry_run=yes; logs)" >&2
}

resume() {
  read_state SUSPENDED
  while [[ $state == SUSPENDING || $state == DELETING ]]; do
    echo "$slice is $state; waits." >&2
    sleep "$poll"
    read_state SUSPENDED
  done
  case $state in
    SUSPENDED | FAILED)
      delete
      create
      ;;
    MISSING) create ;;  # a resume was stopped between the two
  esac
  run
}

status() {
  queued describe '--format=value(state.state)'
  # shellcheck disable=SC2016  # their names, not ours
  on all 'echo "$(hostname): $(systemctl is-active mixer)"'
}

logs() {
  on "${worker:-0}" 'sudo journalctl --unit=mixer --output=cat --lines=100 --follow'
}

stop() { on all 'sudo systemctl stop mixer'; }

action=${1-} slice=${2-}
case $action in create | run | resume | status | logs | stop | delete) ;; *) usage ;; esac
[[ $slice =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || usage
shift 2
join_flags "zone project type runtime setup worker poll" "$@"
set -- "${joined[@]}"

type="" runtime="" tier="" setup="" worker="" poll=30 dry_run="" zone="" where=()
while [[ $# -gt 0 && $1 != -- ]]; do
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
    *) usage ;;
  esac
  shift
done
[[ $zone ]] || usage
where=("$zone" "${where[@]}")
cd "$(dirname "$0")/.."
case $action in create | resume) [[ $type ]] || usage ;; esac
case $type in
  v5litepod-*) runtime=${runtime:-v2-alpha-tpuv5-lite} ;;
  v5p-*) runtime=${runtime:-v2-alpha-tpuv5} ;;
  v6e-*) runtime=${runtime:-v2-alpha-tpuv6e} ;;
  *) runtime=${runtime:-tpu-ubuntu2204-base} ;;
esac
case $action in run | resume)
  [[ $# -gt 1 ]] || usage
  select_program "${@:2}" || usage
  case $workdir in
    "" | /* | gs://*) ;;
    *) fail "--workdir has to begin with gs:// or /: anything else lies in the machines' checkout, which the next run replaces." ;;
  esac
  [[ -z $config ]] || git cat-file -e "HEAD:${config%%:*}" 2>/dev/null ||
    fail "The commit has no recipe ${config%%:*}: name one of its files, and commit new files."
  [[ -z $(git status --porcelain --untracked-files=no) ]] ||
    fail "The checkout has uncommitted changes: commit them, so that provenance.json names the code of the run."
  check_recipe
  ;;
esac
[[ $dry_run || -x $(command -v gcloud) ]] ||
  fail "There is no gcloud on this machine: install Google Cloud's command line."
"$action"
