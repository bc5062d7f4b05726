"""The benchmark suites of launch.benchmark: one module per suite, with a function `rows`."""
