#!/usr/bin/env bash
# A slice of a TPU pod, by gcloud: every host of it runs the same command.
#
#   experiments/launch/tpu_pod.sh create|install|train|stop|delete
#
# Not run on a TPU, nor with gcloud: its flags are those of the documents of Cloud TPU. The command
# itself was run as two processes on one machine, by local.sh.
#
# Set the variables below, here or in the environment. WORKDIR must lie on a file system that all
# hosts see: here SHARE, an NFS share such as Filestore's, is mounted. Or it is of a bucket, as
# WORKDIR=gs://BUCKET/runs/cifar10, with the extra "gcs" of diffax installed. `train` waits for the
# run to end; given again, after `stop` or after the slice was preempted and created anew, it goes on
# where the run was.

set -euo pipefail

NAME=${NAME:-diffax}
ZONE=${ZONE:-europe-west4-b}
TYPE=${TYPE:-v5litepod-32}
VERSION=${VERSION:-v2-alpha-tpuv5-lite} # the software of the virtual machines; goes with TYPE
REPO=${REPO:-https://github.com/OWNER/diffax.git}
SHARE=${SHARE:-10.0.0.2:/share}
WORKDIR=${WORKDIR:-/mnt/share/runs/cifar10}
DATA=${DATA:-/mnt/share/tensorflow_datasets} # prepared beforehand; see README.md
COMMAND=${COMMAND:-"diffax train --config=configs/cifar10.py --workdir=$WORKDIR \
--config.data.data_dir=$DATA --config.parallel.multihost=true --config.parallel.fsdp=4 \
--config.training.batch_size=512 --config.training.checkpoint_every=1000"}

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

create() {
  gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" \
    --version="$VERSION"
}

# The machines' own Python may be too old; uv brings one along.
install() {
  on_all_hosts "set -e
    sudo apt-get update -q && sudo apt-get install -q -y nfs-common
    sudo mkdir -p /mnt/share
    mountpoint -q /mnt/share || sudo mount -t nfs $SHARE /mnt/share
    curl -LsSf https://astral.sh/uv/install.sh | sh
    test -d diffax || git clone $REPO diffax
    cd diffax
    ~/.local/bin/uv venv --clear --python 3.12 .venv
    ~/.local/bin/uv pip install --python .venv/bin/python 'jax[tpu]' '.[gcs]'"
}

train() {
  on_all_hosts "cd diffax && . .venv/bin/activate && exec $COMMAND"
}

# All hosts save the same step, and `train` ends.
stop() {
  on_all_hosts "pkill -TERM -f '[d]iffax train'"
}

delete() {
  gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE"
}

if ! [[ ${1:-} =~ ^(create|install|train|stop|delete)$ ]]; then
  echo "usage: $0 create|install|train|stop|delete" >&2
  exit 2
fi
"$1"
