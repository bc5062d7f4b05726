#!/bin/bash
# Copies this repository to every host of a TPU pod slice and installs it there. Run it in the
# repository's root, and again after each change that the hosts need:
#
#     TPU=pod ZONE=us-central2-b launch/tpu/setup.sh
#
# gcloud must be logged in and have a default project. The hosts need Python 3.11 or newer; $PYTHON
# is its name there (default: python3).

set -euo pipefail

: "${TPU:?set TPU to the name of the TPU VM}" "${ZONE:?set ZONE to its zone}"

archive=$(mktemp --suffix=.tar)
trap 'rm -f "$archive"' EXIT
# The archive contains the last commit, without uncommitted changes and other files.
git archive --output="$archive" HEAD

gcloud compute tpus tpu-vm scp "$archive" "$TPU:linseqrec.tar" --zone="$ZONE" --worker=all
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
    set -e
    mkdir -p linseqrec
    tar -xf linseqrec.tar -C linseqrec
    cd linseqrec
    [ -d .venv ] || ${PYTHON:-python3} -m venv .venv
    .venv/bin/pip install -q -e '.[tpu]'"
