#!/usr/bin/env bash
# Test on a Slurm cluster.
#
#     GPUS=8 tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]
#
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS are as in mmdet; PYTHON names the
# interpreter.
set -euo pipefail

usage="usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]"
partition=${1:?$usage}
job=${2:?$usage}
config=${3:?$usage}
checkpoint=${4:?$usage}
shift 4

gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
if [ "$per_node" -gt "$gpus" ]; then per_node=$gpus; fi
# shellcheck disable=SC2086 # SRUN_ARGS are several words
exec srun -p "$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" \
    --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} "${PYTHON:-python}" -u "$(dirname "$0")/test.py" "$config" "$checkpoint" \
    --launcher slurm "$@"
