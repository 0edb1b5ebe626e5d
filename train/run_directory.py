"""What a run keeps under runs/NAME, how it is begun, and how its model comes back."""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from attention_jax.modules import TransformerLM
from configs import schema
from train import checkpoint
from train import tokenizer as tokenizers
from train.data import Dataset, open_dataset
from train.errors import InputError
from train.model import build_model
from train.tokenizer import Tokenizer

RUNS = Path("runs")
SIZES = ("kind", "num_layers", "num_heads", "embed_dim", "context_length", "scan")
"""What one model has to have as another, to take its weights."""
FREE = ("name", "resume", "quiet", "profile", "mesh.", "data.path")
"""What a run that goes on may have otherwise; data that have moved are known by their digest."""


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make the directory if need be, and hold it against other processes.

    Raises:
      InputError: another process has it, or it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / "lock").open("w")
    except OSError as error:
        raise InputError(
            f"{directory}: cannot be written ({error.strerror}); make it so, or choose another with --name"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{directory}: another training run is writing here; choose a --name") from error
        except OSError as error:  # a file system without locks, such as a mounted Drive
            print(f"{directory} cannot be locked ({error.strerror}): begin no second run there", file=sys.stderr)
        yield


@contextlib.contextmanager
def one_after_another() -> Iterator[None]:
    """Wait until no other process is at the beginning of a run, where directories are made and moved aside.

    Raises:
      InputError: what has the name of their directory is none.
    """
    try:
        RUNS.mkdir(exist_ok=True)
        held = os.open(RUNS, os.O_RDONLY)
    except FileExistsError as error:
        raise InputError(f"{RUNS} is no directory, and should be that of all runs: move it away") from error
    except OSError:
        yield  # the directory of the run cannot be made either, and says so
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def create(config: schema.Config, tokenizer: Tokenizer) -> Path | None:
    """Make the run's directory, with its configuration and tokenizer; an earlier run of that name is moved aside.

    Returns:
      Where the earlier run went, if there was one.

    Raises:
      InputError: the directory cannot be made, or another process is writing there.
    """
    directory, moved = RUNS / config.name, None
    unfinished = RUNS / f"{config.name}~"  # which no run can be called
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        schema.save(config, unfinished / "config.toml")
        tokenizers.save(tokenizer, unfinished / "tokenizer.json")
        if directory.exists():
            with locked(directory):
                names = (directory.with_name(f"{config.name}.{number}") for number in itertools.count(1))
                moved = directory.rename(next(name for name in names if not name.exists()))
        unfinished.rename(directory)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror}); choose another with --name") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return moved


def has_begun(directory: Path) -> bool:
    """Whether the run there has a step, or an evaluation, behind it."""
    metrics = directory / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0


def take_back(directory: Path, moved: Path | None) -> None:
    """Undo `create`: what cannot be done as asked has moved nothing."""
    with one_after_another():
        shutil.rmtree(directory)
        if moved:
            moved.rename(directory)


def check_same(config: schema.Config) -> Tokenizer:
    """The tokenizer of the run that is to go on, if it is the one that `config` says.

    Raises:
      InputError: no run is there, or another; the message names what differs.
    """
    directory = RUNS / config.name
    earlier, tokenizer = _read(directory)
    if changes := differences(settled(earlier), settled(config)):
        raise InputError(f"{directory}: --resume goes on with the same run only; {changes}")
    if config.data.path != earlier.data.path:
        raise InputError(
            f"{directory}: --resume goes on with the same run only; data.path was {earlier.data.path}, is "
            f"{config.data.path}: if the file has moved, say so in {directory / 'config.toml'}"
        )
    return tokenizer


def settled(config: schema.Config) -> dict[str, str]:
    """What a run that goes on has to have as it was, in words by dotted names."""
    fields = flatten(dataclasses.asdict(config))
    return {name: _shown(value) for name, value in fields.items() if not name.startswith(FREE)}


def differences(earlier: dict[str, str], now: dict[str, str]) -> str:
    """What of `settled` is no longer as it was; nothing if all is. What only one of the two has is not compared."""
    changed = [(name, was) for name, was in earlier.items() if now.get(name, was) != was]
    return ", ".join(f"{name} was {was}, is {now[name]}" for name, was in changed)


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, Path) else repr(value)


def check_unsaved(config: schema.Config, directory: Path) -> None:
    """Refuse to begin a run anew of which something has been saved, though it is no longer there.

    Raises:
      InputError: it says how many steps would be lost.
    """
    metrics = directory / "metrics.jsonl"
    steps = metrics.read_bytes().count(b'"train_loss"') if metrics.exists() else 0
    if steps > (0 if config.start else config.checkpoint_every):  # until then, a kill may have come first
        raise InputError(
            f"{directory}: {steps} steps are recorded, and no checkpoint is here: put back what was in "
            f"{directory / 'checkpoints'}, if anything was, or begin anew without --resume"
        )


def check_start(config: schema.Config, start: Path) -> Tokenizer:
    """The tokenizer of the run that another one is to start from, if the two fit.

    Raises:
      InputError: no model is there, or another than `config` has; the message names what differs.
    """
    if start.resolve() == (RUNS / config.name).resolve():
        raise InputError(f"--start {start}: a run cannot start from itself; give it another --name")
    theirs, tokenizer, _ = load_start(start)
    pairs: list[tuple[str, Any, Any]] = [("tokenizer", config.tokenizer, theirs.tokenizer)]
    if config.tokenizer == "bpe" and config.data.vocab_size != len(tokenizer):
        pairs.append(("data.vocab_size", config.data.vocab_size, theirs.data.vocab_size))
    pairs += [(f"model.{name}", getattr(config.model, name), getattr(theirs.model, name)) for name in SIZES]
    if differ := [f"{name} is {wanted!r}, there {there!r}" for name, wanted, there in pairs if wanted != there]:
        raise InputError(f"--start {start}: it has another model; {', '.join(differ)}")
    return tokenizer


def load_start(start: Path) -> tuple[schema.Config, Tokenizer, TransformerLM]:
    """Configuration, tokenizer and model of a run, of a directory with a GPT-2, or of one on the Hugging Face hub.

    Raises:
      InputError: none of them is there, or it cannot be read.
    """
    from attention_jax import pretrained

    try:
        directory = start
        if str(start) in pretrained.REVISIONS and not start.exists():
            try:
                directory = pretrained.download_gpt2(str(start))
            except (ValueError, ImportError):
                raise
            except Exception as error:  # the hub's library raises many kinds
                raise InputError(
                    f"--start {start}: it cannot be downloaded ({error}); give a directory that holds it"
                ) from error
        if not (directory / "config.json").exists():
            return _load_run(start)
        model = pretrained.load_gpt2(directory)
        tokenizer = tokenizers.BpeTokenizer(json.loads(pretrained.load_tokenizer(directory).to_str()))
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f'--start {start}: {error}; pip install -e ".[pretrained]"') from error
    except ValueError as error:
        raise InputError(f"--start {start}: {str(error).splitlines()[0]}") from error
    if len(tokenizer) != model.tokens.num_embeddings or model.norm.epsilon != 1e-5:
        raise InputError(
            f"--start {start}: expected a tokenizer of {model.tokens.num_embeddings} tokens and a layer_norm_epsilon "
            f"of 1e-5, got {len(tokenizer)} and {model.norm.epsilon}"
        )
    heads = model.blocks[0].attention.num_heads
    sizes = schema.Model("gpt2", model.num_layers, heads, model.tokens.features, model.context_length)
    return schema.Config(tokenizer="bpe", model=sizes), tokenizer, model


def _load_run(start: Path) -> tuple[schema.Config, Tokenizer, TransformerLM]:
    try:
        return load(start)
    except InputError as error:
        raise InputError(
            f"--start {error}; give a run that has been trained, a directory with a GPT-2, or gpt2, which is downloaded"
        ) from error


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names.

    >>> flatten({"a": 1, "b": {"c": 2}})
    {'a': 1, 'b.c': 2}
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def load(directory: Path) -> tuple[schema.Config, Tokenizer, TransformerLM]:
    """The configuration, tokenizer and newest model of a run.

    Raises:
      InputError: no run is there, its files cannot be read, or it has saved no model yet.
    """
    return _load(directory)[:3]


def load_with_data(directory: Path) -> tuple[schema.Config, Dataset, TransformerLM]:
    """The configuration of a run, the data that it learned from, and its newest model.

    Raises:
      InputError: as `load`, or the data are gone, or others by now.
    """
    config, tokenizer, model, digest = _load(directory)
    dataset = data_of(directory, config, tokenizer)
    if dataset.digest != digest:
        raise InputError(f"{directory}: these are other data than the run learned from; put those back, or train anew")
    return config, dataset, model


def data_of(directory: Path, config: schema.Config, tokenizer: Tokenizer) -> Dataset:
    """The data of a run that there is.

    Raises:
      InputError: they are gone, or hold what the run does not know; the message names the file that points to them.
    """
    try:
        return open_dataset(config, tokenizer)
    except InputError as error:
        raise InputError(f"{directory / 'config.toml'}: {error}") from error


def _load(directory: Path) -> tuple[schema.Config, Tokenizer, TransformerLM, str]:
    config, tokenizer = _read(directory)
    with checkpoint.Checkpoints(directory / "checkpoints", partial(print, file=sys.stderr)) as checkpoints:
        found = checkpoints.newest()
    if found is None:
        raise InputError(f"{directory}: no checkpoint here: it has saved none, or they are gone; go on with --resume")
    graphdef, params = nnx.split(build_model(config.model, len(tokenizer), jax.random.key(0)), nnx.Param)
    part = "average" if config.optimizer.ema_decay else "params"
    like = {part: nnx.to_pure_dict(params)}
    arrays, notes = found
    return config, tokenizer, nnx.merge(graphdef, checkpoint.unflat(like, arrays, directory)[part]), notes["data"]


def _read(directory: Path) -> tuple[schema.Config, Tokenizer]:
    try:
        return schema.load(directory / "config.toml"), tokenizers.load(directory / "tokenizer.json")
    except OSError as error:
        if (directory / "config.toml").exists():
            raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
        known = ", ".join(sorted(str(path.parent) for path in RUNS.glob("*/config.toml"))) or "none yet"
        raise InputError(f"{directory}: no training run is here; runs: {known}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(str(error)) from error
