"""Side-by-side measurements against peers, all run as `python -m benchmarks`."""
