"""Two processes that train one run: the run of a process alone, however they are stopped."""

import json
import signal
import socket
import time

import pytest

from linseqrec.training import distributed, workdir
from linseqrec.training.distributed import DistributedError
from linseqrec.training.preemption import EXIT_CODE
from tests.launch.programs import TINY, program, start

SHORT = [
    *TINY,
    "--config.training.num_epochs=2",
    # A softmax does not change with the bias of its keys. That bias has a gradient of 1e-9, all
    # rounding, where others have 1e-2; Adam's own epsilon, 1e-8, would make updates of it.
    "--config.optimizer.epsilon=1e-6",
    "--config.evaluation.filter_seen=none",
    "--config.evaluation.filter_seen=all",
]


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start_both(arguments):
    """Two processes, each with two simulated devices."""
    both = [f"--coordinator=localhost:{free_port()}", "--process_count=2"]
    return [
        start("train", *arguments, *both, f"--process_id={number}", devices=2) for number in (0, 1)
    ]


def ended(processes):
    done = [process.end() for process in processes]
    return [each.returncode for each in done], [(each.stdout, each.stderr) for each in done]


def test_two_processes_stopped_and_resumed_end_as_one_alone(prepared, tmp_path):
    base = [*SHORT, f"--config.data.folder={prepared}"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    done = program("train", *base, f"--workdir={alone}")
    assert done.returncode == 0, done.stderr

    # Each has a clock of its own, and they must save at the same steps.
    arguments = [*base, "--config.mesh.model=2", "--config.training.save_minutes=0.01"]
    arguments += [f"--workdir={together}"]
    processes = start_both(arguments)
    while not any(record["step"] >= 10 for record in workdir.read_metrics(together)):
        assert all(process.runs() for process in processes), ended(processes)
        time.sleep(0.01)
    # The scheduler tells one of them; the other learns it from that one, and both save.
    processes[1].send_signal(signal.SIGTERM)
    codes, said = ended(processes)
    assert codes == [EXIT_CODE, EXIT_CODE], said
    stops = [error.split("preempted: step ")[1].split(" ")[0] for _, error in said]
    assert stops[0] == stops[1] and (together / "checkpoints" / stops[0]).exists()
    assert not (together / "results.json").exists(), "the run ended before it was stopped"

    codes, said = ended(start_both(arguments))
    assert codes == [0, 0], said
    assert "NDCG@10" in said[0][0] and "NDCG@10" not in said[1][0], "one of them prints"

    ours, theirs = list(workdir.read_metrics(together)), list(workdir.read_metrics(alone))
    assert [record.keys() for record in ours] == [record.keys() for record in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-7), one["step"]
    one, other = (json.loads((folder / "results.json").read_text()) for folder in (together, alone))
    assert one["step"] == other["step"]
    assert one["validation"] == other["validation"] and one["test"] == other["test"]
    digests = {path.stem for path in (together / "checkpoints" / "sha256").iterdir()}
    assert digests == {path.name for path in (together / "checkpoints").glob("[0-9]*")}

    # What stops the first process stops both, and each says so.
    codes, said = ended(start_both([*arguments, "--config.training.seed=1"]))
    assert codes == [1, 1], said
    assert "error: " in said[0][1] and "training.seed: 0 -> 1" in said[0][1]
    assert "error: process 0 failed" in said[1][1] and "training.seed: 0 -> 1" in said[1][1]


def test_half_an_address_is_refused():
    for count, number in ((2, None), (None, 0), (2, 2)):
        with pytest.raises(DistributedError, match="want an address with both numbers"):
            distributed.initialize("localhost:1", count, number, timeout=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--coordinator=localhost:{port}", "--process_count=2", "--process_id=0"],
            "did not all meet at localhost:{port} within 2 s",
        ),
        (["--process_count=2"], "need --coordinator=HOST:PORT"),
        (["--distributed=auto"], "did not all meet in the cluster:"),
    ],
)
def test_a_missing_process_is_an_error(arguments, message, prepared, tmp_path):
    port = free_port()
    done = program(
        "train",
        *SHORT,
        f"--config.data.folder={prepared}",
        f"--workdir={tmp_path / 'run'}",
        "--initialization_timeout=2",
        *(argument.format(port=port) for argument in arguments),
    )
    assert done.returncode == 1, done.stderr
    assert message.format(port=port) in done.stderr
    assert not (tmp_path / "run").exists()
