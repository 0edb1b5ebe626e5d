"""From channels to heads and back: the linear maps before and after attention, as functions of their kernels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from attention_jax.arguments import static_int
from attention_jax.checks import check_auto
from attention_jax.dot_product import split_heads


def project(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """`x @ kernel + bias`, as one matrix product over all positions (which XLA runs faster on a CPU).

    Args:
      x: `[*B, D]`, with any leading dimensions.
      kernel: `[D, E]`.
      bias: `[E]`.

    Returns:
      `[*B, E]`.

    Raises:
      ValueError: shapes that do not fit.

    >>> project(jnp.ones((2, 5, 4)), jnp.ones((4, 6))).shape
    (2, 5, 6)
    """
    if kernel.ndim != 2 or x.shape[-1] != kernel.shape[0] or (bias is not None and bias.shape != kernel.shape[1:]):
        given = "none" if bias is None else bias.shape
        raise ValueError(
            f"expected x [*B, D], kernel [D, E], bias [E]; got x {x.shape}, kernel {kernel.shape}, bias {given}"
        )
    check_auto(x=x, kernel=kernel)
    product = x.reshape(-1, x.shape[-1]) @ kernel
    if bias is not None:
        product = product + bias[None, :]
    return product.reshape(*x.shape[:-1], kernel.shape[1])


def project_separate(
    x: jax.Array,
    context: jax.Array,
    kernels: Sequence[jax.Array],
    biases: Sequence[jax.Array | None] = (None, None, None),
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
) -> tuple[jax.Array, ...]:
    """Query, key and value heads by three kernels: queries from `x`, keys and values from `context`.

    Args:
      x: `[*B, T, D]`.
      context: `[*B, S, D]`; `x` itself in self-attention.
      kernels: query `[D, N * H]`, key `[D, K * H]`, value `[D, K * Hv]`.
      biases: `[N * H]`, `[K * H]`, `[K * Hv]`, or None each.
      num_heads, num_kv_heads: N and K; K = N if not given.

    Returns:
      query `[*B, T, N, H]`, key `[*B, S, K, H]`, value `[*B, S, K, Hv]`.

    Raises:
      TypeError: numbers of heads that are no static integers.
      ValueError: shapes that do not fit, or no head.

    >>> x, kernel = jnp.ones((5, 4)), jnp.ones((4, 6))
    >>> [heads.shape for heads in project_separate(x, x, [kernel] * 3, num_heads=3)]
    [(5, 3, 2), (5, 3, 2), (5, 3, 2)]
    """
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    heads = num_heads, num_kv_heads, num_kv_heads
    projections = project, *([project if context is x else _project_context] * 2)
    inputs = zip(projections, (x, context, context), kernels, biases, heads, strict=True)
    return tuple(split_heads(projection(source, kernel, bias), n) for projection, source, kernel, bias, n in inputs)


def project_fused(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *, num_heads: int, num_kv_heads: int | None = None
) -> tuple[jax.Array, ...]:
    """Query, key and value heads of self-attention by one kernel, in one product.

    Args:
      x: `[*B, T, D]`.
      kernel: `[D, (N + 2 K) * H]`, the kernels of query, key and value side by side.
      bias: `[(N + 2 K) * H]` or None.
      num_heads, num_kv_heads: N and K; K = N if not given.

    Returns:
      query `[*B, T, N, H]`, key and value `[*B, T, K, H]`.

    Raises:
      TypeError: numbers of heads that are no static integers.
      ValueError: shapes that do not fit, or no head.

    >>> [heads.shape for heads in project_fused(jnp.ones((5, 4)), jnp.ones((4, 16)), num_heads=4, num_kv_heads=2)]
    [(5, 4, 2), (5, 2, 2), (5, 2, 2)]
    """
    N = static_int("num_heads", num_heads, minimum=1)
    K = N if num_kv_heads is None else static_int("num_kv_heads", num_kv_heads, minimum=1)
    heads = split_heads(project(x, kernel, bias), N + 2 * K)
    return tuple(jnp.split(heads, [N, N + K], axis=-2))


def _project_context(context: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """`project`, in which a position that is not finite gives NaN, but none to the kernel's gradient if a mask hides
    it: that gradient is a sum over all positions, in which 0 * NaN would count."""
    finite = jnp.all(jnp.isfinite(context), axis=-1, keepdims=True)
    return jnp.where(finite, project(jnp.where(finite, context, 0), kernel, bias), jnp.nan)
