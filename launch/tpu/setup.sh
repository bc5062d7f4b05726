#!/bin/bash
# Copies this repository to every host of a TPU pod slice and installs it there. From its root:
#
#     TPU=pod ZONE=us-central2-b launch/tpu/setup.sh
#
# gcloud must be logged in, with a default project. $PYTHON is the hosts' Python 3.11 or newer
# (python3). Run it again to bring changes over.

set -euo pipefail

: "${TPU:?set TPU to the name of the TPU VM}" "${ZONE:?set ZONE to its zone}"

archive=$(mktemp --suffix=.tar)
trap 'rm -f "$archive"' EXIT
# What is committed, and nothing that lies about.
git archive --output="$archive" HEAD

gcloud compute tpus tpu-vm scp "$archive" "$TPU:linseqrec.tar" --zone="$ZONE" --worker=all
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
    set -e
    mkdir -p linseqrec
    tar -xf linseqrec.tar -C linseqrec
    cd linseqrec
    [ -d .venv ] || ${PYTHON:-python3} -m venv .venv
    .venv/bin/pip install -q -e '.[tpu]'"
