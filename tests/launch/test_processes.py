"""A run of two processes, stopped and resumed, gives the results of a run of one process."""

import json
import signal
import socket
import time

import pytest

from linseqrec.training import distributed, saved_run
from linseqrec.training.distributed import DistributedError
from linseqrec.training.preemption import EXIT_CODE
from tests.launch.programs import TINY, program, start

SHORT = [
    *TINY,
    "--config.training.num_epochs=2",
    # A softmax does not depend on the bias of its keys. The gradient of this bias is 1e-9, only
    # rounding; other gradients are about 1e-2. Adam's default epsilon of 1e-8 would turn the
    # rounding into updates.
    "--config.optimizer.epsilon=1e-6",
    "--config.evaluation.filter_seen=none,all",
]


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start_both(arguments):
    """Starts two processes with two simulated devices each."""
    address = [f"--coordinator=localhost:{free_port()}", "--process_count=2"]
    return [
        start("train", *arguments, *address, f"--process_id={number}", devices=2)
        for number in (0, 1)
    ]


def wait_for(processes):
    """The exit codes and the (stdout, stderr) of processes, after they have ended."""
    results = [process.end() for process in processes]
    return (
        [result.returncode for result in results],
        [(result.stdout, result.stderr) for result in results],
    )


def test_two_stopped_and_resumed_processes_equal_one_process(prepared, tmp_path):
    base = [*SHORT, f"--config.data.folder={prepared}"]
    one_process, two_processes = tmp_path / "one", tmp_path / "two"
    process = program("train", *base, f"--workdir={one_process}")
    assert process.returncode == 0, process.stderr

    # Each process has its own clock, but both must save at the same steps.
    arguments = [*base, "--config.mesh.model=2", "--config.training.save_minutes=0.01"]
    arguments += [f"--workdir={two_processes}"]
    processes = start_both(arguments)
    while not any(record["step"] >= 10 for record in saved_run.read_metrics(two_processes)):
        assert all(process.runs() for process in processes), wait_for(processes)
        time.sleep(0.01)
    # Only one process receives the signal, but both must save and end.
    processes[1].send_signal(signal.SIGTERM)
    codes, outputs = wait_for(processes)
    assert codes == [EXIT_CODE, EXIT_CODE], outputs
    steps = [stderr.split("preempted: step ")[1].split(" ")[0] for _, stderr in outputs]
    assert steps[0] == steps[1] and (two_processes / "checkpoints" / steps[0]).exists()
    assert not (two_processes / "results.json").exists(), "the run ended before the signal"

    codes, outputs = wait_for(start_both(arguments))
    assert codes == [0, 0], outputs
    assert "NDCG@10" in outputs[0][0] and "NDCG@10" not in outputs[1][0], "process 0 prints"

    records, expected = (
        list(saved_run.read_metrics(folder)) for folder in (two_processes, one_process)
    )
    assert [record.keys() for record in records] == [record.keys() for record in expected]
    for one, other in zip(records, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-7), one["step"]
    results, expected = (
        json.loads((folder / "results.json").read_text()) for folder in (two_processes, one_process)
    )
    for name in ("step", "validation", "test"):
        assert results[name] == expected[name], name
    digests = {path.stem for path in (two_processes / "checkpoints" / "sha256").iterdir()}
    assert digests == {path.name for path in (two_processes / "checkpoints").glob("[0-9]*")}

    # An error of process 0 ends both processes, and both print it.
    codes, outputs = wait_for(start_both([*arguments, "--config.training.seed=1"]))
    assert codes == [1, 1], outputs
    assert "error: " in outputs[0][1] and "training.seed: 0 -> 1" in outputs[0][1]
    assert "error: process 0 failed" in outputs[1][1] and "training.seed: 0 -> 1" in outputs[1][1]


@pytest.mark.parametrize(
    ("count", "number"),
    [(2, None), (None, 0), (2, 2)],
    ids=["no id", "no count", "id beyond the count"],
)
def test_an_address_without_valid_numbers_is_an_error(count, number):
    with pytest.raises(DistributedError, match="--coordinator=localhost:1 .* with both numbers"):
        distributed.initialize("localhost:1", count, number, timeout=1)


@pytest.mark.parametrize(
    ("address", "count", "number"),
    [("localhost:1", None, None), (None, 2, None), (None, None, 0)],
    ids=["address", "count", "id"],
)
def test_what_the_cluster_gives_is_not_given_twice(address, count, number):
    with pytest.raises(DistributedError, match="^--distributed=auto --.* --distributed=auto alone"):
        distributed.initialize(address, count, number, detect=True, timeout=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--coordinator=localhost:{port}", "--process_count=2", "--process_id=0"],
            "did not all connect at localhost:{port} within 2 s",
        ),
        (["--process_count=2"], "need --coordinator=HOST:PORT"),
        (["--distributed=auto"], "did not all connect in the cluster:"),
    ],
    ids=["missing process", "no coordinator", "no cluster"],
)
def test_processes_that_do_not_connect_are_an_error(arguments, message, prepared, tmp_path):
    port = free_port()
    process = program(
        "train",
        *SHORT,
        f"--config.data.folder={prepared}",
        f"--workdir={tmp_path / 'run'}",
        "--initialization_timeout=2",
        *(argument.format(port=port) for argument in arguments),
    )
    assert process.returncode == 1, process.stderr
    assert message.format(port=port) in process.stderr
    assert not (tmp_path / "run").exists()
