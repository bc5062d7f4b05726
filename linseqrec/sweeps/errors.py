"""What a user can mend in a sweep."""


class SweepError(ValueError):
    """A sweep that cannot be planned or started as it was asked for."""
