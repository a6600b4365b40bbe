#!/usr/bin/env bash
# One run on a Cloud TPU slice of any size, at the spot price, from the clone on your own machine.
#
#   export NAME=cnnlab ZONE=us-west4-a TYPE=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite BUCKET=gs://my-bucket
#   experiments/launch/gcloud_tpu.sh run --dataset cifar10 --batch-size 1024
#   experiments/launch/gcloud_tpu.sh fetch      the run folder, to runs/
#
# `run` makes the slice, installs the clone and trains. When the slice is taken away it makes another, where the run
# resumes from its last checkpoint in the bucket and finds what was compiled and decoded there; at most TRIES slices. It
# ends with the run: status 0, or 2 where another try would find the same, or that of the third failure on a slice that
# was still there. Then, and after Ctrl-C, it deletes the slice, which costs until then. The same, a step each:
#
#   experiments/launch/gcloud_tpu.sh create     queue for the slice and wait for it
#   experiments/launch/gcloud_tpu.sh install    copy the clone to every worker and install it
#   experiments/launch/gcloud_tpu.sh train --dataset cifar10 --batch-size 1024
#   experiments/launch/gcloud_tpu.sh delete
#
# RUNTIME: v6e v2-alpha-tpuv6e, v5p v2-alpha-tpuv5, v4 tpu-ubuntu2204-base. Needs gcloud, a project with TPU quota, and
# a bucket that the TPU's service account may write.
set -euo pipefail

NAME=${NAME:-cnnlab} ZONE=${ZONE:-us-west4-a} TYPE=${TYPE:-v5litepod-16} RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
TRIES=${TRIES:-20} PAUSE=${PAUSE:-30} # seconds between looks at the queue

# In `a && b` bash ignores -e, so the steps are chained by hand.

everywhere() { # run a command on all workers of the slice; the status of the first that fails, 255 where ssh did
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

state() { # of the request in the queue; empty where there is none
  gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)' 2>/dev/null || true
}

taken() { # whether the slice was taken away; its machines know before the queue does
  local machines
  machines=$(gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" --format='value(state)' 2>/dev/null || true)
  [[ $(state) == SUSPEND* || $machines == PREEMPTED ]]
}

create() {
  gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
    --accelerator-type="$TYPE" --runtime-version="$RUNTIME" --spot || return
  while true; do
    case $(state) in
      ACTIVE) return ;;
      FAILED | SUSPEND* | "") return 1 ;; # it will never be
    esac
    sleep "$PAUSE"
  done
}

install() { # what git knows, not the environments and the runs
  git archive --format=tar.gz -o /tmp/cnnlab.tar.gz HEAD &&
    gcloud compute tpus tpu-vm scp /tmp/cnnlab.tar.gz "$NAME":cnnlab.tar.gz --zone="$ZONE" --worker=all &&
    everywhere "mkdir -p cnnlab && tar xzf cnnlab.tar.gz -C cnnlab" &&
    # The images' own Python is 3.10, one too old.
    everywhere "python3 -m pip install -q --user uv && cd cnnlab && ~/.local/bin/uv venv -q --python 3.12 --seed .venv" &&
    everywhere "cd cnnlab && .venv/bin/pip install -q -c .ci/constraints.txt -e '.[tpu,gcs]'"
}

train() { # every worker runs the same command; JAX learns from the TPU who the others are
  local flags
  flags="--workdir $BUCKET/run --cache $BUCKET/cache $(printf '%q ' "$@")"
  everywhere "cd cnnlab && .venv/bin/python experiments/train.py $flags"
}

run() {
  local status failures=0 try
  if [[ -z ${BUCKET:-} || -n $(state) ]]; then
    echo "error: BUCKET is not set, or there is a slice $NAME: delete it, or choose another NAME" >&2
    exit 2
  fi
  trap 'exit 130' INT # whatever gcloud makes of it
  trap 'delete || echo "error: $NAME was not deleted, and may cost" >&2' EXIT
  for ((try = 1; try <= TRIES; try++)); do
    if ((try > 1)); then
      echo "slice $((try - 1)) of $TRIES ended with status $status" >&2
      delete || true
      sleep "$PAUSE"
    fi
    status=0
    { create && install && train "$@"; } || status=$?
    [[ $status != 0 && $status != 2 ]] || break
    # 75: told to go, and saved; 255: the connection was lost
    if [[ $status != 75 && $status != 255 ]] && ! taken && ((++failures == 3)); then
      break
    fi
  done
  exit "$status"
}

fetch() {
  mkdir -p runs && gcloud storage cp --recursive "$BUCKET/run" runs/
}

delete() {
  gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
}

case ${1:-} in
  run | create | install | train | fetch | delete) "$@" ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
