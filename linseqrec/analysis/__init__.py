"""Measurements behind the papers' figures: state sink, insertion probe, rank of the attention.

Each analysis is a file: numbers out, for any model whose mixers `traces.py` knows. `analyses.py`
applies them to restored checkpoints (`subject.py`), `figures.py` draws the numbers.
"""
