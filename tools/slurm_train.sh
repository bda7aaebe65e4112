#!/usr/bin/env bash
# Train on a Slurm cluster.
#
#     GPUS=16 tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]
#
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS are as in mmdet; PYTHON names the
# interpreter. A job that is preempted goes on by itself, where the cluster requeues such jobs:
#
#     sbatch -p PARTITION -n 8 --gres=gpu:8 -c 5 --requeue --signal=TERM@120 \
#         --wrap 'tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR --resume'
set -euo pipefail

usage="usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]"
partition=${1:?$usage}
job=${2:?$usage}
config=${3:?$usage}
work_dir=${4:?$usage}
shift 4

gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
if [ "$per_node" -gt "$gpus" ]; then per_node=$gpus; fi
# shellcheck disable=SC2086 # SRUN_ARGS are several words
exec srun -p "$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" \
    --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$config" \
    --work-dir "$work_dir" --launcher slurm "$@"
