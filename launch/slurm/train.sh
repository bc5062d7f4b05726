#!/bin/bash
# Trains one experiment on the GPUs of several nodes, and goes on with it however often it is
# stopped. From the repository's root, whatever differs from below first, then launch.train's flags:
#
#     sbatch --nodes=4 --partition=gpu launch/slurm/train.sh \
#         --config=experiments/ml1m.py:recgrela --workdir=/shared/runs/ml1m \
#         --config.data.batch_size=32
#
# The devices, here 4 nodes of 8 GPUs, must divide the batch. The repository, the workdir and the
# data must be folders that all nodes see. $PYTHON is the interpreter on the nodes
# (.venv/bin/python), $MAX_RESTARTS how often the job is queued again (100).
#
#SBATCH --job-name=linseqrec
#SBATCH --nodes=2
# One process a node drives all of its GPUs.
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.log
# The log goes on where the job does.
#SBATCH --open-mode=append
# A preempted job, or one whose node fails, is queued again, under the same id.
#SBATCH --requeue
# SIGTERM to the tasks, not to this shell, so long before the time limit. It must be more than
# launch.train's --grace below. Before a preemption the partition's GraceTime takes its place: where
# that is shorter, lower --grace with it, or the end comes before the save.
#SBATCH --signal=TERM@120

set -u

GRACE=90
PREEMPTED=75 # launch.train's exit code: saved, run the same command again

if [[ -z ${SLURM_JOB_ID:-} ]]; then
    echo "start it by sbatch: $0 is a job's script" >&2
    exit 1
fi

# JAX would give a task of SLURM the one GPU that has the task's local rank.
JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((${SLURM_GPUS_ON_NODE:-1} - 1)))
export JAX_LOCAL_DEVICE_IDS
# Where all tasks find what was compiled before. It is native code: in nobody else's reach.
JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/linseqrec/slurm}
export JAX_COMPILATION_CACHE_DIR
(umask 077 && mkdir -p "$JAX_COMPILATION_CACHE_DIR")

# A preemption may send SIGTERM to this shell as well, which must live to queue the job again. The
# tasks get their own. It is ignored, not trapped: a trap interrupts `wait`, and bash then loses the
# code of a process that ends at that moment.
trap '' TERM

# --distributed=auto: JAX reads the coordinator and each task's number from SLURM's variables.
# --wait: where one task ends (its node failed, or it met an error), the others, which would wait for
# it in a collective operation, end so many seconds later.
(
    trap - TERM
    exec srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --wait=300 \
        "${PYTHON:-.venv/bin/python}" -m launch.train --distributed=auto --grace="$GRACE" "$@"
)
code=$?

if ((code == PREEMPTED)); then
    if ((${SLURM_RESTART_COUNT:-0} >= ${MAX_RESTARTS:-100})); then
        echo "stopped and queued again ${SLURM_RESTART_COUNT} times: not again" >&2
    else
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"
