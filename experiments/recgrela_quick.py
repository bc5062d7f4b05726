"""RecGRELA on a small generated world: the quick start's experiment.

Run it by:

    python -m launch.train --config=experiments/recgrela_quick.py --workdir=runs/recgrela_quick
"""

from linseqrec.config import Experiment


def get_config() -> Experiment:
    return Experiment(name="RecGRELA")
