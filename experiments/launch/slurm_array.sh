#!/usr/bin/env bash
# A study as a Slurm job array: task i of n trains every n-th cell, into one folder that all nodes see.
#
#   sbatch --array=0-3 experiments/launch/slurm_array.sh --losses cross_entropy focal,gamma=2 --dataset cifar10 \
#     --label-noise 0 0.4 --workdir runs/losses
#
# from the clone, with its .venv on a file system of all nodes. The task that finishes last writes the report. A task
# that is preempted or out of time saves its cell and is queued again; one that is killed resumes where it had saved.
#SBATCH --job-name=study
#SBATCH --time=08:00:00
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
# A GPU each: add --gpus-per-task=1. --signal: two minutes before the end, to what srun started, not to this script.
set -uo pipefail

srun --ntasks=1 "${PYTHON:-.venv/bin/python}" experiments/ablate.py \
  --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "$@"
status=$?
if [[ $status == 75 ]]; then # saved and stopped
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
