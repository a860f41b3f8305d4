#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Starts a run on Kubernetes with JobSet (gke.yaml): on a slice of a TPU,
#   launch/gke.sh NAME --image=IMAGE --claim=CLAIM \
#     --accelerator=tpu-v5p-slice --topology=2x2x4 \
#     -- --config=configs/pretrain_i21k.py:B/16 --workdir=/runs/b16
# or on hosts with GPUs: --accelerator=nvidia-h100-80gb --hosts=4 --chips=8.
# CLAIM, a PersistentVolumeClaim that all hosts can write to, is mounted at /runs.
# --dry_run prints the YAML instead.
set -euo pipefail

usage() {
  cat >&2 <<'TEXT'
usage: launch/gke.sh NAME --image=IMAGE --claim=CLAIM --accelerator=ACCELERATOR
         (--topology=2x2x4 [--chips=4] | --hosts=N --chips=8) [--dry_run]
         -- --config=CONFIG --workdir=(/runs/DIR | gs://BUCKET/DIR) [FLAG...]
--chips is how many a host has.
TEXT
  exit 2
}

fail() {
  echo "error: $*" >&2
  exit 2
}

name=${1-} image="" claim="" accelerator="" topology="" hosts="" chips=4 dry_run=""
[[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] || usage
shift
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    --image=?*) image=${1#*=} ;;
    --claim=?*) claim=${1#*=} ;;
    --accelerator=?*) accelerator=${1#*=} ;;
    --topology=?*) topology=${1#*=} ;;
    --hosts=?*) hosts=${1#*=} ;;
    --chips=?*) chips=${1#*=} ;;
    --dry_run) dry_run=yes ;;
    *) usage ;;
  esac
  shift
done
[[ ${1-} == -- && $image && $claim && $accelerator ]] || usage
shift
[[ " $* " == *" --config="* && " $* " == *" --workdir="* ]] || usage
[[ " $* " == *" --workdir=/runs/"* || " $* " == *" --workdir=gs://"* ]] ||
  fail "The run's folder must be in the claim, which is mounted at /runs, or in a bucket: --workdir=/runs/DIR or --workdir=gs://BUCKET/DIR."
[[ $chips =~ ^[1-9][0-9]*$ ]] || fail "--chips=$chips is not a number."

if [[ $accelerator == tpu-* ]]; then
  [[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ && -z $hosts ]] ||
    fail "$accelerator takes --topology=2x2x4 or the like, and no --hosts."
  all=$((${topology//x/*}))
  ((all < chips)) && chips=$all
  ((all % chips == 0)) ||
    fail "$chips chips a host do not divide the $all of --topology=$topology."
  hosts=$((all / chips))
  label=cloud.google.com/gke-tpu-accelerator resource=google.com/tpu
else
  [[ $hosts =~ ^[1-9][0-9]*$ && -z $topology ]] ||
    fail "$accelerator takes --hosts=N, and no --topology."
  label=cloud.google.com/gke-accelerator resource=nvidia.com/gpu
fi

# Machines of a slice may come one after the other.
arguments='"--wait=1800"'
for argument in "$@"; do
  argument=${argument//\\/\\\\}
  arguments+=", \"${argument//\"/\\\"}\""
done

yaml=$(grep -v '^ *#' "$(dirname "$0")/gke.yaml")
[[ $topology ]] || yaml=$(grep -v '{topology}' <<<"$yaml")
fill() {
  yaml=${yaml//"{$1}"/"$2"}  # quoted, since & would stand for what it replaces
}
fill name "$name"
fill image "$image"
fill claim "$claim"
fill accelerator_label "$label"
fill accelerator "$accelerator"
fill topology "$topology"
fill hosts "$hosts"
fill resource "$resource"
fill chips "$chips"
fill arguments "[$arguments]"  # last: in what users wrote nothing is replaced

if [[ $dry_run ]]; then
  echo "$yaml"
else
  [[ -x $(command -v kubectl) ]] || fail "There is no kubectl on this machine: install it."
  kubectl apply --filename=- <<<"$yaml"
fi
