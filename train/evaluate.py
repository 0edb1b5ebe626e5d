"""`python -m train.evaluate RUN`: how well a trained model does on what it never learned from."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from train.errors import exit_status


@dataclass(frozen=True)
class Evaluate:
    """Report the validation loss of a run, with perplexity for text and exact answers for questions."""

    run: tyro.conf.Positional[Path]
    """Directory of the run, such as runs/text."""


def report(options: Evaluate) -> str:
    """A line of results.

    Raises:
      InputError: no trained run, or its data are gone, or others by now.
    """
    from flax import nnx

    from train import run_directory

    config, dataset, model = run_directory.load_with_data(options.run)
    graphdef, params = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(params)
    return describe(evaluate(params, dataset.validation, dataset.answers, graphdef=graphdef, dtype=config.model.dtype))


def evaluate(params: dict[str, Any], batches: list, answers: bool, **options: Any) -> dict[str, float]:
    """`validation_loss`, the mean over the tokens that count; with `answers` also `accuracy`, the share of sequences
    that were right as a whole.

    Args:
      params, **options: as `train.step.eval_step`.
      batches: `Batch`es.
    """
    import jax
    import numpy as np

    from train.step import eval_step

    # one after the other: XLA's CPU devices come to a standstill where several programs communicate at once
    sums = [jax.device_get(eval_step(params, batch, **options)) for batch in batches]
    loss, count, right = np.sum(np.array(sums, np.float64), axis=0)
    accuracy = {"accuracy": right / sum(len(batch.tokens) for batch in batches)} if answers else {}
    return {"validation_loss": loss / count} | accuracy


def describe(found: dict[str, float]) -> str:
    """The results in words.

    >>> describe({"validation_loss": 1.0})
    'validation loss 1.000 nats per token, perplexity 2.72'
    >>> describe({"validation_loss": 0.1, "accuracy": 0.5})
    'validation loss 0.100 nats per token, 50.0 % of the answers right'
    """
    loss = math.nan if found["validation_loss"] is None else found["validation_loss"]
    text = f"validation loss {loss:.3f} nats per token"
    if "accuracy" in found:
        return f"{text}, {100 * found['accuracy']:.1f} % of the answers right"
    return f"{text}, perplexity {math.inf if loss > 700 else math.exp(loss):.2f}"


if __name__ == "__main__":
    sys.exit(exit_status(lambda: print(report(tyro.cli(Evaluate, prog="python -m train.evaluate")))))
