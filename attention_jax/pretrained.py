"""GPT-2 (Radford et al. 2019): weights from safetensors files into a `TransformerLM`, and back.

    model = load_gpt2("path/to/gpt2")        # a directory with config.json and model.safetensors
    model = load_gpt2(download_gpt2("gpt2-medium"))

No file is run or unpickled. What is not the GPT-2 that config.json describes is refused with one line.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from attention_jax.modules import FeedForward, MultiHeadAttention, TransformerBlock, TransformerLM

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REVISIONS = {
    "gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "gpt2-medium": "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
    "gpt2-large": "32b71b12589c2f8d625668d2335a01cac3249519",
    "gpt2-xl": "15ea56dee5df4983c59b2538573817e1667135e2",
}
"""The commits of huggingface.co/openai-community that are downloaded."""

FILES = "config.json", "model.safetensors", "vocab.json", "merges.txt"
MOST_JSON = 100 * 2**20
DTYPES = "F32", "F16", "BF16"
"""What the numbers of a safetensors file may be: all of them are float32 numbers, too."""
NAMES = {
    "tokens.embedding": "wte.weight",
    "positions.table": "wpe.weight",
    "norm.scale": "ln_f.weight",
    "norm.bias": "ln_f.bias",
}
BLOCK_NAMES = {
    "norm1.scale": "ln_1.weight",
    "norm1.bias": "ln_1.bias",
    "attention.qkv.kernel": "attn.c_attn.weight",
    "attention.qkv.bias": "attn.c_attn.bias",
    "attention.out.kernel": "attn.c_proj.weight",
    "attention.out.bias": "attn.c_proj.bias",
    "norm2.scale": "ln_2.weight",
    "norm2.bias": "ln_2.bias",
    "feed_forward.up.kernel": "mlp.c_fc.weight",
    "feed_forward.up.bias": "mlp.c_fc.bias",
    "feed_forward.down.kernel": "mlp.c_proj.weight",
    "feed_forward.down.bias": "mlp.c_proj.bias",
}
BUFFERS = re.compile(r"h\.\d+\.attn\.(masked_)?bias")
FIXED = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
"""What this GPT-2 is; a config.json may leave out any but the first."""


GPT2Attention = partial(MultiHeadAttention, fused=True)
GPT2FeedForward = partial(FeedForward, activation=jax.nn.gelu)


def build_gpt2(
    vocab_size: int, context_length: int, embed_dim: int, num_heads: int, num_layers: int, *, epsilon: float = 1e-5,
    hidden_dim: int | None = None, rngs: nnx.Rngs,
) -> TransformerLM:  # fmt: skip
    """A `TransformerLM` of GPT-2's architecture, freshly initialised.

    Args:
      vocab_size, context_length, embed_dim, num_heads, num_layers: as `TransformerLM`.
      epsilon: of the norms.
      hidden_dim: width of the feed-forward networks; 4 D if not given.
      rngs: initialises the parameters.

    >>> build_gpt2(65, 16, 8, 2, 1, rngs=nnx.Rngs(0))(jnp.zeros((2, 5), int)).shape
    (2, 5, 65)
    """
    block = partial(
        TransformerBlock, attention=GPT2Attention, feed_forward=partial(GPT2FeedForward, hidden_dim=hidden_dim)
    )
    norm = partial(nnx.LayerNorm, epsilon=epsilon)
    return TransformerLM(
        vocab_size, context_length, embed_dim, num_heads, num_layers, block=block, norm=norm, rngs=rngs
    )


def load_gpt2(directory: str | Path, *, sha256: str | None = None) -> TransformerLM:
    """The model in a directory, in float32.

    Args:
      directory: with `config.json` and `model.safetensors`, as `transformers` saves and the hub holds them.
      sha256: what the hash of `model.safetensors` has to be, in hexadecimal. Default: it is not checked.

    Raises:
      ValueError: a file that is missing, damaged, not a GPT-2, or has another hash.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save_gpt2(build_gpt2(65, 16, 8, 2, 1, rngs=nnx.Rngs(0)), directory)
    ...     load_gpt2(directory)(jnp.zeros((2, 5), int)).shape
    (2, 5, 65)
    """
    directory = Path(directory)
    config, path = _read_config(directory / "config.json"), directory / "model.safetensors"
    if sha256 is not None:
        _check_hash(path, sha256)
    sizes = config["vocab_size"], config["n_positions"], config["n_embd"], config["n_head"], config["n_layer"]
    options = {"epsilon": config["layer_norm_epsilon"], "hidden_dim": config["n_inner"]}
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build_gpt2(*sizes, **options, rngs=nnx.Rngs(0))))
    wanted, names = flatten_dict(nnx.to_pure_dict(state)), _names(config["n_layer"])
    stored = _stored_names(path, {name: wanted[ours].shape for ours, name in names.items()})
    with _open(path) as file:
        params = {ours: jnp.asarray(file.get_tensor(stored[name]), jnp.float32) for ours, name in names.items()}
        head = stored.get("lm_head.weight")
        if head is not None and not (file.get_tensor(head) == file.get_tensor(stored["wte.weight"])).all():
            raise ValueError(f"{path}: lm_head.weight is not wte.weight, and this GPT-2's head is its embedding")
    nnx.replace_by_pure_dict(state, unflatten_dict(params))
    return nnx.merge(graphdef, state)


def save_gpt2(model: TransformerLM, directory: str | Path) -> None:
    """Write `config.json` and `model.safetensors`, which `transformers.GPT2LMHeadModel.from_pretrained` reads.

    Args:
      model: as `build_gpt2` makes it.
      directory: made if it is not there.

    Raises:
      ValueError: a model of another architecture.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save_gpt2(build_gpt2(65, 16, 8, 2, 1, rngs=nnx.Rngs(0)), directory)
    ...     sorted(path.name for path in Path(directory).iterdir())
    ['config.json', 'model.safetensors']
    """
    from safetensors.numpy import save_file

    params, names = flatten_dict(nnx.to_pure_dict(nnx.state(model))), _names(model.num_layers)
    block: Any = None if model.scan else model.blocks[0]
    if not (
        set(params) == set(names)
        and isinstance(block.feed_forward, FeedForward)
        and block.feed_forward.activation is jax.nn.gelu
        and block.attention.rotary is None
        and block.attention.num_kv_heads == block.attention.num_heads
    ):
        raise ValueError("this model is not of GPT-2's architecture: make it by build_gpt2 or load_gpt2")
    tensors = {f"transformer.{name}": jax.device_get(params[ours]) for ours, name in names.items()}
    (vocab_size, D), hidden_dim = tensors["transformer.wte.weight"].shape, block.feed_forward.up.out_features
    config = FIXED | {
        "architectures": ["GPT2LMHeadModel"], "vocab_size": vocab_size, "n_positions": model.context_length,
        "n_embd": D, "n_head": block.attention.num_heads, "n_layer": model.num_layers, "n_inner": hidden_dim,
        "layer_norm_epsilon": model.norm.epsilon,
    }  # fmt: skip
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, write in (
        ("model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"})),
        ("config.json", lambda path: path.write_text(json.dumps(config, indent=2) + "\n")),
    ):
        unfinished = directory / f"{name}.unfinished"
        write(unfinished)
        os.replace(unfinished, directory / name)


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """GPT-2's byte-pair encoding, a `tokenizers.Tokenizer`, from `tokenizer.json` or `vocab.json` and `merges.txt`.

    No text is taken for a special token: `<|endoftext|>` in it is a dozen characters.

    Args:
      directory: as `download_gpt2` returns it.

    Returns:
      The tokenizer: `encode(text).ids`, `decode(ids)`.

    Raises:
      ValueError: neither is there, or they are damaged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = Path(directory, "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    ...     _ = Path(directory, "merges.txt").write_text("a b")
    ...     load_tokenizer(directory).encode("abb").ids
    [2, 1]
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    directory = Path(directory)
    try:
        if (directory / "tokenizer.json").exists():
            saved = json.loads((directory / "tokenizer.json").read_bytes())
            return Tokenizer.from_str(json.dumps(saved | {"added_tokens": [], "post_processor": None}))
        tokenizer = Tokenizer(models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt")))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{directory} holds no tokenizer.json, nor vocab.json and merges.txt: {error}") from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def download_gpt2(name: str = "gpt2", *, revision: str | None = None, limit: int = 8 * 2**30) -> Path:
    """Fetch a GPT-2 from the Hugging Face hub, once; returns the directory for `load_gpt2` and `load_tokenizer`.

    Args:
      name: one of `REVISIONS`, or a hub repository `owner/name`.
      revision: the commit, 40 hexadecimal digits; that of `REVISIONS` if not given.
      limit: the most bytes that a file may have.

    Raises:
      ValueError: no such commit is given, a file is missing or too large, or the weights are not what the hub says.
    """
    from huggingface_hub import HfApi, snapshot_download

    repository, revision = name if "/" in name else f"openai-community/{name}", revision or REVISIONS.get(name, "")
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise ValueError(f"{name} needs revision=, a commit of 40 hexadecimal digits; got {revision!r}")
    files: dict[str, Any] = {
        file.rfilename: file
        for file in HfApi().model_info(repository, revision=revision, files_metadata=True).siblings  # type: ignore[union-attr]
    }
    for file in FILES:
        if file not in files:
            raise ValueError(f"{repository} at {revision} has no {file}")
        if files[file].size is None or files[file].size > limit:
            raise ValueError(f"{file} of {repository} has {files[file].size} bytes, more than the limit of {limit}")
    directory = Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    _check_hash(directory / "model.safetensors", files["model.safetensors"].lfs.sha256)
    return directory


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_JSON:
            raise ValueError(f"it has more than {MOST_JSON} bytes")
        config = json.loads(path.read_bytes(), object_pairs_hook=_unique)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds {type(config).__name__}, expected the fields of a GPT-2")
    for name, wanted in FIXED.items():
        given = config.get(name, None if name == "model_type" else wanted)
        if given != wanted:
            raise ValueError(f"{path}: {name} must be {wanted!r}, got {given!r}")
    config = dict[str, Any](layer_norm_epsilon=1e-5, n_inner=None) | config
    sizes = "vocab_size", "n_positions", "n_embd", "n_head", "n_layer"
    for name in sizes if config["n_inner"] is None else (*sizes, "n_inner"):
        if type(config.get(name)) is not int or not 0 < config[name] < 2**24:
            raise ValueError(f"{path}: {name} must be a positive integer below 2**24, got {config.get(name)!r}")
    if config["n_embd"] % config["n_head"] or config["n_layer"] > 1000:
        raise ValueError(f"{path}: {config['n_embd']} channels, {config['n_head']} heads, {config['n_layer']} layers")
    if type(config["layer_norm_epsilon"]) is not float or not 0 < config["layer_norm_epsilon"] < 1:
        raise ValueError(f"{path}: layer_norm_epsilon must be between 0 and 1, got {config['layer_norm_epsilon']!r}")
    return config


def _stored_names(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """What each tensor is called in the file, once all that are wanted are there, and no others."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(MOST_JSON, path.stat().st_size):
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(file.read(length), object_pairs_hook=_unique)
        header.pop("__metadata__", None)
        found = {name: tuple(header[name]["shape"]) for name in header}
        dtypes = {name: header[name]["dtype"] for name in header}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    stored = {name.removeprefix("transformer."): name for name in found}
    if len(stored) != len(found):
        raise ValueError(f"{path} holds a tensor twice, with and without the prefix transformer.")
    known = {name for name in stored if name in shapes or name == "lm_head.weight" or BUFFERS.fullmatch(name)}
    for what, names in (("lacks", set(shapes) - known), ("holds, which GPT-2 does not have,", set(stored) - known)):
        if names:
            raise ValueError(
                f"{path} {what} {min(names)!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            )
    shapes = shapes | ({"lm_head.weight": shapes["wte.weight"]} if "lm_head.weight" in stored else {})
    for name, shape in shapes.items():
        if found[stored[name]] != shape:
            raise ValueError(f"{path}: {stored[name]} has shape {found[stored[name]]}, config.json asks for {shape}")
        if dtypes[stored[name]] not in DTYPES:
            raise ValueError(f"{path}: {stored[name]} is {dtypes[stored[name]]}, expected one of {', '.join(DTYPES)}")
    return stored


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="flax")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error


def _check_hash(path: Path, sha256: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if found != sha256.lower():
        raise ValueError(f"{path} is not the file expected: its SHA-256 is {found}, not {sha256}; fetch it again")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands twice")
    return fields


def _names(num_layers: int) -> dict[tuple[str | int, ...], str]:
    """The name in GPT-2's files of each parameter, by its path in the model."""
    names: dict[tuple[str | int, ...], str] = {tuple(ours.split(".")): name for ours, name in NAMES.items()}
    for i in range(num_layers):
        names |= {("blocks", i, *ours.split(".")): f"h.{i}.{name}" for ours, name in BLOCK_NAMES.items()}
    return names
