#!/usr/bin/env bash
# A workload on TPUs of a GKE cluster, by xpk (pip install xpk).
#
#   experiments/launch/xpk.sh
#
# Not run on GKE, nor with xpk: its flags are those of xpk's documents. The command itself was run
# as two processes on one machine, by local.sh.
#
# Set the variables below, here or in the environment. STORAGE was attached to the cluster before,
# by `xpk storage attach` with --type=gcpfilestore or gcsfuse, and is mounted where WORKDIR lies:
# all hosts must see it. If a host fails or is preempted, GKE starts the workload anew, RESTARTS
# times at most, and it goes on from the last checkpoint.

set -euo pipefail

CLUSTER=${CLUSTER:-my-cluster}
PROJECT=${PROJECT:-my-project}
ZONE=${ZONE:-europe-west4-b}
WORKLOAD=${WORKLOAD:-diffax-cifar10}
TYPE=${TYPE:-v5litepod-32}
IMAGE=${IMAGE:-docker.io/library/python:3.12-bookworm}
REPO=${REPO:-https://github.com/OWNER/diffax.git}
STORAGE=${STORAGE:-my-storage}
WORKDIR=${WORKDIR:-/mnt/share/runs/cifar10}
DATA=${DATA:-/mnt/share/tensorflow_datasets} # prepared beforehand; see README.md
RESTARTS=${RESTARTS:-50}
# With `exec`, so that SIGTERM comes to the run and not to a shell.
COMMAND=${COMMAND:-"git clone $REPO diffax && cd diffax && pip install 'jax[tpu]' . && \
exec diffax train --config=configs/cifar10.py --workdir=$WORKDIR \
--config.data.data_dir=$DATA --config.parallel.multihost=true --config.parallel.fsdp=4 \
--config.training.batch_size=512 --config.training.checkpoint_every=1000"}

xpk workload create --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" \
  --workload="$WORKLOAD" --tpu-type="$TYPE" --num-slices=1 --docker-image="$IMAGE" \
  --storage="$STORAGE" --max-restarts="$RESTARTS" --command="$COMMAND"

echo "xpk workload list --cluster=$CLUSTER --project=$PROJECT --zone=$ZONE   tells how it goes"
