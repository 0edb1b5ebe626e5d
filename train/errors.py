"""Errors that are the user's to mend: shown as one line, with exit status 2."""


class DivergedError(Exception):
    """The loss stayed not finite; says since when, and what to try."""


class InputError(Exception):
    """Says which file or field is wrong, and the fix."""
