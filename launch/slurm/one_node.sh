#!/bin/bash
# Starts SLURM with this machine as its only node, to try train.sh and
# `launch.sweep --executor=slurm`, or to run tests/launch/test_slurm.py, which needs SLURM.
#
# Run it as root on Debian, after `apt-get install slurm-wlm`. It replaces /etc/slurm/slurm.conf.

set -eu

node=$(hostname -s)
cat > /etc/slurm/slurm.conf <<EOF
ClusterName=one
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
StateSaveLocation=/var/spool/slurmctld
SlurmctldPidFile=/run/slurmctld.pid
SlurmctldLogFile=/var/log/slurmctld.log
SlurmdSpoolDir=/var/spool/slurmd
SlurmdPidFile=/run/slurmd.pid
SlurmdLogFile=/var/log/slurmd.log
# Does not use cgroups, because a container may not have them.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# SLURM queues a preempted job again.
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
EOF

mkdir -p /var/spool/slurmctld /var/spool/slurmd /run/munge
chown munge /run/munge
pgrep -x munged > /dev/null || runuser -u munge -- munged
pgrep -x slurmctld > /dev/null || slurmctld
sleep 2
pgrep -x slurmd > /dev/null || slurmd
sleep 2
sinfo
