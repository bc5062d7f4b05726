"""Studies, one per file: `python -m launch.study --study=experiments/studies/NAME.py`."""
