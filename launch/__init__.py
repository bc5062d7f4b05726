"""Command-line programs, thin: `python -m launch.NAME --help`."""
