"""Notebooks, each generated from a script of the same name by `python -m notebooks.build`."""
