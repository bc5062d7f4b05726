"""Ranks, metrics, the evaluator, floors and significance."""
