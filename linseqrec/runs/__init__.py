"""Finished runs on disk: open, compare, tabulate, draw, report.

`results.py` tests a trained model and writes what the other modules read. `finished.py` opens runs,
`comparable.py` decides which may stand together, `configurations.py` groups their seeds, and
`comparisons.py` tests the differences. `tables.py`, `figures.py` and `report.py` show them.
"""
