#!/usr/bin/env bash
# Train with several GPUs; on a machine without any, with several CPU processes.
#
#     tools/dist_train.sh CONFIG GPUS [options of train.py]
#
# On several machines, call it on each with the same NNODES, MASTER_ADDR and PORT, and its own
# NODE_RANK (0, 1, ...). PYTHON names the interpreter.
set -euo pipefail

usage="usage: $0 CONFIG GPUS [options of train.py]"
config=${1:?$usage}
gpus=${2:?$usage}
shift 2

place=(--standalone)
if [ "${NNODES:-1}" -gt 1 ]; then
    place=(--nnodes "$NNODES" --node-rank "${NODE_RANK:?on several machines}"
        --master-addr "${MASTER_ADDR:?on several machines}" --master-port "${PORT:-29500}")
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${place[@]}" --nproc-per-node "$gpus" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
