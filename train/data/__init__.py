"""What there is to learn, as a `Dataset`, whose batches are pure functions of (seed, step)."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from configs.schema import Config, Data
from train.step import Batch
from train.tokenizer import Tokenizer

END = "\n"
"""What every answer ends with."""


@dataclass(frozen=True)
class Dataset:
    """Examples to learn from, and others to be judged by."""

    tokenizer: Tokenizer
    batch: Callable[[int], Batch]
    """The sequences of a step."""
    validation: list[Batch]
    """Sequences that are never learned from."""
    shown: list[tuple[str, str]]
    """What a model is asked to go on from, to see what it has learned, and the right answers."""
    answers: bool
    """Whether each sequence has an answer, which is right or wrong; else it is text that goes on for ever."""
    summary: str
    """How much there is."""
    digest: str
    """SHA-256 of all that it was made of."""


def open_dataset(config: Config, tokenizer: Tokenizer | None = None) -> Dataset:
    """What a configuration wants learned, in the tokens of a tokenizer; without one, of a new one.

    Raises:
      InputError: data that cannot be read, or is too short or too long for the model.
    """
    from train.data import pairs, text

    dataset = (pairs if has_answers(config.data) else text).dataset(config, tokenizer)
    whole = [dataset.digest, dataset.tokenizer.to_json()]
    return replace(dataset, digest=hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest())


def has_answers(data: Data) -> bool:
    """Whether each sequence is a question with its answer, and not a piece of text."""
    return data.source == "questions" or (data.source not in ("help", "shakespeare") and data.path is None)
