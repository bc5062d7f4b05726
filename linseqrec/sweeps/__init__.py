"""Sweeps: many runs of one experiment, planned, checked, and started together."""
