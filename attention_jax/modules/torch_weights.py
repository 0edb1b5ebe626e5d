"""Weights to and from the equivalent PyTorch modules.

    from_torch(attention, torch_attention.state_dict())                                   # PyTorch -> ours
    torch_attention.load_state_dict(to_torch(attention, torch_attention.state_dict()))    # ours -> PyTorch

PyTorch is not imported: a state dict is a mapping from names to arrays. Its names are matched by their last words, as
listed in `_NAMES`: those of `nn.MultiheadAttention`, of a pre-norm `nn.TransformerEncoderLayer`, of nanoGPT, and of
tutorials (`W_q`, `qkv_proj`, `mlp.0`). Kernels are `nn.Linear`'s, `[out, in]`, and a fused one holds query, key and
value one after the other. A state dict holds neither an activation nor the order of norms: the block has to be built
with those of the PyTorch module, whose default is `jax.nn.relu`.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention_jax.modules.attention import MultiHeadAttention, SingleHeadAttention
from attention_jax.modules.transformer import TransformerBlock

_MLP = r"(mlp|ffn?|feed_?forward|net|layers)"
_NAMES = {
    "query": r"w_?q|w_?query|q|query|q_proj|query_proj|to_q",
    "key": r"w_?k|w_?key|k|key|k_proj|key_proj|to_k",
    "value": r"w_?v|w_?value|v|value|v_proj|value_proj|to_v",
    "qkv": r"in_proj|qkv|qkv_proj|w_?qkv|to_qkv|c_attn",
    "down": rf"linear2|fc2|down|down_proj|w2|{_MLP}\.(c_proj|proj|2|3)",
    "out": r"w_?o|w_?out|out|out_proj|o_proj|to_out|c_proj|proj",
    "gate": r"gate|gate_proj|w1",
    "up": rf"linear1|fc1|c_fc|up|up_proj|w3|{_MLP}\.0",
    "query_norm": r"(q|query)_?(layer)?norm",
    "key_norm": r"(k|key)_?(layer)?norm",
    "norm1": r"(layer_?)?norm_?1|ln_?1|(attn|attention|input)_?(layer)?norm",
    "norm2": r"(layer_?)?norm_?2|ln_?2|(mlp|ffn?|post_attention)_?(layer)?norm",
}
_KINDS = {"weight": "weight", "scale": "weight", "bias": "bias", "shift": "bias"}
_BUFFERS = re.compile(r"(^|\.)(\w*mask|tril|triu|inv_freq)$")
Module = TypeVar("Module", bound=nnx.Module)
_Layers = dict[str, dict[str, np.ndarray]]


def from_torch(module: Module, state_dict: Mapping[str, Any]) -> Module:
    """Copy a PyTorch state dict into an attention module or a transformer block.

    Args:
      module: `SingleHeadAttention`, `MultiHeadAttention` or `TransformerBlock`, of the same sizes; its parameters are
        replaced. Its projections may be fused or separate, whatever the state dict's are, and a bias that the state
        dict lacks becomes 0.
      state_dict: `torch_module.state_dict()`, or the same names with NumPy arrays.

    Returns:
      `module`.

    Raises:
      ValueError: a name that is not known, missing or there twice, or a shape that does not fit; nothing is changed.
      TypeError: another kind of module.

    >>> weights = {name + ".weight": np.eye(4, dtype=np.float32) for name in ("qkv_proj", "out_proj")}
    >>> weights["qkv_proj.weight"] = np.ones((12, 4), np.float32)
    >>> attention = from_torch(MultiHeadAttention(4, 2, rngs=nnx.Rngs(0)), weights)
    >>> attention.query.kernel.shape, float(attention.query.kernel[...].sum())
    ((4, 4), 16.0)
    """
    theirs: _Layers = {}
    for name, (layer, kind) in _match(state_dict).items():
        theirs.setdefault(layer, {})[kind] = _to_numpy(state_dict[name])
    theirs = _regroup(theirs, _ours(module))
    updates = []
    for layer, params in _ours(module).items():
        if layer not in theirs:
            raise ValueError(f"the state dict has no {layer} layer; it has {sorted(state_dict)}")
        given = dict(theirs.pop(layer))
        given.setdefault("bias", np.zeros(len(given.get("weight", ())), np.float32))
        for kind, param in params.items():
            array = given.pop(kind, None)
            array = array.T if array is not None and _is_kernel(layer, kind) else array
            if array is None or array.shape != param.shape:
                shape = "nothing" if array is None else array.shape
                raise ValueError(f"the module's {layer} {kind} is {param.shape}, the state dict gives {shape}")
            updates.append((param, array))
        if any(np.any(array) for array in given.values()):
            raise ValueError(
                f"the state dict has a {layer} {', '.join(given)} and the module none: use_bias=True adds it"
            )
    if theirs:
        raise ValueError(f"the module has no place for the state dict's {', '.join(theirs)}")
    for param, array in updates:
        param[...] = jnp.array(array, param.dtype)  # a copy, which does not change with its source
    return module


def to_torch(module: nnx.Module, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a module under the names, and in the shapes, of a PyTorch state dict.

    Args:
      module: `SingleHeadAttention`, `MultiHeadAttention` or `TransformerBlock`.
      state_dict: that of the PyTorch module to fill; only its names, shapes and (for PyTorch tensors) types are used.

    Returns:
      A dict for `torch_module.load_state_dict`; buffers such as causal masks are passed through.

    Raises:
      ValueError: names or shapes that do not fit, or a bias of ours that is not 0 and has no place.
      TypeError: another kind of module.

    >>> names = {"qkv_proj.weight": np.zeros((12, 4)), "out_proj.weight": np.zeros((4, 4))}
    >>> attention = MultiHeadAttention(4, 2, use_bias=False, rngs=nnx.Rngs(0))
    >>> {name: array.shape for name, array in to_torch(attention, names).items()}
    {'qkv_proj.weight': (12, 4), 'out_proj.weight': (4, 4)}
    """
    ours: _Layers = {
        layer: {kind: _torch_layout(layer, kind, param) for kind, param in params.items()}
        for layer, params in _ours(module).items()
    }
    places = _match(state_dict)
    wanted: dict[str, dict[str, str]] = {}
    for name, (layer, kind) in places.items():
        wanted.setdefault(layer, {})[kind] = name
    ours = _regroup(ours, wanted)
    filled = dict(state_dict)
    for name, (layer, kind) in places.items():
        target = state_dict[name]
        array = ours.get(layer, {}).pop(kind, np.zeros(target.shape, np.float32) if kind == "bias" else None)
        if array is None or array.shape != tuple(target.shape):
            shape = "nothing" if array is None else array.shape
            raise ValueError(f"{name} is {tuple(target.shape)}, the module gives {shape}")
        filled[name] = target.new_tensor(array) if hasattr(target, "new_tensor") else array
    left = [f"{layer} {kind}" for layer, params in ours.items() for kind, array in params.items() if np.any(array)]
    if left:
        raise ValueError(f"the state dict has no place for the module's {', '.join(left)}")
    return filled


def _match(state_dict: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """For each name: our layer, and "weight" or "bias"."""
    places: dict[str, tuple[str, str]] = {}
    for name, array in state_dict.items():
        path, _, kind = re.sub(r"in_proj_(weight|bias)$", r"in_proj.\1", name).rpartition(".")
        if _BUFFERS.search(name) or (kind == "bias" and len(array.shape) > 1):
            continue  # a causal mask kept as a buffer; nanoGPT calls it `bias`
        layers = [layer for layer, words in _NAMES.items() if re.search(rf"(^|\.)({words})$", path, re.IGNORECASE)]
        if not layers or kind not in _KINDS:
            raise ValueError(
                f"no layer of ours is known as {name!r}: rename it to one of {', '.join(_NAMES)} + .weight"
            )
        place = layers[0], _KINDS[kind]
        if place in places.values():
            raise ValueError(f"the state dict has two of {' '.join(place)}: pass the entries of one layer only")
        places[name] = place
    return places


def _ours(module: nnx.Module) -> dict[str, dict[str, nnx.Param]]:
    """The module's layers by the names of `_NAMES`, each with its weight and its bias, if any."""
    if isinstance(module, TransformerBlock):
        layers = {**_attention_layers(module.attention), "norm1": module.norm1, "norm2": module.norm2}
        feed_forward = module.feed_forward
        layers |= {name: getattr(feed_forward, name) for name in ("gate", "up", "down") if hasattr(feed_forward, name)}
    elif isinstance(module, SingleHeadAttention | MultiHeadAttention):
        layers = _attention_layers(module)
    else:
        raise TypeError(f"expected an attention module or a TransformerBlock, got {type(module).__name__}")
    params = {
        name: {"weight": getattr(layer, "kernel", None) or layer.scale, "bias": getattr(layer, "bias", None)}
        for name, layer in layers.items()
    }
    return {name: {kind: param for kind, param in both.items() if param is not None} for name, both in params.items()}


def _attention_layers(attention: nnx.Module) -> dict[str, Any]:
    names = ("query", "key", "value", "qkv", "out", "query_norm", "key_norm")
    return {name: getattr(attention, name) for name in names if getattr(attention, name, None) is not None}


def _regroup(layers: _Layers, wanted: Mapping[str, Any]) -> _Layers:
    """`layers` with the query, key and value of `[out, in]` kernels fused, or taken apart, as `wanted` has them."""
    layers, parts = dict(layers), ("query", "key", "value")
    if "qkv" in wanted and all(part in layers for part in parts):
        separate = [dict(layers.pop(part)) for part in parts]
        for part in separate:
            part.setdefault("bias", np.zeros(len(part["weight"]), np.float32))
        layers["qkv"] = {kind: np.concatenate([part[kind] for part in separate]) for kind in ("weight", "bias")}
    elif "qkv" in layers and all(part in wanted for part in parts):
        fused = layers.pop("qkv")
        D = fused["weight"].shape[1]
        sizes = (D, (len(fused["weight"]) - D) // 2)
        for part, start, end in zip(parts, (0, D, D + sizes[1]), (D, D + sizes[1], None), strict=True):
            layers[part] = {kind: array[start:end] for kind, array in fused.items()}
    return layers


def _is_kernel(layer: str, kind: str) -> bool:
    return kind == "weight" and "norm" not in layer


def _to_numpy(array: Any) -> np.ndarray:
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = array.float() if "bfloat16" in str(array.dtype) else array
    return np.asarray(array)


def _torch_layout(layer: str, kind: str, param: nnx.Param) -> np.ndarray:
    array = np.asarray(param[...])
    return array.T if _is_kernel(layer, kind) else array
