"""What a training run is made of: frozen dataclasses, which the command line and `config.toml` both fill in."""

import dataclasses
import math
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tomli_w

MOST_STEPS = 10**7
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}


def _at_least(minimum: float, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not minimum <= value < math.inf:
            finite = "" if value < math.inf else " and finite"
            raise ValueError(f"{name} must be at least {minimum}{finite}, got {value}")


def _fraction(config: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(config, name)}")


@dataclass(frozen=True)
class Data:
    """What is learned, and in which pieces."""

    source: Literal["help", "shakespeare", "copy", "reverse", "sort", "add", "questions"] = "help"
    """The help topics that every Python ships, Tiny Shakespeare, a task, or questions with answers."""
    path: Path | None = None
    """UTF-8 text file to learn from instead; for questions, JSON lines with a question and an answer each."""
    vocab_size: int = 1024
    """Tokens of a bpe vocabulary, which is made from the text."""
    task_length: int = 8
    """The most characters of a task's question, or digits of a number to add."""
    batch_size: int = 16
    """Sequences in a step."""
    accumulate: int = 1
    """Parts that a step's sequences are cut into, one after another, for less memory; the step stays the same."""
    validation_fraction: float = 0.1
    """Share that is kept for validation: of a text its end, of questions some chosen by their hash."""

    def __post_init__(self) -> None:
        _at_least(1, self, "batch_size", "accumulate", "task_length")
        _at_least(256, self, "vocab_size")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size={self.batch_size} must be a multiple of accumulate={self.accumulate}")
        if self.source == "add" and self.task_length > 18:
            raise ValueError(f"task_length must be at most 18 for add, got {self.task_length}")
        if re.search("[\ud800-\udfff]", str(self.path)):  # bytes of a command line that are no text
            raise ValueError(f"path must be text in UTF-8, got {str(self.path)!r}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be above 0 and below 1, got {self.validation_fraction}")


@dataclass(frozen=True)
class Model:
    """The transformer, and how it is computed."""

    kind: Literal["plain", "gpt2"] = "plain"
    """gpt2 has one projection for query, key and value, and GELU by tanh, as the published weights want them."""
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
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in; parameters, softmax, loss and the optimiser's state are float32 in any case."""
    remat: bool = False
    """Recompute each block in the backward pass rather than keep its activations: less memory, a third more time."""
    scan: bool = False
    """Run the blocks as one loop, which compiles once and not once a block; the same numbers."""

    def __post_init__(self) -> None:
        _at_least(1, self, "num_layers", "num_heads", "embed_dim", "context_length")
        _fraction(self, "dropout_rate")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}")


@dataclass(frozen=True)
class Loss:
    """What is added to the cross-entropy; reported losses are without."""

    label_smoothing: float = 0.0
    """Share of each target spread over all tokens (arXiv:1512.00567)."""
    z_loss: float = 0.0
    """Factor on the squared logarithm of the softmax's denominator, which keeps logits small (arXiv:2204.02311)."""

    def __post_init__(self) -> None:
        _fraction(self, "label_smoothing")
        _at_least(0, self, "z_loss")


@dataclass(frozen=True)
class Optimizer:
    """How parameters follow the gradient."""

    method: Literal["adamw", "muon"] = "adamw"
    """AdamW (arXiv:1711.05101), or Muon (arXiv:2502.16982) for the blocks' matrices and AdamW for the rest."""
    learning_rate: float = 1e-3
    """The highest learning rate."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After the warm-up: half a cosine down, constant and then straight down (arXiv:2405.18392), or constant."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from 0; at most a tenth of all steps are used."""
    decay_fraction: float = 0.2
    """Share of the steps, at the end, over which wsd goes down."""
    final_fraction: float = 0.1
    """The last learning rate of cosine and wsd, as a share of the highest."""
    weight_decay: float = 0.1
    """Decay of matrices; biases and norms have none."""
    beta2: float = 0.99
    """How slowly the average of squared gradients forgets."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; 0 for any."""
    ema_decay: float = 0.0
    """How slowly the average of the weights forgets, which is then what is evaluated and sampled from; 0 for none."""

    def __post_init__(self) -> None:
        _at_least(0, self, "learning_rate", "warmup_steps", "weight_decay", "clip_norm")
        _fraction(self, "final_fraction", "decay_fraction", "beta2", "ema_decay")


@dataclass(frozen=True)
class Mesh:
    """How the work is spread over devices: data x model of them."""

    data: int = 1
    """Parts of each batch; 0 for as many as there are devices for."""
    model: int = 1
    """Parts of every layer: its heads and hidden channels (arXiv:1909.08053)."""
    fsdp: bool = False
    """Cut parameters and optimiser state over the data axis too, to be gathered when needed (arXiv:1910.02054)."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where a run has several processes."""
    processes: int = 1
    """Processes of the run, which share a file system; a signal ends it at its next checkpoint."""
    process: int = 0
    """Which of them this is, from 0."""

    def __post_init__(self) -> None:
        _at_least(0, self, "data", "process")
        _at_least(1, self, "model", "processes")
        if self.process >= self.processes:
            raise ValueError(f"process must be below processes={self.processes}, got {self.process}")
        if (self.coordinator is None) != (self.processes == 1):
            raise ValueError("coordinator and processes > 1 go together: give both, or neither")
        if self.coordinator is not None and not re.fullmatch(r".+:\d+", self.coordinator):
            raise ValueError(f"coordinator must be HOST:PORT, got {self.coordinator!r}")


@dataclass(frozen=True)
class Config:
    """A training run."""

    name: str = "text"
    """The run's directory under runs/; letters, digits and . _ - only."""
    steps: int = 2000
    """Optimiser steps."""
    seed: int = 0
    """Decides parameters, batches, dropout and samples."""
    tokenizer: Literal["char", "byte", "bpe"] = "char"
    """One token a character, a UTF-8 byte, or a frequent stretch of bytes (arXiv:1508.07909)."""
    start: Path | None = None
    """What this run takes its weights and tokenizer from: the directory of a run, or that of a GPT-2 with
    config.json, model.safetensors, vocab.json and merges.txt, or gpt2, gpt2-medium, gpt2-large or gpt2-xl, which
    are downloaded."""
    eval_every: int = 250
    """Steps from one validation, sample and picture to the next."""
    checkpoint_every: int = 250
    """Steps from one checkpoint to the next; there is one at the end, too."""
    resume: bool = False
    """Go on with the run of this name, from its newest checkpoint."""
    quiet: bool = False
    """Print nothing but errors."""
    profile: bool = False
    """Write what the device did in five steps to runs/NAME/profile, for XProf or TensorBoard."""
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    mesh: Mesh = field(default_factory=Mesh)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", self.name) or not self.name.strip("."):
            raise ValueError(f"name may hold letters, digits and . _ - only, and not dots alone, got {self.name!r}")
        _at_least(1, self, "steps", "eval_every", "checkpoint_every")
        if self.steps > MOST_STEPS:
            raise ValueError(f"steps must be at most {MOST_STEPS:,}, since each leaves a record, got {self.steps}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be at least 0 and below 2**32, got {self.seed}")
        if self.data.source in ("copy", "reverse", "sort") and self.data.task_length >= self.model.context_length:
            raise ValueError(
                f"data.task_length={self.data.task_length} must be below model.context_length="
                f"{self.model.context_length}, which question and answer have to fit in"
            )
        if self.data.source == "questions" and self.start is None:
            raise ValueError("start must name the run that questions fine-tune, such as runs/text")


def save(config: Config, path: Path) -> None:
    """Write a config as TOML, leaving out what is None."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items() if item is not None}
        return str(value) if isinstance(value, Path) else value

    path.write_text(tomli_w.dumps(plain(dataclasses.asdict(config))), encoding="utf-8")


def load(path: Path) -> Config:
    """Read what `save` wrote.

    Raises:
      ValueError: a field that is not known, or a value that is not allowed.
    """
    try:
        return _filled(Config, tomllib.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _filled(kind: Any, table: dict[str, Any]) -> Any:
    """A dataclass from a table of its fields."""
    types = get_type_hints(kind)
    values = {}
    for name, value in table.items():
        if name not in types:
            raise ValueError(f"no field is called {name!r}; there are: {', '.join(types)}")
        values[name] = _value(name, value, types[name])
    return kind(**values)


def _value(name: str, value: Any, wanted: Any) -> Any:
    """A field of this type from what TOML has for it."""
    if dataclasses.is_dataclass(wanted):
        if not isinstance(value, dict):
            raise TypeError(f"{name} must be a table, got {value!r}")
        return _filled(wanted, value)
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise ValueError(f"{name} must be one of {', '.join(get_args(wanted))}, got {value!r}")
        return value
    kind = next(each for each in _KINDS if wanted in (each, each | None))
    taken = {float: (float, int), Path: (str,)}.get(kind, (kind,))
    if type(value) not in taken:
        raise TypeError(f"{name} must be {_KINDS[kind]}, got {value!r}")
    return kind(value)
