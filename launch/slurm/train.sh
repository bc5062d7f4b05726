#!/bin/bash
# Trains one experiment on the GPUs of several nodes. SLURM queues the job again after a preemption
# or the time limit, and the training continues. Start it in the repository's root. Give the options
# of sbatch that differ from those below, then the flags of launch.train:
#
#     sbatch --nodes=4 --partition=gpu launch/slurm/train.sh \
#         --config=experiments/ml1m.py:recgrela --workdir=/shared/runs/ml1m \
#         --config.data.batch_size=32
#
# The number of devices, here 4 nodes x 8 GPUs, must divide the batch size. All nodes must see the
# folders of the repository, the workdir and the data. Two variables change the script:
# $PYTHON is the Python interpreter on the nodes (default: .venv/bin/python).
# $MAX_RESTARTS is how often the job may be queued again (default: 100).
#
#SBATCH --job-name=linseqrec
#SBATCH --nodes=2
# One process per node uses all GPUs of the node.
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.log
# A job that is queued again appends to its log.
#SBATCH --open-mode=append
# SLURM queues the job again, with the same id, after a preemption or the failure of a node.
#SBATCH --requeue
# SLURM sends SIGTERM to the tasks, not to this shell, 120 s before the time limit. This must be more
# than launch.train's --grace below. Before a preemption, the partition's GraceTime replaces the
# 120 s. If GraceTime is shorter than --grace, lower --grace; otherwise SLURM may kill the tasks
# before they have saved.
#SBATCH --signal=TERM@120

set -u

GRACE=90
PREEMPTED=75 # launch.train's exit code if the same command has to run again

if [[ -z ${SLURM_JOB_ID:-} ]]; then
    echo "$0 is the script of a SLURM job: start it with sbatch $0" >&2
    exit 1
fi

# By default, JAX gives a SLURM task only the GPU with the number of the task's local rank.
JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((${SLURM_GPUS_ON_NODE:-1} - 1)))
export JAX_LOCAL_DEVICE_IDS
# All tasks share this folder of compiled programs. Only the user may access it, because its files
# are native code.
JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/linseqrec/slurm}
export JAX_COMPILATION_CACHE_DIR
(umask 077 && mkdir -p "$JAX_COMPILATION_CACHE_DIR")

# A preemption may send SIGTERM to this shell too, but the shell must live to queue the job again.
# It ignores the signal and does not trap it: a trap interrupts `wait`, and bash then loses the exit
# code of a process that ends at that moment. The tasks get their own SIGTERM.
trap '' TERM

# --distributed=auto: JAX reads the coordinator and each task's number from SLURM's variables.
# --wait=300: if one task ends because of an error or a failed node, srun ends the others 300 s
# later. They would wait forever for that task in a collective operation.
(
    trap - TERM
    exec srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --wait=300 \
        "${PYTHON:-.venv/bin/python}" -m launch.train --distributed=auto --grace="$GRACE" "$@"
)
code=$?

if ((code == PREEMPTED)); then
    if ((${SLURM_RESTART_COUNT:-0} >= ${MAX_RESTARTS:-100})); then
        echo "the job was queued again ${SLURM_RESTART_COUNT} times (MAX_RESTARTS): it ends here" >&2
    else
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"
