#!/usr/bin/env bash
# A study on a Ray cluster of machines that share the clone's folder: a cell is a task and has a machine for itself.
#
#   experiments/launch/ray.sh head                on the first machine; prints its address
#   experiments/launch/ray.sh worker 10.0.0.1     on each of the others; they may come and go
#   experiments/launch/ray.sh study --losses cross_entropy focal,gamma=2 --dataset cifar10 --workdir runs/losses
#   experiments/launch/ray.sh stop                on each machine, in the end
#
# Only who has the cluster's token may run code on it: `.venv/bin/ray get-auth-token --generate`, once, leaves one in
# ~/.ray/auth_token, of which machines with another home need a copy.
#
# On one machine `ablate.py --executor ray` alone is enough. A cluster that is there already (KubeRay, `ray up`, Slurm):
# set RAY_ADDRESS, or start the last command there by `ray job submit --working-dir .` (of ray[default]),
# which also brings the clone.
set -euo pipefail
export RAY_AUTH_MODE=token

bin=$(dirname "${PYTHON:-.venv/bin/python}")
case ${1:-} in
  head) "$bin/ray" start --head --port=6379 --disable-usage-stats ;;
  worker) "$bin/ray" start --address="$2:6379" --disable-usage-stats ;;
  study) shift && RAY_ADDRESS=${RAY_ADDRESS:-auto} "$bin/python" experiments/ablate.py --executor ray "$@" ;;
  stop) "$bin/ray" stop ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
