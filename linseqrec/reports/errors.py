"""What a user can mend in a report."""


class ReportError(ValueError):
    """Runs that cannot be reported together, or at all."""
