#!/usr/bin/env bash
# One command for a machine with a GPU, about 7 minutes: whether the kernels and graphs are exact on
# this card, then how fast they are. torch with Triton, torchvision, mmengine and mmcv-lite are
# enough. `--device cpu --quick` runs all of it on a CPU with tiny sizes. Results: OUT, or this
# folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python}
out=${OUT:-benchmarks/gpu}
device=cuda
for ((i = 1; i < $#; i++)); do
    [ "${!i}" = --device ] && next=$((i + 1)) && device=${!next}
done
[ "$device" = cpu ] && export TRITON_INTERPRET=1
status=0
"$python" tools/dev/gpu_check.py --device "$device" --only graphs kernels --minutes 2 \
    --out "$out/checks_$device.json" || status=$?
"$python" benchmarks/gpu/speed.py --out "$out" "$@" || status=$?
exit $status
