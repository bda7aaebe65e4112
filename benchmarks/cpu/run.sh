#!/usr/bin/env bash
# What the CPU implementations of depthwise convolutions gain here, against PyTorch's own: training
# steps of FFNet-2, and single convolutions. 10 to 15 minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
threads=${THREADS:-1}
out=${OUT:-benchmarks/cpu}
[ "$threads" = 1 ] && clock=--cpu-time || clock=
step() {
    python tools/benchmark.py speed ffnet2 --train --batch-size 2 --size 256 --rounds "${ROUNDS:-10}" \
        --device cpu --threads "$threads" $clock "$@"
}
step --forms plain,eager --out "$out/step_nchw"
step --forms channels_last+plain,channels_last --out "$out/step_nhwc"
PYTHONPATH=. python benchmarks/cpu/kernels.py --threads "$threads" --out "$out"
