"""The command-line programs. Each one lists its flags with `python -m launch.NAME --help`."""
