"""What `python -m launch.benchmark` measures: one file a suite, each with one function `rows`."""
