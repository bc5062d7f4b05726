"""The experiments: one file each, whose docstring is its record."""
