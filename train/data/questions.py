"""Questions and answers from a file; without one, some about the spelling of words."""

import json
import re
from pathlib import Path

from train.errors import InputError

WORDS = 1500


def read(path: Path | None) -> list[tuple[str, str]]:
    """What the model is given, and what it is to write: `("Q: ...\\nA: ", "...")`.

    Args:
      path: JSON lines, each an object with the strings `question` and `answer`. Default: about words of Python's help.

    Raises:
      InputError: the file cannot be read; it names the line.
    """
    if path is None:
        return [_pair(question, answer) for question, answer in _spelling()]
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"--data.path {path}: cannot be read ({error.strerror or error})") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line.decode("utf-8"))
            question, answer = entry["question"], entry["answer"]
            if not isinstance(question, str) or not isinstance(answer, str):
                raise TypeError("both have to be strings")
            (question + answer).encode("utf-8")  # half a surrogate pair cannot be
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f'--data.path {path}: line {number} is not {{"question": "...", "answer": "..."}} ({error})'
            ) from error
        pairs.append(_pair(question, answer))
    if not pairs:
        raise InputError(f"--data.path {path}: the file is empty")
    return pairs


def _pair(question: str, answer: str) -> tuple[str, str]:
    return f"Q: {question}\nA: ", answer


def _spelling() -> list[tuple[str, str]]:
    from pydoc_data.topics import topics

    words = sorted(set(re.findall(r"\b[a-z]{3,7}\b", " ".join(topics.values()))))[:WORDS]
    return [
        pair
        for word in words
        for pair in (
            (f"What is the first letter of {word}?", word[0]),
            (f"What is the last letter of {word}?", word[-1]),
            (f"How many letters has {word}?", str(len(word))),
        )
    ]
