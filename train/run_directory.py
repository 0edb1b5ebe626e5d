"""What a run keeps under runs/NAME, how it is begun, and how its model comes back."""

from pathlib import Path

import jax
from flax import nnx

from attention_jax.modules import TransformerBlock, TransformerLM
from configs import schema
from train import checkpoint
from train.errors import InputError
from train.tokenizer import CharTokenizer

RUNS = Path("runs")


def build_model(config: schema.Model, vocab_size: int, rng: jax.Array) -> TransformerLM:
    """The model of a run, freshly initialised."""

    def block(*args, **kwargs):
        return TransformerBlock(*args, dropout_rate=config.dropout_rate, **kwargs)

    sizes = vocab_size, config.context_length, config.embed_dim, config.num_heads, config.num_layers
    return TransformerLM(*sizes, block=block, rngs=nnx.Rngs(rng))


def create(config: schema.Config, tokenizer: CharTokenizer) -> tuple[Path, Path | None]:
    """Make the run's directory, with its configuration and tokenizer; an earlier run of that name is moved aside.

    Returns:
      The directory, and where the earlier run went, if there was one.

    Raises:
      InputError: the directory cannot be made.
    """
    directory, moved = RUNS / config.name, None
    try:
        if directory.exists():
            number = 1
            while (moved := directory.with_name(f"{config.name}.{number}")).exists():
                number += 1
            directory.rename(moved)
        directory.mkdir(parents=True)
        schema.save(config, directory / "config.toml")
        tokenizer.save(directory / "tokenizer.json")
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror}); choose another with --name") from error
    return directory, moved


def load(directory: Path) -> tuple[schema.Config, CharTokenizer, TransformerLM]:
    """The configuration, tokenizer and newest model of a run.

    Raises:
      InputError: no run is there, its files cannot be read, or it has saved no model yet.
    """
    try:
        config = schema.load(directory / "config.toml")
        tokenizer = CharTokenizer.load(directory / "tokenizer.json")
    except OSError as error:
        known = ", ".join(sorted(str(path.parent) for path in RUNS.glob("*/config.toml"))) or "none yet"
        raise InputError(f"{directory}: no training run is here; runs: {known}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{directory}: {error}") from error
    graphdef, params = nnx.split(build_model(config.model, len(tokenizer), jax.random.key(0)), nnx.Param)
    return config, tokenizer, nnx.merge(graphdef, checkpoint.load(directory / "checkpoints", nnx.to_pure_dict(params)))
