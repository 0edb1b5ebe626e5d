"""The textbook's experiments with attention, each to be run in a few minutes: `python -m train.experiments`."""
