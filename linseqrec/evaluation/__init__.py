"""Ranks, metrics, the evaluator, baselines and tests of significance."""
