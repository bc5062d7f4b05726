"""linseqrec: recommendation from long behaviour histories with linear-time sequence models."""
