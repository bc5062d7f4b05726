"""Ranks, metrics, the evaluator, counting baselines and significance."""
