"""Errors that are shown as one line."""


class InputError(Exception):
    """Says which file or field is wrong, and the fix. Exit status 2."""


class StoppedError(Exception):
    """Why a run had to stop, what is kept, and what to try. Exit status 1."""
