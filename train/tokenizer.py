"""From text to tokens and back, one token a character."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.errors import InputError


@dataclass(frozen=True)
class CharTokenizer:
    """Token i is the i-th character of `vocabulary`.

    >>> tokenizer = CharTokenizer.of("banana")
    >>> tokenizer.encode("nab").tolist(), tokenizer.decode([2, 0, 1])
    ([2, 0, 1], 'nab')
    """

    vocabulary: str

    @classmethod
    def of(cls, text: str) -> "CharTokenizer":
        """The tokenizer of all characters in `text`, in the order of their code points."""
        return cls("".join(sorted(set(text))))

    @classmethod
    def load(cls, path: Path) -> "CharTokenizer":
        """Read what `save` wrote."""
        return cls(json.loads(path.read_text(encoding="utf-8"))["vocabulary"])

    def save(self, path: Path) -> None:
        """Write the vocabulary as JSON."""
        path.write_text(json.dumps({"vocabulary": self.vocabulary}), encoding="utf-8")

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> np.ndarray:
        """int32 tokens `[len(text)]`.

        Raises:
          InputError: a character that the vocabulary lacks.
        """
        table = {character: token for token, character in enumerate(self.vocabulary)}
        try:
            return np.array([table[character] for character in text], np.int32)
        except KeyError as error:
            raise InputError(f"the text holds {error.args[0]!r}, which the model's vocabulary does not") from error

    def decode(self, tokens) -> str:
        """The text of `tokens`."""
        return "".join(self.vocabulary[token] for token in tokens)
