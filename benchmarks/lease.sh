#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Measures on one GPU, in about ten minutes, all that the notes still lack of an
# H200, the most wanted first:
#
#   benchmarks/lease.sh [RESULTS] [checkout of the authors' code]
#
# Each part writes its rows to RESULTS, by default results/lease, as it goes.
# After LIMIT seconds it ends; a second call goes on with the missing cells.
results=${1:-results/lease}
authors=$2
end=$((SECONDS + ${LIMIT:-580}))

run() {
  echo "== $*"
  timeout --signal=INT $((end > SECONDS ? end - SECONDS : 1)) \
    python3 -m "$@" --results="$results"
}

step() {
  run benchmarks.step --passes=training --rounds=1 --products=8192,16384 \
    ${authors:+--authors="$authors"} "$@"
}

run benchmarks.kernels --models=Mixer-S/16,Mixer-B/16
run benchmarks.kernels --models=Mixer-S/16,Mixer-B/16,Mixer-L/16 --time
step --models=Mixer-S/16 --batches=128 --dtype=bfloat16 \
  --implementations=ours,ours-layers,ours-mosaic,timm,authors
step --models=Mixer-B/16,Mixer-L/16 --batches=128 --dtype=bfloat16 \
  --implementations=ours,ours-layers,ours-mosaic,ours-remat
step --models=Mixer-B/16 --batches=256,512,1024 --dtype=bfloat16 \
  --implementations=ours,ours-remat
# The authors' code as it is, in float32.
step --models=Mixer-L/16 --batches=128 --dtype=float32 --implementations=authors
