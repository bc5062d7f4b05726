#!/bin/bash
# Trains one experiment on a TPU pod slice: the same command on each of its hosts, which find each
# other. After launch/tpu/setup.sh:
#
#     TPU=pod ZONE=us-central2-b launch/tpu/train.sh \
#         --config=experiments/ml1m.py:recgrela --workdir=/mnt/shared/runs/ml1m \
#         --config.data.folder=/mnt/shared/data/ml-1m-times --config.data.batch_size=32
#
# The devices, here a slice of 32 chips, must divide the batch. The workdir and the data must be
# folders that all hosts see (Filestore, or a bucket that is mounted). The hosts' output comes here:
# start it in tmux. To stop a run so that it saves:
#
#     gcloud compute tpus tpu-vm ssh $TPU --zone=$ZONE --worker=all \
#         --command='pkill -TERM -f [l]aunch.train'
#
# A slice that was preempted must be made and set up again; the same command then goes on with the run.

set -euo pipefail

: "${TPU:?set TPU to the name of the TPU VM}" "${ZONE:?set ZONE to its zone}"

# A preempted host is given 30 seconds.
GRACE=20

# Each argument as a remote shell must be given it.
printf -v arguments ' %q' --distributed=auto --grace="$GRACE" "$@"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="cd linseqrec && exec .venv/bin/python -m launch.train$arguments"
