"""Recommendations while events arrive, from a small state that the model carries per user."""
