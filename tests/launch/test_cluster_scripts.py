"""The scripts that start a run on many hosts, tested with fake cluster programs."""

import os
import re
import shlex
import shutil
import signal
import subprocess

import pytest
from jax.sharding import AbstractMesh

from launch.flags import load_experiment
from linseqrec.config_fields import parse
from linseqrec.config_json import override
from linseqrec.sharding import DATA, MODEL, SEQUENCE, check_rows
from linseqrec.training.preemption import EXIT_CODE
from tests.launch.programs import ROOT

SCRIPTS = sorted(ROOT.glob("launch/slurm/*.sh")) + sorted(ROOT.glob("launch/tpu/*.sh"))
# A fake srun: runs the command for two tasks, one after the other.
SRUN = """
echo "srun $*" >> "$CALLS"
while [[ $1 == --* ]]; do shift; done
for SLURM_PROCID in 0 1; do export SLURM_PROCID; "$@" || code=$?; done
exit "${code:-0}"
"""
SCONTROL = 'echo "scontrol $*" >> "$CALLS"'
# A fake gcloud: runs the command in the shells of two hosts, one after the other.
GCLOUD = """
echo "gcloud ${*%%--command*}" >> "$CALLS"
for last; do true; done
cd "$HOST"
for SLURM_PROCID in 0 1; do export SLURM_PROCID; bash -c "${last#--command=}"; done
"""
PYTHON = """
echo "task $SLURM_PROCID gpus ${JAX_LOCAL_DEVICE_IDS:-}" >> "$CALLS"
printf '<%s>' "$@" >> "$CALLS"; echo >> "$CALLS"
[[ -z ${SIGNAL_SHELL:-} ]] || kill -TERM "$SCRIPT"
[[ -z ${SIGNAL_TASK:-} ]] || kill -TERM $$
exit "${CODE:-0}"
"""


@pytest.fixture
def start(tmp_path):
    """A function that runs a script; returns its exit code, the calls of programs, and stderr."""
    host_python = tmp_path / "host" / "linseqrec" / ".venv" / "bin" / "python"
    host_python.parent.mkdir(parents=True)
    programs = {"srun": SRUN, "scontrol": SCONTROL, "gcloud": GCLOUD, "python": PYTHON}
    for path, body in [
        *((tmp_path / name, body) for name, body in programs.items()),
        (host_python, PYTHON),
    ]:
        path.write_text(f"#!/bin/bash\n{body}")
        path.chmod(0o755)

    def run(script, *arguments, **variables):
        calls = tmp_path / "calls"
        calls.write_text("")
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "HOST": str(tmp_path / "host"),
            "PYTHON": str(tmp_path / "python"),
            **variables,
        }
        # SCRIPT is the process id of the script's shell, so that a task can send it a signal.
        process = subprocess.run(
            ["bash", "-c", 'export SCRIPT=$$; exec bash "$@"', "-", ROOT / script, *arguments],
            env=environment,
            capture_output=True,
            text=True,
        )
        return process.returncode, calls.read_text().splitlines(), process.stderr

    return run


JOB = {"SLURM_JOB_ID": "17", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "16"}
ARGUMENTS = ["--config=experiments/a.py", "--workdir=/shared/a run", "--config.data.length=$5"]
COMMAND = "<-m><launch.train><--distributed=auto><--grace={}>" + "".join(
    f"<{argument}>" for argument in ARGUMENTS
)


def test_each_node_runs_one_task_with_all_gpus(start):
    code, calls, errors = start("launch/slurm/train.sh", *ARGUMENTS, **JOB)
    assert code == 0, errors
    assert calls[0].startswith("srun --ntasks-per-node=1 --cpus-per-task=16 --wait=300 ")
    command = COMMAND.format(90)
    assert calls[1:] == ["task 0 gpus 0,1,2,3", command, "task 1 gpus 0,1,2,3", command]


@pytest.mark.parametrize(
    ("variables", "queued_again"),
    [
        ({"CODE": str(EXIT_CODE)}, True),
        ({"CODE": str(EXIT_CODE), "SIGNAL_SHELL": "1"}, True),
        ({"CODE": str(EXIT_CODE), "SLURM_RESTART_COUNT": "3", "MAX_RESTARTS": "3"}, False),
        ({"CODE": "1"}, False),
        ({"CODE": "0", "SIGNAL_SHELL": "1"}, False),
    ],
    ids=[
        "preempted",
        "preempted, with a signal to the shell",
        "preempted too often",
        "failed",
        "finished, with a signal to the shell",
    ],
)
def test_only_a_preempted_job_is_queued_again(start, variables, queued_again):
    code, calls, _ = start("launch/slurm/train.sh", **JOB, **variables)
    assert code == int(variables["CODE"])
    assert [call for call in calls if call.startswith("task")] == [
        "task 0 gpus 0,1,2,3",
        "task 1 gpus 0,1,2,3",
    ]
    assert (calls[-1] == "scontrol requeue 17") == queued_again
    assert sum(call.startswith("scontrol") for call in calls) == queued_again


def test_the_tasks_receive_the_sigterm_that_the_shell_ignores(start):
    code, _, _ = start("launch/slurm/train.sh", **JOB, SIGNAL_TASK="1")
    assert code == 128 + signal.SIGTERM


def test_slurm_sends_sigterm_longer_before_the_limit_than_the_grace():
    text = (ROOT / "launch/slurm/train.sh").read_text()
    (seconds_before,) = re.findall(r"^#SBATCH --signal=TERM@(\d+)$", text, re.MULTILINE)
    (grace,) = re.findall(r"^GRACE=(\d+)$", text, re.MULTILINE)
    assert int(grace) < int(seconds_before)
    assert "#SBATCH --requeue\n" in text
    # SLURM ignores options after the first command.
    assert text.rindex("#SBATCH") < text.index("\nset -u")


def test_each_host_of_a_pod_runs_the_command(start):
    code, calls, errors = start("launch/tpu/train.sh", *ARGUMENTS, TPU="pod", ZONE="here")
    assert code == 0, errors
    command = COMMAND.format(20)
    assert calls == [
        "gcloud compute tpus tpu-vm ssh pod --zone=here --worker=all ",
        "task 0 gpus ",
        command,
        "task 1 gpus ",
        command,
    ]


def test_a_missing_variable_is_an_error_that_says_what_to_do(start):
    code, calls, errors = start("launch/tpu/train.sh", TPU="pod", ZONE="")
    assert code != 0 and "set ZONE to its zone" in errors and not calls
    code, calls, errors = start("launch/slurm/train.sh", SLURM_JOB_ID="")
    assert code == 1 and "start it with sbatch" in errors and not calls


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_scripts_pass_the_syntax_checkers(script):
    checkers = [["bash", "-n"], *([["shellcheck"]] if shutil.which("shellcheck") else [])]
    for checker in checkers:
        process = subprocess.run([*checker, script], capture_output=True, text=True)
        assert process.returncode == 0, process.stdout + process.stderr


def cluster_commands():
    """The devices and arguments of each training command that the page or a script shows."""
    defaults = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", script_text("slurm"), re.MULTILINE))
    for source, text in {
        "page": (ROOT / "docs" / "run_on_a_cluster.md").read_text(),
        "slurm": re.sub("^# *", "", script_text("slurm"), flags=re.MULTILINE),
        "tpu": re.sub("^# *", "", script_text("tpu"), flags=re.MULTILINE),
    }.items():
        for line in text.replace("\\\n", " ").splitlines():
            if "launch/slurm/train.sh --" in re.sub(" +", " ", line):
                options = defaults | dict(re.findall(r"--(nodes|gpus-per-node)=(\d+)", line))
                devices = int(options["nodes"]) * int(options["gpus-per-node"])
            elif "launch/tpu/train.sh --" in re.sub(" +", " ", line):
                (chips,) = re.findall(r"of (\d+) chips", text)
                devices = int(chips)
            else:
                continue
            arguments = shlex.split(line.partition("/train.sh")[2])
            yield pytest.param(devices, arguments, id=f"{source}-{devices}")


def script_text(cluster):
    return (ROOT / "launch" / cluster / "train.sh").read_text()


COMMANDS = list(cluster_commands())


def test_the_readme_and_the_scripts_show_four_cluster_commands():
    assert [command.id for command in COMMANDS] == [
        "page-32",
        "page-32",
        "slurm-32",
        "tpu-32",
    ]


@pytest.mark.parametrize(("devices", "arguments"), COMMANDS)
def test_the_batch_size_of_a_shown_command_fits_its_devices(devices, arguments):
    flags = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    template = load_experiment(ROOT / flags["config"])
    given = {name.removeprefix("config."): value for name, value in flags.items() if "." in name}
    values = {field: parse(text, field, template) for field, text in given.items()}
    experiment = override(template, values)
    model = experiment.mesh.model
    sequence = experiment.mesh.sequence
    shape = (devices // (sequence * model), sequence, model)
    mesh = AbstractMesh(shape, (DATA, SEQUENCE, MODEL))
    check_rows(mesh, experiment.data.batch_size, experiment.training.accumulation_steps)
