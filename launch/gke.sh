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
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
cd "$(dirname "$0")/.."

usage() {
  cat >&2 <<'TEXT'
usage: launch/gke.sh NAME --image=IMAGE --claim=CLAIM --accelerator=ACCELERATOR
         (--topology=2x2x4 [--chips=4] | --hosts=N --chips=8) [--dry_run]
         -- --config=CONFIG --workdir=(/runs/DIR | gs://BUCKET/DIR) [FLAG...]
-- eval FLAG..., -- sweep FLAG... or -- data ARGUMENT... runs that program.
--chips is the number of chips of a host.
TEXT
  exit 2
}

job=${1-} image="" claim="" accelerator="" topology="" hosts="" chips=4 dry_run=""
[[ $job =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] || usage
join_flags "image claim accelerator topology hosts chips" "${@:2}"
set -- "${joined[@]}"
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
[[ $# -gt 1 && $image && $claim && $accelerator ]] || usage
select_program "${@:2}" || usage
case $workdir in
  "" | /runs/* | gs://*) ;;
  *) fail "The run's folder must be in the claim, which is mounted at /runs, or in a bucket: --workdir=/runs/DIR or --workdir=gs://BUCKET/DIR." ;;
esac
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

check_recipe

# Machines of a slice may come one after the other.
case $name in train | eval) program+=(--wait=1800) ;; esac
words=""
for word in python "${program[@]}" "${arguments[@]}"; do
  word=${word//\\/\\\\}
  words+="${words:+, }\"${word//\"/\\\"}\""
done

yaml=$(grep -v '^ *#' launch/gke.yaml)
[[ $topology ]] || yaml=$(grep -v '{topology}' <<<"$yaml")
fill() {
  yaml=${yaml//"{$1}"/"$2"}  # quoted, since & would stand for the match
}
fill name "$job"
fill image "$image"
fill claim "$claim"
fill accelerator_label "$label"
fill accelerator "$accelerator"
fill topology "$topology"
fill hosts "$hosts"
fill resource "$resource"
fill chips "$chips"
fill command "[$words]"  # last: nothing is replaced in the user's arguments

if [[ $dry_run ]]; then
  echo "$yaml"
else
  [[ -x $(command -v kubectl) ]] || fail "There is no kubectl on this machine: install it."
  kubectl apply --filename=- <<<"${yaml%%$'\n---\n'*}" ||
    echo "The cluster's other pods can reach the ports of $job: kubectl could not make its NetworkPolicy. The run starts." >&2
  kubectl apply --filename=- <<<"${yaml#*$'\n---\n'}"
  echo "Its log: kubectl logs --follow --selector=jobset.sigs.k8s.io/jobset-name=$job,batch.kubernetes.io/job-completion-index=0" >&2
fi
