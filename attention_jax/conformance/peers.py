"""Adapters of other libraries' attention, each as its users would call it."""

import importlib
from importlib.metadata import PackageNotFoundError, version

import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.conformance.implementation import Implementation
from attention_jax.dot_product import merge_heads


def implementations() -> list[Implementation]:
    """Those whose library is installed."""
    return [
        Implementation(name, version(library), attend, **more)
        for name, library, attend, more in (
            ("jax.nn", "jax", by_jax_nn, {}),
            ("nnx function", "flax", by_nnx_function, {}),
            ("nnx module", "flax", by_nnx_module, {"decode": by_nnx_cache}),
            ("splash", "jax", by_splash, {}),
            ("torch", "torch", by_torch, {"gradients": torch_gradients}),
            ("tokamax", "tokamax", by_tokamax, {}),
            ("equinox", "equinox", by_equinox, {}),
        )
        if _is_installed(library)
    ]


def by_jax_nn(query, key, value, *, mask=None, bias=None, causal=False, key_lengths=None, with_lse=False):
    options = {"is_causal": causal, "key_value_seq_lengths": key_lengths}
    options |= {"return_residual": True} if with_lse else {}
    result = jax.nn.dot_product_attention(query, key, value, _rank_4(bias), _rank_4(mask), **options)
    return (result[0], jnp.moveaxis(result[1], -1, -2)) if with_lse else result


def by_nnx_function(
    query, key, value, *, mask=None, bias=None, causal=False, dropout_rate=0.0, dropout_rng=None, precision=None
):
    from flax import nnx

    options = {"dropout_rate": dropout_rate, "dropout_rng": dropout_rng, "precision": precision}
    options |= {"is_causal": True} if causal else {}
    return nnx.dot_product_attention(query, key, value, _rank_4(bias), _rank_4(mask), **options)


def by_nnx_module(query, key, value, *, mask=None, causal=False, dropout_rate=0.0, dropout_rng=None, precision=None,
                  with_weights=False):  # fmt: skip
    from flax import nnx

    module = _nnx_module(query, key, dropout_rate=dropout_rate, precision=precision)
    options = (
        {"rngs": nnx.Rngs(dropout=dropout_rng), "deterministic": False}
        if dropout_rng is not None
        else {"deterministic": True}
    )
    options |= {"is_causal": True} if causal else {}
    options |= {"sow_weights": True} if with_weights else {}
    heads = map(merge_heads, (query, key, value))
    output = module(*heads, mask=_rank_4(mask), decode=False, **options).reshape(query.shape)
    if with_weights:
        return output, jax.tree.leaves(nnx.pop(module, nnx.Intermediate))[0]
    return output


def by_nnx_cache(query, key, value, *, chunks, capacity):
    module, outputs, first = _nnx_module(query, key), [], 0
    module.init_cache((*query.shape[:-3], capacity, query.shape[-2] * query.shape[-1]))
    for T in chunks:
        heads = (merge_heads(x[..., first : first + T, :, :]) for x in (query, key, value))
        outputs.append(module(*heads, deterministic=True, decode=True))
        first += T
    return jnp.concatenate(outputs, axis=-2).reshape(query.shape)


def _nnx_module(query, key, **options):
    """With projections that copy."""
    from flax import nnx

    (N, H), K = query.shape[-2:], key.shape[-2]
    options |= {"num_kv_heads": K, "in_kv_features": K * H} if K != N else {}
    options["param_dtype"] = query.dtype if jnp.issubdtype(query.dtype, jnp.floating) else jnp.float32
    module = nnx.MultiHeadAttention(N, N * H, use_bias=False, rngs=nnx.Rngs(0), **options)
    for layer in (module.query, module.key, module.value, module.out):
        layer.kernel[...] = jnp.eye(round(layer.kernel.size**0.5), dtype=options["param_dtype"]).reshape(
            layer.kernel.shape
        )
    return module


def by_splash(query, key, value, *, mask=None, causal=False, with_lse=False):
    """TPU splash attention, interpreted. It wants multiples of 128, and scales no query."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    (*batch, T, N, H), S = query.shape, key.shape[-3]
    rows, columns = -(-T // 128) * 128, -(-S // 128) * 128
    mask = np.broadcast_to(True if mask is None else mask, (*batch, N, T, S))
    mask = np.pad(mask, [(0, 0)] * (mask.ndim - 2) + [(0, rows - T), (0, columns - S)])

    def example(query, key, value, mask):
        whole = splash_attention_mask.MultiHeadMask(
            [splash_attention_mask.CausalMask((rows, columns)) & splash_attention_mask.NumpyMask(head)
             if causal else splash_attention_mask.NumpyMask(head) for head in mask]
        )  # fmt: skip
        kernel = splash_attention_kernel.make_splash_mha(
            whole, head_shards=1, q_seq_shards=1, save_residuals=with_lse, interpret=True
        )
        query, key, value = (
            jnp.pad(jnp.moveaxis(x, 1, 0), [(0, 0), (0, length - x.shape[0]), (0, -x.shape[-1] % 128)])
            for x, length in ((query * H**-0.5, rows), (key, columns), (value, columns))
        )
        return kernel(query, key, value)

    examples = [example(query[b], key[b], value[b], mask[b]) for b in np.ndindex(*batch)]
    outputs = [each[0] if with_lse else each for each in examples]
    output = jnp.stack([jnp.moveaxis(x[:, :T, : value.shape[-1]], 0, 1) for x in outputs])
    output = output.reshape(*batch, T, N, value.shape[-1])
    if with_lse:
        return output, jnp.stack([each[1][0][:, :T] for each in examples]).reshape(*batch, N, T)
    return output


def by_torch(query, key, value, *, mask=None, bias=None, causal=False, dropout_rate=0.0, dropout_rng=None):
    arrays = to_torch(query, key, value)
    output = _torch_attend(*arrays, mask, bias, causal, dropout_rate, dropout_rng)
    return _from_torch(output, query.dtype)


def torch_gradients(attend, inputs, cotangent, *, mask=None, bias=None):
    import torch

    arrays = [x.requires_grad_() for x in to_torch(*inputs)]
    output = _torch_attend(*arrays, mask, bias)
    gradients = torch.autograd.grad(output, arrays, to_torch(cotangent)[0])
    return _from_torch(output, inputs[0].dtype), [_from_torch(x, inputs[0].dtype) for x in gradients]


def _torch_attend(query, key, value, mask=None, bias=None, causal=False, dropout_rate=0.0, dropout_rng=None):
    import torch

    if dropout_rng is not None:
        torch.manual_seed(int(jax.random.bits(dropout_rng)))
    added = None if mask is None else torch.tensor(np.asarray(mask))
    if bias is not None:
        bias = torch.tensor(np.asarray(bias))
        added = bias if added is None else bias.masked_fill(~added, -torch.inf)
    grouped = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, added, dropout_rate, causal, **grouped)


def to_torch(*arrays):
    """In its own layout, heads before length."""
    import torch

    wide = [np.asarray(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x) for x in arrays]
    dtypes = [getattr(torch, str(x.dtype)) for x in arrays]
    return [torch.tensor(np.swapaxes(x, -3, -2).copy()).to(dtype) for x, dtype in zip(wide, dtypes, strict=True)]


def _from_torch(tensor, dtype):
    import torch

    wide = tensor.detach().to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)
    return jnp.asarray(np.swapaxes(wide.numpy(), -3, -2)).astype(dtype)


def by_tokamax(query, key, value, *, mask=None, bias=None, causal=False, key_lengths=None, precision=None):
    import tokamax

    options = {"bias": _rank_4(bias), "mask": _rank_4(mask), "precision": precision}
    options |= {"key_value_seq_lengths": key_lengths, "is_causal": causal, "implementation": "xla"}
    return tokamax.dot_product_attention(query, key, value, **options)


def by_equinox(query, key, value, *, mask=None, dropout_rate=0.0, dropout_rng=None):
    """One example at a time, as its modules are called, with projections that copy."""
    import equinox

    (*batch, T, N, H), S = query.shape, key.shape[-3]
    module = equinox.nn.MultiheadAttention(N, N * H, key=jax.random.key(0), dropout_p=dropout_rate)
    names = [f"{name}_proj" for name in ("query", "key", "value", "output")]
    copies = [jnp.eye(N * H, dtype=query.dtype)] * len(names)
    module = equinox.tree_at(lambda module: [getattr(module, name).weight for name in names], module, copies)
    mask = None if mask is None else jnp.broadcast_to(mask, (*batch, N, T, S))

    def example(query, key, value, mask, rng):
        return module(*map(merge_heads, (query, key, value)), mask=mask, key=rng, inference=rng is None)

    rngs = None if dropout_rng is None else jax.random.split(dropout_rng, batch)
    for _ in batch:
        example = jax.vmap(example, in_axes=(0, 0, 0, None if mask is None else 0, None if rngs is None else 0))
    return example(query, key, value, mask, rngs).reshape(query.shape)


def _rank_4(array: jax.Array | None):
    """A mask or bias `[T, S]` with the axes its users would give it; any other as it is."""
    return array[None, None] if array is not None and array.ndim == 2 else array


def _is_installed(library: str) -> bool:
    try:
        version(library)
        importlib.import_module(library)
    except (PackageNotFoundError, ImportError):
        return False
    return True
