"""`python -m train.sample RUN --prompt TEXT`: more text from a trained model."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from train.errors import InputError, exit_status


@dataclass(frozen=True)
class Sample:
    """Write text with a trained model."""

    run: tyro.conf.Positional[Path]
    """Directory of the run, such as runs/text."""
    prompt: str = "The "
    """What the text begins with."""
    length: int = 500
    """Tokens to add, at most; an answer ends by itself."""
    temperature: float = 0.8
    """Below 1 likelier, above 1 wilder; 0 takes the likeliest token always."""
    seed: int = 0
    """The same seed gives the same text."""


def write(options: Sample) -> str:
    """The prompt and its continuation.

    Raises:
      InputError: no trained run, a prompt that is empty or holds unknown characters, an option out of range.
    """
    import jax
    import numpy as np

    from attention_jax.generate import generate
    from train import run_directory
    from train.data import END, has_answers

    if not 0 <= options.seed < 2**32:
        raise InputError(f"--seed must be at least 0 and below 2**32, got {options.seed}")
    if options.length < 0:
        raise InputError(f"--length must be at least 0, got {options.length}")
    config, tokenizer, model = run_directory.load(options.run)
    if not options.prompt:
        raise InputError("--prompt is empty: give at least one character, such as --prompt ' '")
    prompt = tokenizer.encode(options.prompt)
    try:
        rng = jax.random.key(options.seed)
        tokens = generate(model, prompt, options.length, rng=rng, temperature=options.temperature)
    except ValueError as error:
        raise InputError(str(error)) from error
    written = tokenizer.decode(np.asarray(tokens)[len(prompt) :])
    return options.prompt + (written.split(END)[0] if has_answers(config.data) else written)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: print(write(tyro.cli(Sample, prog="python -m train.sample")))))
