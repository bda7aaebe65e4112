#!/usr/bin/env bash
# Test with several GPUs; on a machine without any, with several CPU processes.
#
#     tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
#
# On several machines, call it on each with the same NNODES, MASTER_ADDR and PORT, and its own
# NODE_RANK (0, 1, ...). PYTHON names the interpreter.
set -euo pipefail

usage="usage: $0 CONFIG CHECKPOINT GPUS [options of test.py]"
config=${1:?$usage}
checkpoint=${2:?$usage}
gpus=${3:?$usage}
shift 3

place=(--standalone)
if [ "${NNODES:-1}" -gt 1 ]; then
    place=(--nnodes "$NNODES" --node-rank "${NODE_RANK:?on several machines}"
        --master-addr "${MASTER_ADDR:?on several machines}" --master-port "${PORT:-29500}")
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${place[@]}" --nproc-per-node "$gpus" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
