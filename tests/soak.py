"""Trains a run over and over while it is killed, stopped, starved of disk and damaged.

    python -m tests.soak --minutes=120
    python -m tests.soak --minutes=120 --items=1000000 --users=400 --events=200 --epochs=2 -- \\
        --config=experiments/own_log.py:recgrela --config.training.evaluate_every=0.2

Each round trains one run undisturbed. It then starts the same run in another folder, and disturbs
it at random moments, which the seed decides. In the end it checks that both runs have the same
state, metrics, ranks and results, bit for bit. After each disturbance it checks the exit code, that
no traceback was printed, and that the newest sound checkpoint is still there.

The script prints a line for each disturbance and a summary. It exits with code 1 if anything was
lost. What follows `--` are flags of `launch.train`.
"""

import argparse
import collections
import dataclasses
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from linseqrec.data.dataset import Dataset
from linseqrec.data.writing import write_dataset
from linseqrec.training import saved_run
from linseqrec.training.checkpoint import CheckpointError, Checkpoints, saved_steps
from linseqrec.training.checkpoint_digests import REPLACED
from linseqrec.training.preemption import EXIT_CODE
from linseqrec.training.run import Run
from tests.launch.programs import ROOT, TINY
from tests.launch.test_kill import is_saving
from tests.launch.test_sigterm import wait_for_handler

# Disturbances of a round, after which it runs to its end.
DISTURBANCES = 12
# Names of what only informs, whose damage changes no result.
RECORDS = ("speed.jsonl", "environments.jsonl")


class LostError(Exception):
    """A promise was not kept."""


@dataclasses.dataclass(frozen=True)
class Soak:
    """A run that is disturbed.

    Attributes:
      arguments: Flags of `launch.train`, without the workdir.
      draw: Decides what is done, and when.
      seconds: How long the undisturbed run took.
    """

    arguments: list[str]
    draw: random.Random
    seconds: float

    # ------------------------------------------------------------ disturbances of a running program

    def kill(self, folder: Path) -> str:
        """Sends SIGKILL, half of the time while a checkpoint is saved."""
        process = self._start(folder)
        saving = self.draw.random() < 0.5
        end = time.monotonic() + self.draw.uniform(0, self.seconds / 2)
        while process.poll() is None and time.monotonic() < end:
            if saving and is_saving(folder):
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        self._check(process, (0, -signal.SIGKILL))
        return "in a save" if saving and is_saving(folder) else ""

    def terminate(self, folder: Path) -> str:
        """Sends SIGTERM."""
        process = self._start(folder)
        wait_for_handler(process)
        moment = self.draw.uniform(0, self.seconds / 2)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
        self._check(process, (0, EXIT_CODE))
        return f"after {moment:.1f} s, exit code {process.returncode}"

    def fill_the_disk(self, folder: Path) -> str:
        """Limits the size of files, from none to twice the largest one so far."""
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        most = max(sizes, default=2**20) / 512
        kilobytes = int(most ** self.draw.random()) - 1
        process = self._start(folder, "bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "-")
        self._check(process, (0, 1))
        return f"files of at most {kilobytes} KB, exit code {process.returncode}"

    # ------------------------------------------------------------ damage while no program runs

    def damage_a_checkpoint(self, folder: Path) -> str:
        """Changes a file of the newest checkpoint, of at least two sound ones.

        Not one that stands in `replaced/`: the next start has to judge its successor first.
        """
        steps = sound_steps(folder)
        checkpoint = folder / "checkpoints" / str(steps[-1])
        files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
        digests = folder / "checkpoints" / "sha256" / f"{steps[-1]}.json"
        path = self.draw.choice([*files, digests])
        return f"{self._damage(path)} {path.relative_to(folder)}"

    def damage_a_record(self, folder: Path) -> str:
        """Appends bytes to a file that only informs."""
        path = folder / self.draw.choice(RECORDS)
        with path.open("ab") as file:
            file.write(self.draw.randbytes(40))
        return f"appended to {path.name}"

    def _damage(self, path: Path) -> str:
        content = bytearray(path.read_bytes())
        kind = self.draw.choice(["flipped a bit of", "cut", "emptied", "removed"])
        if kind == "removed":
            path.unlink()
            return kind
        if kind == "emptied" or not content:
            content = bytearray()
        elif kind == "cut":
            del content[self.draw.randrange(len(content)) :]
        else:
            content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
        path.write_bytes(content)
        return kind

    # ------------------------------------------------------------ programs

    def _start(self, folder: Path, *before: str) -> subprocess.Popen:
        return start([*self.arguments, f"--workdir={folder}"], *before)

    def _check(self, process: subprocess.Popen, codes: tuple[int, ...]) -> None:
        output = process.communicate()[0].decode(errors="replace")
        if process.returncode not in codes or "Traceback" in output:
            raise LostError(f"exit code {process.returncode}:\n{output[-3000:]}")


def start(arguments: list[str], *before: str) -> subprocess.Popen:
    """Starts launch.train; `before` are words in front of the command."""
    return subprocess.Popen(
        [*before, sys.executable, "-m", "launch.train", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def train_to_its_end(arguments: list[str]) -> float:
    """Trains without a disturbance; returns the seconds."""
    begun = time.monotonic()
    process = start(arguments)
    output = process.communicate()[0].decode(errors="replace")
    if process.returncode:
        raise LostError(f"an undisturbed start ended with {process.returncode}:\n{output[-3000:]}")
    return time.monotonic() - begun


def sound_steps(folder: Path) -> list[int]:
    """The steps of the sound checkpoints; none where there is no folder of checkpoints."""
    if not (folder / "checkpoints").is_dir():
        return []
    # The next start puts these back where it finds no successor.
    replaced = saved_steps(folder / "checkpoints" / REPLACED)
    try:
        with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
            return sorted({*checkpoints.sound_steps(), *replaced})
    # Damage may keep Orbax from opening the folder; the next start sets it aside.
    except CheckpointError:
        return replaced


def outcome(folder: Path) -> dict[str, str]:
    """Digests of all that a run gives."""
    run = Run.of(saved_run.read_experiment(folder))
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.sound_steps()[-1]
        state = checkpoints.restore(step, run.step.abstract_state)
        progress = dataclasses.asdict(checkpoints.progress(step))
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        digest.update(np.asarray(leaf).tobytes())
    ranks = hashlib.sha256()
    for path in sorted((folder / "ranks").glob("*.npz")):
        with np.load(path) as arrays:
            for name in arrays.files:
                ranks.update(arrays[name].tobytes())
    results = json.loads((folder / "results.json").read_text())
    return {
        "step": str(step),
        "state": digest.hexdigest(),
        "progress": str([progress[name] for name in ("iterator", "best_step", "best_metric")]),
        "metrics": hashlib.sha256((folder / "metrics.jsonl").read_bytes()).hexdigest(),
        "ranks": ranks.hexdigest(),
        "results": json.dumps(results["test"]),
    }


def make_log(folder: Path, *, users: int, items: int, events: int) -> None:
    """Writes a data set of users who walk through the catalogue, with repeats."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(max(3, events // 2), 2 * events, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    first = np.repeat(rng.integers(items, size=users), lengths)
    walked = np.cumsum(rng.integers(0, 3, offsets[-1])) + first
    times = 60 * np.arange(offsets[-1])
    log = Dataset.from_arrays((walked % items + 1).astype(np.int32), times, offsets, items)
    write_dataset(folder, log, *([str(i) for i in range(count)] for count in (users, items)))


def disturb(soak: Soak, folder: Path, counts: collections.Counter[str]) -> None:
    """Disturbs a run several times, and checks after each that nothing was lost."""
    for _ in range(DISTURBANCES):
        before = sound_steps(folder)
        kinds: list[Callable[[Path], str]] = [soak.kill, soak.terminate, soak.fill_the_disk]
        replaced = saved_steps(folder / "checkpoints" / REPLACED)
        if len(before) > 1 and before[-1] not in replaced:
            kinds.append(soak.damage_a_checkpoint)
        if all((folder / name).exists() for name in RECORDS):
            kinds.append(soak.damage_a_record)
        kind = soak.draw.choice(kinds)
        did = kind(folder)
        after = sound_steps(folder)
        name = kind.__name__.replace("_", " ")
        counts[name] += 1
        print(f"  {name:20s} {did}; sound checkpoints {before} -> {after}", flush=True)
        damaged = kind == soak.damage_a_checkpoint
        if before and not damaged and (not after or after[-1] < before[-1]):
            raise LostError(f"checkpoint {before[-1]} was lost")


def main() -> int:
    """Runs rounds until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--users", type=int, default=60)
    parser.add_argument("--items", type=int, default=30)
    parser.add_argument("--events", type=int, default=12, help="mean number of events of a user")
    parser.add_argument("--epochs", type=float, default=20.0)
    parser.add_argument("flags", nargs="*", help="flags of launch.train, after --")
    options = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)
    end = time.monotonic() + 60 * options.minutes
    draw, counts, losses = random.Random(options.seed), collections.Counter[str](), 0
    rounds = 0
    with tempfile.TemporaryDirectory(prefix="linseqrec-soak-") as scratch:
        data = Path(scratch) / "data"
        make_log(data, users=options.users, items=options.items, events=options.events)
        base = [*(options.flags or TINY), f"--config.data.folder={data}"]
        base.append(f"--config.training.num_epochs={options.epochs}")
        while time.monotonic() < end:
            folder = Path(scratch) / str(rounds)
            arguments = [*base, f"--config.training.seed={rounds}"]
            seconds = train_to_its_end([*arguments, f"--workdir={folder / 'whole'}"])
            print(f"round {rounds}: undisturbed in {seconds:.0f} s", flush=True)
            try:
                disturb(Soak(arguments, draw, seconds), folder / "disturbed", counts)
                train_to_its_end([*arguments, f"--workdir={folder / 'disturbed'}"])
                expected, found = (outcome(folder / name) for name in ("whole", "disturbed"))
                for name, value in expected.items():
                    if found[name] != value:
                        raise LostError(f"{name} differs: {found[name][:200]}, not {value[:200]}")
                shutil.rmtree(folder)
            except LostError as error:
                losses += 1
                kept = Path(tempfile.mkdtemp(prefix="linseqrec-soak-lost-"))
                os.rename(folder, kept / str(rounds))
                print(f"  LOST, kept in {kept}: {error}", flush=True)
            rounds += 1
    listed = ", ".join(f"{number} x {name}" for name, number in sorted(counts.items()))
    print(
        f"{rounds} rounds, {counts.total()} disturbances ({listed}): {losses} rounds lost something"
    )
    return int(losses > 0)


if __name__ == "__main__":
    sys.exit(main())
