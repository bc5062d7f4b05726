"""Results of finished runs, kept so that a study goes on where the workdirs are gone."""

import shutil
from pathlib import Path

from linseqrec.runs import best_baseline
from linseqrec.training.checkpoint import saved_steps

# What a record reads of a run. `results.json` comes last: a folder that has it is whole.
_FILES = ("config.json", "card.json", "ranks/test.npz", str(best_baseline.FILE), "results.json")


def keep(workdir: Path, to: Path) -> None:
    """Copies the results of a finished run, its ranks of each target, and its time of training.

    Args:
      workdir: The run's workdir. It may lack checkpoints and the ranks of baselines.
      to: The folder of the copies; one with results stays as it is.
    """
    if (to / "results.json").exists():
        return
    newest = max(saved_steps(workdir / "checkpoints"), default=None)
    progress = [] if newest is None else [f"checkpoints/{newest}/progress/metadata"]
    for name in (*progress, *_FILES):
        if (workdir / name).exists():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(workdir / name, to / name)
