"""Recommending while events come in: carried user states, and the best items from them."""
