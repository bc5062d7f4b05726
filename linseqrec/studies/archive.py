"""Results of finished runs, kept so that a study goes on where the workdirs are gone."""

import shutil

from linseqrec.files import replacing
from linseqrec.runs import best_baseline
from linseqrec.studies.study import StudyRun
from linseqrec.training.checkpoint import saved_steps

# What a record reads of a run. `results.json` comes last: a folder that has it is whole.
_FILES = ("config.json", "card.json", "ranks/test.npz", str(best_baseline.FILE), "results.json")


def keep(run: StudyRun) -> None:
    """Copies the results of a run, its ranks of each target and its time of training to `run.kept`.

    Only of finished runs on generated worlds: ranks stand beside users and items, and those of a
    log may not be passed on.
    """
    if run.results != run.folder or run.experiment.data.folder:
        return
    newest = max(saved_steps(run.folder / "checkpoints"), default=None)
    progress = [] if newest is None else [f"checkpoints/{newest}/progress/metadata"]
    for name in (*progress, *_FILES):
        source, copy = run.folder / name, run.kept / name
        # Ranks of baselines, and checkpoints, may be missing.
        if source.exists() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with replacing(copy) as partial:
                shutil.copyfile(source, partial)
