"""Text to learn from: read whole, split once, and cut into batches that depend on nothing but (seed, step)."""

import hashlib
from pathlib import Path

import numpy as np

from configs.schema import Config
from train.data import Dataset
from train.data.download import tiny_shakespeare
from train.errors import InputError
from train.step import Batch
from train.tokenizer import Tokenizer, build_tokenizer


def dataset(config: Config, tokenizer: Tokenizer | None) -> Dataset:
    """The text of `config.data`.

    Raises:
      InputError: it cannot be read, is too short, or has characters that the tokenizer has not.
    """
    source = config.data.path
    if source is None and config.data.source == "shakespeare":
        source = tiny_shakespeare()
    text = read_text(source)
    tokenizer = tokenizer or build_tokenizer(config.tokenizer, text, config.data.vocab_size)
    size, length = config.data.batch_size, config.model.context_length + 1
    where = "" if source is None else f"--data.path {source}: "
    try:
        tokens = tokenizer.encode(text)
    except InputError as error:
        raise InputError(f"{where}{error}; give the text that it has learned, or train a model anew") from error
    try:
        train, held_out = split(tokens, config.data.validation_fraction, config.model.context_length)
    except InputError as error:
        raise InputError(f"{where}{error}") from error

    def batch_of(step: int) -> Batch:
        return Batch(batch(train, seed=config.seed, step=step, batch_size=size, length=length))

    return Dataset(
        tokenizer=tokenizer,
        batch=batch_of,
        validation=[Batch(tokens) for tokens in whole(held_out, batch_size=size, length=length)],
        shown=[(wordiest(tokenizer.decode(held_out[:5000]), 32), "")],
        answers=False,
        summary=f"{len(train):,} training and {len(held_out):,} validation tokens, vocabulary of {len(tokenizer)}",
        digest=hashlib.sha256(text.encode()).hexdigest(),
    )


def read_text(path: Path | None) -> str:
    """The text of a UTF-8 file, or of the help topics that every CPython ships.

    Raises:
      InputError: no such file, or one that is empty or not UTF-8.
    """
    if path is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics))
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise InputError(f"--data.path {path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            fix = "the file is cut off within a character"
        elif content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            fix = f"convert it: iconv -f utf-16 -t utf-8 {path}"
        elif b"\0" in content:
            fix = "it holds bytes of 0, which no text has"
        else:
            fix = f"convert it, e.g. iconv -f latin1 -t utf-8 {path}"
        raise InputError(
            f"--data.path {path}: not UTF-8 text, byte {content[error.start]:#04x} at offset {error.start}; {fix}"
        ) from error
    if not text:
        raise InputError(f"--data.path {path}: the file is empty")
    if "\0" in text:  # as in UTF-16 without a mark
        raise InputError(f"--data.path {path}: not UTF-8 text; it holds bytes of 0, which no text has")
    return text.removeprefix("\ufeff")  # the mark that it is UTF-8


def split(tokens: np.ndarray, validation_fraction: float, context_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Training tokens `[n]` and validation tokens `[m]`, the last share of the text.

    Raises:
      InputError: either is too short for one sequence and its next token.
    """
    cut = round(len(tokens) * (1 - validation_fraction))
    parts = {"training": tokens[:cut], "validation": tokens[cut:]}
    for name, part in parts.items():
        if len(part) < context_length + 1:
            raise InputError(
                f"the {name} text has {len(part)} tokens, fewer than --model.context-length {context_length} + 1: "
                "give a longer text, a shorter context, or another --data.validation-fraction"
            )
    return parts["training"], parts["validation"]


def batch(tokens: np.ndarray, *, seed: int, step: int, batch_size: int, length: int) -> np.ndarray:
    """Sequences `[batch_size, length]` from random places in `tokens`: a pure function of (seed, step).

    >>> first = batch(np.arange(100), seed=1, step=7, batch_size=2, length=5)
    >>> bool((first == batch(np.arange(100), seed=1, step=7, batch_size=2, length=5)).all())
    True
    """
    random = np.random.Generator(np.random.Philox(key=[seed, step]))
    starts = random.integers(0, len(tokens) - length + 1, size=batch_size)
    return tokens[starts[:, None] + np.arange(length)]


def whole(tokens: np.ndarray, *, batch_size: int, length: int) -> np.ndarray:
    """All of `tokens` as batches `[n, batch_size, length]` that overlap by the one token that is only predicted.

    What does not fill the last batch is left out; a text too short for one batch gives a single smaller one.

    >>> whole(np.arange(10), batch_size=2, length=4).tolist()
    [[[0, 1, 2, 3], [3, 4, 5, 6]]]
    """
    count = (len(tokens) - 1) // (length - 1)
    rows = tokens[(length - 1) * np.arange(count)[:, None] + np.arange(length)]
    batch_size = min(batch_size, count)
    return rows[: count // batch_size * batch_size].reshape(-1, batch_size, length)


def wordiest(text: str, length: int) -> str:
    """The first stretch of `text`, among those that begin a line, with the most letters: one worth a look.

    >>> wordiest("    x\\nwords, words\\n...", 8)
    'words, w'
    """
    starts = [0, *(index + 1 for index, character in enumerate(text) if character == "\n")]
    stretches = [text[start : start + length] for start in starts if start == 0 or start + length <= len(text)]
    return max(stretches, key=lambda stretch: sum(map(str.isalpha, stretch)))
