#!/usr/bin/env bash
# One run on a Cloud TPU slice of any size, at the spot price: a step each, from the clone on your own machine.
#
#   export NAME=cnnlab ZONE=us-west4-a TYPE=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite BUCKET=gs://my-bucket
#   experiments/launch/gcloud_tpu.sh create     queue for the slice and wait for it
#   experiments/launch/gcloud_tpu.sh install    copy the clone to every worker and install it
#   experiments/launch/gcloud_tpu.sh train --dataset cifar10 --batch-size 1024
#   experiments/launch/gcloud_tpu.sh fetch      the run folder, to runs/
#   experiments/launch/gcloud_tpu.sh delete     it costs until then
#
# After a preemption: delete, create, install, train again; the run resumes from its last checkpoint in the bucket.
# RUNTIME: v6e v2-alpha-tpuv6e, v5p v2-alpha-tpuv5, v4 tpu-ubuntu2204-base. Needs gcloud, a project with TPU quota, and
# a bucket that the TPU's service account may write.
set -euo pipefail

NAME=${NAME:-cnnlab} ZONE=${ZONE:-us-west4-a} TYPE=${TYPE:-v5litepod-16} RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}

everywhere() { # run a command on all workers of the slice
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

create() {
  gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
    --accelerator-type="$TYPE" --runtime-version="$RUNTIME" --spot
  until [[ $(gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" \
    --format='value(state.state)') == ACTIVE ]]; do sleep 30; done
}

install() { # what git knows, not the environments and the runs
  git archive --format=tar.gz -o /tmp/cnnlab.tar.gz HEAD
  gcloud compute tpus tpu-vm scp /tmp/cnnlab.tar.gz "$NAME":cnnlab.tar.gz --zone="$ZONE" --worker=all
  everywhere "mkdir -p cnnlab && tar xzf cnnlab.tar.gz -C cnnlab"
  # The images' own Python is 3.10, one too old.
  everywhere "python3 -m pip install -q --user uv && cd cnnlab && ~/.local/bin/uv venv -q --python 3.12 --seed .venv"
  everywhere "cd cnnlab && .venv/bin/pip install -q -c .ci/constraints.txt -e '.[tpu,gcs]'"
}

train() { # every worker runs the same command; JAX learns from the TPU who the others are
  everywhere "cd cnnlab && .venv/bin/python experiments/train.py --workdir $BUCKET/run $(printf '%q ' "$@")"
}

fetch() {
  mkdir -p runs && gcloud storage cp --recursive "$BUCKET/run" runs/
}

delete() {
  gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
}

case ${1:-} in
  create | install | train | fetch | delete) "$@" ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
