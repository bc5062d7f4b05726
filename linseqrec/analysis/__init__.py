"""What the papers' figures show: the state sink, the insertion probe, the rank of the attention.

Each analysis is a file: numbers out, for any model whose mixers `traces.py` knows. `figures.py`
draws them, `launch.analyse` runs them on checkpoints.
"""
