#!/usr/bin/env bash
# One run over several nodes: a process for each GPU, as JAX has it under Slurm, which tells it who the others are.
#
#   sbatch --nodes=4 experiments/launch/slurm_train.sh --dataset cifar10 --model cnn --batch-size 1024 --workdir runs/wide
#
# from the clone, with its .venv and --workdir on a file system of all nodes. The batch is shared out over the devices.
#SBATCH --job-name=train
#SBATCH --time=08:00:00
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -uo pipefail

# Without --kill-on-bad-exit the others would wait for a process that is gone.
srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" experiments/train.py "$@"
status=$?
if [[ $status == 75 ]]; then # saved and stopped
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
