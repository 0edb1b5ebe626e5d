"""`python -m train.sample RUN --prompt TEXT`: more text from a trained model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from train.errors import InputError, exit_status

if TYPE_CHECKING:
    from train.tokenizer import Tokenizer


MOST_TOKENS = 10**7


@dataclass(frozen=True)
class Sample:
    """Write text with a trained model."""

    run: tyro.conf.Positional[Path]
    """Directory of the run, such as runs/text."""
    prompt: str | None = None
    """What the text begins with. Default: a line break, or a question where answers were learned; where the model knows
    no line break, the first character that it knows."""
    length: int = 500
    """Tokens to add, at most; an answer ends by itself."""
    temperature: float = 0.8
    """Below 1 likelier, above 1 wilder; 0 takes the likeliest token always."""
    top_k: int | None = None
    """Draw only from so many of the likeliest tokens."""
    top_p: float | None = None
    """Draw only from the likeliest tokens that together have this probability."""
    min_p: float | None = None
    """Draw only from tokens at least this share as likely as the likeliest."""
    repetition_penalty: float | None = None
    """Above 1, tokens that the text already holds are less likely."""
    seed: int = 0
    """The same seed gives the same text."""


def write(options: Sample) -> Iterator[str]:
    """The prompt, and its continuation piece by piece, as it is made.

    Raises:
      InputError: no trained run, a prompt that is empty or holds unknown characters, an option out of range.
    """
    import jax

    from attention_jax.generate import stream
    from attention_jax.sampling import Sampling
    from train import run_directory
    from train.data import END, has_answers, open_dataset

    if not 0 <= options.seed < 2**32:
        raise InputError(f"--seed must be at least 0 and below 2**32, got {options.seed}")
    if not 0 <= options.length <= MOST_TOKENS:
        raise InputError(f"--length must be at least 0 and at most {MOST_TOKENS:,}, got {options.length}")
    config, tokenizer, model = run_directory.load(options.run)
    if options.prompt == "":
        raise InputError("--prompt is empty: give at least one character, such as --prompt ' '")
    answers = has_answers(config.data)
    begin = options.prompt or (open_dataset(config, tokenizer).shown[0][0] if answers else any_beginning(tokenizer))
    try:
        begin.encode("utf-8")  # which bytes of a command line that are no text are not
        prompt, rng = tokenizer.encode(begin), jax.random.key(options.seed)
    except (InputError, UnicodeError) as error:
        raise InputError(f"--prompt {begin!r}: {error}") from error
    sampling = Sampling(**{field.name: getattr(options, field.name) for field in fields(Sampling)})
    stop = tokenizer.encode(END) if answers else ()
    try:
        sampling.check()
    except ValueError as error:
        option, _, wrong = str(error).partition(" ")
        raise InputError(f"--{option.replace('_', '-')} {wrong}") from error
    yield begin
    tokens, text, shown = [], "", ""
    for token in stream(model, prompt, options.length, rng=rng, sampling=sampling, stop=stop):
        tokens.append(int(token))
        text = tokenizer.decode(tokens).split(END)[0] if len(stop) else tokenizer.decode(tokens)
        if not text.endswith("\ufffd"):  # half of a character
            yield text[len(shown) :]
            shown = text
    yield text[len(shown) :]


def any_beginning(tokenizer: Tokenizer) -> str:
    """A line break, if the tokenizer knows it."""
    try:
        tokenizer.encode("\n")
    except InputError:
        return tokenizer.decode([0])
    return "\n"


def show(options: Sample) -> None:
    """Print the text while it is made; a terminal is not to obey what is in it."""
    from train.tokenizer import printable

    shown = printable if sys.stdout.isatty() else str
    for piece in write(options):
        print(shown(piece), end="", flush=True)
    print()


if __name__ == "__main__":
    sys.exit(exit_status(lambda: show(tyro.cli(Sample, prog="python -m train.sample"))))
