"""Side-by-side measurements against peers; each module is run as `python -m benchmarks.NAME`."""
