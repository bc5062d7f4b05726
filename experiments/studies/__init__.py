"""Studies, one a file: `python -m launch.study --study=experiments/studies/NAME.py`."""
