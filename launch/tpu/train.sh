#!/bin/bash
# Trains one experiment on a TPU pod slice. It starts the same command on each host; JAX connects
# the hosts. Run it after launch/tpu/setup.sh:
#
#     TPU=pod ZONE=us-central2-b launch/tpu/train.sh \
#         --config=experiments/ml1m.py:recgrela --workdir=/mnt/shared/runs/ml1m \
#         --config.data.folder=/mnt/shared/data/ml-1m-times --config.data.batch_size=32
#
# The number of devices, here a slice of 32 chips, must divide the batch size. All hosts must see
# the folders of the workdir and the data (Filestore or a mounted bucket). This terminal shows the
# hosts' output, so start the script in tmux. To stop a run so that it saves:
#
#     gcloud compute tpus tpu-vm ssh $TPU --zone=$ZONE --worker=all \
#         --command='pkill -TERM -f [l]aunch.train'
#
# After a preemption, create the slice again, run launch/tpu/setup.sh, and run the same command to
# continue the training.

set -euo pipefail

: "${TPU:?set TPU to the name of the TPU VM}" "${ZONE:?set ZONE to its zone}"

# A preempted host has 30 seconds to end.
GRACE=20

# The hosts' shells read the command once more, so each argument is quoted.
printf -v arguments ' %q' --distributed=auto --grace="$GRACE" "$@"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="cd linseqrec && exec .venv/bin/python -m launch.train$arguments"
