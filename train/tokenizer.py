"""From text to tokens and back. No tokenizer here has special tokens, which text could be taken for."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from train.errors import InputError


class Tokenizer(Protocol):
    """Equal ones make the same tokens."""

    def __len__(self) -> int:
        """The number of different tokens."""

    def encode(self, text: str) -> np.ndarray:
        """int32 tokens `[n]`."""

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some tokens."""

    def to_json(self) -> dict:
        """What `load` makes it from."""


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.int32)


@dataclass(frozen=True)
class CharTokenizer:
    """Token i is the i-th character of `vocabulary`, which is in the order of code points.

    >>> tokenizer = CharTokenizer.of("banana")
    >>> tokenizer.encode("nab").tolist(), tokenizer.decode([2, 0, 1])
    ([2, 0, 1], 'nab')
    """

    vocabulary: str

    def __post_init__(self) -> None:
        if self.vocabulary != "".join(sorted(set(self.vocabulary))):
            raise ValueError("vocabulary must hold each character once, in the order of code points")

    @classmethod
    def of(cls, text: str) -> "CharTokenizer":
        """The tokenizer of all characters in `text`."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> np.ndarray:
        """int32 tokens `[len(text)]`.

        Raises:
          InputError: a character that the vocabulary lacks.
        """
        vocabulary, points = map(_code_points, (self.vocabulary, text))
        tokens = np.searchsorted(vocabulary, points)
        unknown = np.flatnonzero(vocabulary[np.minimum(tokens, len(vocabulary) - 1)] != points)
        if len(unknown):
            known = self.vocabulary if len(self.vocabulary) <= 100 else self.vocabulary[:100] + "..."
            raise InputError(f"the text holds {text[unknown[0]]!r}, which the model does not know; it knows {known!r}")
        return tokens.astype(np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`."""
        return "".join(self.vocabulary[token] for token in tokens)

    def to_json(self) -> dict:
        return {"kind": "char", "vocabulary": self.vocabulary}


@dataclass(frozen=True)
class ByteTokenizer:
    """Token i is the byte i of UTF-8.

    >>> ByteTokenizer().decode(ByteTokenizer().encode("é"))
    'é'
    """

    def __len__(self) -> int:
        return 256

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        return bytes(np.asarray(tokens, np.uint8)).decode("utf-8", errors="replace")

    def to_json(self) -> dict:
        return {"kind": "byte"}


class BpeTokenizer:
    """Byte-pair encoding of bytes (Sennrich et al. 2015, arXiv:1508.07909), by the `tokenizers` library: any text can
    be encoded.

    >>> tokenizer = BpeTokenizer.of("banana bandana " * 20, 260)
    >>> len(tokenizer), len(tokenizer.encode("banana")), tokenizer.decode(tokenizer.encode("banana"))
    (260, 2, 'banana')
    """

    def __init__(self, model: dict):
        import tokenizers

        self.model = tokenizers.Tokenizer.from_str(json.dumps(model))

    @classmethod
    def of(cls, text: str, vocab_size: int) -> "BpeTokenizer":
        """The tokenizer of the most frequent pairs in `text`."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        model = Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
        model.train_from_iterator(text.splitlines(keepends=True), trainer)
        return cls(json.loads(model.to_str()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BpeTokenizer) and self.to_json() == other.to_json()

    def __len__(self) -> int:
        return self.model.get_vocab_size()

    def encode(self, text: str) -> np.ndarray:
        return np.array(self.model.encode(text).ids, np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        return self.model.decode([int(token) for token in tokens], skip_special_tokens=False)

    def to_json(self) -> dict:
        return {"kind": "bpe", "model": json.loads(self.model.to_str())}


_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with what a terminal would obey escaped: controls but line breaks and tabs, and what turns directions.

    >>> print(printable("a\\n\\x1b[31mb"))
    a
    \\x1b[31mb
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def build_tokenizer(kind: str, text: str, vocab_size: int) -> Tokenizer:
    """The tokenizer of that kind for a text; `vocab_size` is that of bpe.

    Raises:
      InputError: the text is too short for so many tokens.
    """
    if kind == "char":
        return CharTokenizer.of(text)
    if kind == "byte":
        return ByteTokenizer()
    most = 256 + len(text.encode("utf-8"))  # beyond which memory would be asked for in vain
    tokenizer = BpeTokenizer.of(text, min(vocab_size, most))
    if len(tokenizer) < vocab_size:
        raise InputError(
            f"--data.vocab-size {vocab_size}: the text has pairs for {len(tokenizer)} tokens only; "
            f"lower it to that, or take --tokenizer char"
        )
    return tokenizer


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer as JSON."""
    path.write_text(json.dumps(tokenizer.to_json()), encoding="utf-8")


def load(path: Path) -> Tokenizer:
    """Read what `save` wrote.

    Raises:
      ValueError: it is not a tokenizer.
    """
    kinds = {"char": CharTokenizer, "byte": ByteTokenizer, "bpe": BpeTokenizer}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return kinds[saved.pop("kind")](**saved)
    except OSError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{path}: not a tokenizer ({error})") from error
