"""The experiments: one file a log, `--config=experiments/FILE.py:NAME`."""
