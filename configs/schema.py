"""What a training run is made of: frozen dataclasses, which the command line and `config.toml` both fill in."""

import dataclasses
import math
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w


def _at_least(minimum: float, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not minimum <= value < math.inf:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def _fraction(config: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(config, name)}")


@dataclass(frozen=True)
class Data:
    """What is learned, and in which pieces."""

    path: Path | None = None
    """UTF-8 text file to learn from. Default: the English prose of Python's own help topics."""
    batch_size: int = 16
    """Sequences in a step."""
    validation_fraction: float = 0.1
    """Share of the text, from its end, that is kept for validation."""

    def __post_init__(self):
        _at_least(1, self, "batch_size")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be above 0 and below 1, got {self.validation_fraction}")


@dataclass(frozen=True)
class Model:
    """The sizes of the transformer."""

    num_layers: int = 4
    """Transformer blocks."""
    num_heads: int = 4
    """Attention heads in a block."""
    embed_dim: int = 128
    """Channels; a multiple of num_heads."""
    context_length: int = 64
    """The most tokens a prediction looks back on."""
    dropout_rate: float = 0.0
    """Share of activations dropped while training."""

    def __post_init__(self):
        _at_least(1, self, "num_layers", "num_heads", "embed_dim", "context_length")
        _fraction(self, "dropout_rate")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}")


@dataclass(frozen=True)
class Optimizer:
    """AdamW, with a linear warm-up and then half a cosine down."""

    learning_rate: float = 1e-3
    """The highest learning rate."""
    final_fraction: float = 0.1
    """The last learning rate, as a share of the highest."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from 0; at most a tenth of all steps are used."""
    weight_decay: float = 0.1
    """Decay of matrices; biases and norms have none."""
    beta2: float = 0.99
    """How slowly the average of squared gradients forgets."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient."""

    def __post_init__(self):
        _at_least(0, self, "learning_rate", "warmup_steps", "weight_decay", "clip_norm")
        _fraction(self, "final_fraction", "beta2")


@dataclass(frozen=True)
class Config:
    """A training run."""

    name: str = "text"
    """The run's directory under runs/; letters, digits and . _ - only."""
    steps: int = 2000
    """Optimiser steps."""
    seed: int = 0
    """Decides parameters, batches, dropout and samples."""
    eval_every: int = 250
    """Steps from one validation and sample to the next."""
    checkpoint_every: int = 250
    """Steps from one checkpoint to the next; there is one at the end, too."""
    resume: bool = False
    """Go on with the run of this name, from its newest checkpoint."""
    quiet: bool = False
    """Print nothing but errors."""
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    optimizer: Optimizer = field(default_factory=Optimizer)

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9._-]+", self.name) or not self.name.strip("."):
            raise ValueError(f"name may hold letters, digits and . _ - only, got {self.name!r}")
        _at_least(1, self, "steps", "eval_every", "checkpoint_every")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be at least 0 and below 2**32, got {self.seed}")


def save(config: Config, path: Path) -> None:
    """Write a config as TOML, leaving out what is None."""

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items() if item is not None}
        return str(value) if isinstance(value, Path) else value

    path.write_text(tomli_w.dumps(plain(dataclasses.asdict(config))), encoding="utf-8")


def load(path: Path) -> Config:
    """Read what `save` wrote.

    Raises:
      ValueError: a field that is not known, or a value that is not allowed.
    """
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    parts = {"data": Data, "model": Model, "optimizer": Optimizer}
    try:
        if "path" in tables.get("data", {}):
            tables["data"]["path"] = Path(tables["data"]["path"])
        return Config(**{name: parts[name](**value) if name in parts else value for name, value in tables.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
