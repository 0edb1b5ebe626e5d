"""What a run keeps under runs/NAME, how it is begun, and how its model comes back."""

import contextlib
import dataclasses
import fcntl
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


@contextlib.contextmanager
def locked(directory: Path):
    """Make the directory if need be, and hold it against other processes.

    Raises:
      InputError: another process has it, or it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / "lock").open("w")
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror}); choose another with --name") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{directory}: another training run is writing here; choose a --name") from error
        yield


def create(config: schema.Config, tokenizer: CharTokenizer) -> tuple[Path, Path | None]:
    """Make the run's directory, with its configuration and tokenizer; an earlier run of that name is moved aside.

    Returns:
      The directory, and where the earlier run went, if there was one.

    Raises:
      InputError: the directory cannot be made, or another process is writing there.
    """
    directory, moved = RUNS / config.name, None
    try:
        if directory.exists():
            with locked(directory):
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


def check_same(config: schema.Config, tokenizer: CharTokenizer) -> Path:
    """The directory of the run that is to go on, if it is the one that `config` and the text's vocabulary say.

    Raises:
      InputError: no run is there, or another; the message names what differs.
    """
    directory = RUNS / config.name
    earlier, vocabulary = _read(directory)
    ours, theirs = (flatten(dataclasses.asdict(each)) for each in (config, earlier))
    differ = [name for name in ours if ours[name] != theirs[name] and name not in ("resume", "quiet")]
    if differ:
        changes = ", ".join(f"{name} was {theirs[name]!r}, is {ours[name]!r}" for name in differ)
        raise InputError(f"{directory}: --resume goes on with the same run only; {changes}")
    if vocabulary != tokenizer:
        change = "".join(sorted(set(vocabulary.vocabulary) ^ set(tokenizer.vocabulary)))
        raise InputError(f"{directory}: --resume with a text of another vocabulary; they differ in {change!r}")
    return directory


def flatten(tree: dict, prefix: str = "") -> dict:
    """Nested dictionaries as one, with dotted names.

    >>> flatten({"a": 1, "b": {"c": 2}})
    {'a': 1, 'b.c': 2}
    """
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def load(directory: Path) -> tuple[schema.Config, CharTokenizer, TransformerLM]:
    """The configuration, tokenizer and newest model of a run.

    Raises:
      InputError: no run is there, its files cannot be read, or it has saved no model yet.
    """
    config, tokenizer = _read(directory)
    graphdef, params = nnx.split(build_model(config.model, len(tokenizer), jax.random.key(0)), nnx.Param)
    with checkpoint.Checkpoints(directory / "checkpoints") as checkpoints:
        found = checkpoints.newest()
    if found is None:
        raise InputError(f"{directory}: no checkpoint here; the run stopped before its first save")
    like = {"params": nnx.to_pure_dict(params)}
    return config, tokenizer, nnx.merge(graphdef, checkpoint.unflat(like, found[0], directory)["params"])


def _read(directory: Path) -> tuple[schema.Config, CharTokenizer]:
    try:
        return schema.load(directory / "config.toml"), CharTokenizer.load(directory / "tokenizer.json")
    except OSError as error:
        known = ", ".join(sorted(str(path.parent) for path in RUNS.glob("*/config.toml"))) or "none yet"
        raise InputError(f"{directory}: no training run is here; runs: {known}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{directory}: {error}") from error
