"""The textbook's tasks: strings to copy, reverse or sort, and numbers to add."""

import string
from collections.abc import Callable

import numpy as np

CHARACTERS = string.ascii_lowercase + string.digits + "+="
"""All that a task's text is made of."""
LETTERS = np.array(list(string.ascii_lowercase))
ANSWERS: dict[str, Callable[[str], str]] = {
    "copy": lambda text: text,
    "reverse": lambda text: text[::-1],
    "sort": lambda text: "".join(sorted(text)),
}


def draw(task: str, length: int, random: np.random.Generator) -> tuple[str, str]:
    """A question and its answer: of 1 to `length` letters, or two numbers of at most `length` digits.

    >>> draw("reverse", 6, np.random.default_rng(1))
    ('nty=', 'ytn')
    >>> draw("add", 3, np.random.default_rng(1))
    ('473+511=', '984')
    """
    if task == "add":
        first, second = map(int, random.integers(10**length, size=2))
        return f"{first}+{second}=", str(first + second)
    text = "".join(LETTERS[random.integers(len(LETTERS), size=random.integers(1, length + 1))])
    return f"{text}=", ANSWERS[task](text)


def longest(task: str, length: int) -> tuple[str, str]:
    """A pair of which there is none longer.

    >>> longest("add", 2)
    ('99+99=', '198')
    """
    if task == "add":
        number = 10**length - 1
        return f"{number}+{number}=", str(2 * number)
    return f"{'z' * length}=", "z" * length
