"""What is done to a logit before the softmax: a score is a function of the logit and of where it stands.

    >>> from attention_jax import alibi_slopes, attention, causal
    >>> query = key = value = jnp.ones((7, 4, 8))
    >>> attention(query, key, value, mask=causal(), score=soft_cap(30.0) >> alibi(alibi_slopes(4))).shape
    (7, 4, 8)

`one >> other` applies `one` first. A score may also be any function `(logit, head, t, s) -> logit`. Gradients flow to
the arrays a score holds, and to those a function has captured.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from attention_jax.arguments import as_array, check_real, real_array, static_int, static_offset
from attention_jax.score_rules import Alibi, Bias, RelativeBias, SoftCap
from attention_jax.score_tree import Score, as_score


def bias(array: ArrayLike) -> Score:
    """An array added to the logits.

    Args:
      array: floating `[T, S]` or `[*B, N or 1, T, S]`; T and S may be 1 to broadcast; -inf hides a key,
        unless a later score makes it finite, as `soft_cap` does.

    Raises:
      TypeError: where the score is used, an array that is not floating.
      ValueError: where the score is used, a shape that does not fit, or a batch that could be taken for heads.

    >>> from attention_jax import attention
    >>> x = jnp.ones((3, 2, 4))
    >>> attention(x, x, x, score=bias(jnp.zeros((3, 3)))).shape
    (3, 2, 4)
    """
    return Bias(as_array("bias(array)", array))


def alibi(slopes: ArrayLike, *, offset: int | None = None) -> Score:
    """A penalty for distance, `-slope * abs(t + offset - s)` (Press et al. 2021, arXiv:2108.12409).

    Args:
      slopes: `[N]`, as `alibi_slopes` gives them, or learned.
      offset: as in `causal`: query t stands at key position t + offset.

    Raises:
      TypeError: slopes that are not real numbers.
      ValueError: where the score is used, T != S without an offset, or slopes for another number of heads.

    >>> from attention_jax import alibi_slopes, attention
    >>> x = jnp.ones((6, 2, 4))
    >>> attention(x, x, x, score=alibi(alibi_slopes(2))).shape
    (6, 2, 4)
    """
    return Alibi(real_array("alibi(slopes)", slopes), static_offset("alibi(offset=)", offset))


def relative_bias(
    table: ArrayLike, *, bidirectional: bool = False, max_distance: int = 128, offset: int | None = None
) -> Score:
    """A learned bias for each bucket of distances (T5; Raffel et al. 2019, arXiv:1910.10683, section 2.1).

    Args:
      table: `[buckets, N]`, a parameter.
      bidirectional: whether later keys have buckets of their own, half of them; else they share that of distance 0.
      max_distance: from where on all distances share the last bucket (static int).
      offset: as in `causal`: query t stands at key position t + offset.

    Raises:
      TypeError: a table that is not of real numbers, a `bidirectional` that is not a bool.
      ValueError: a `max_distance` below 2; where the score is used, T != S without an offset, a table of too few
        buckets or another number of heads, or of so many that `max_distance` leaves none for wider distances.

    >>> from attention_jax import attention
    >>> x = jnp.ones((6, 2, 4))
    >>> attention(x, x, x, score=relative_bias(jnp.zeros((32, 2)))).shape
    (6, 2, 4)
    """
    max_distance = static_int("relative_bias(max_distance=)", max_distance, minimum=2)
    offset = static_offset("relative_bias(offset=)", offset)
    if not isinstance(bidirectional, bool | np.bool_):
        raise TypeError(f"relative_bias(bidirectional=) must be True or False, got {bidirectional!r:.60}")
    return RelativeBias(real_array("relative_bias(table)", table), bool(bidirectional), max_distance, offset)


def soft_cap(cap: ArrayLike) -> Score:
    """Logits bounded smoothly to -cap .. cap, as cap * tanh(logit / cap) (Gemma 2, arXiv:2408.00118).

    Args:
      cap: positive number, or scalar array.

    Raises:
      TypeError: a cap that is not a real number.
      ValueError: one that is not positive and finite, or several.

    >>> from attention_jax import attention
    >>> x = jnp.ones((6, 2, 4))
    >>> attention(100 * x, x, x, score=soft_cap(30.0)).shape
    (6, 2, 4)
    """
    cap = cap if isinstance(cap, jax.Array) else np.asarray(cap)
    check_real("soft_cap(cap)", cap.dtype)
    known = None if isinstance(cap, jax.core.Tracer) else np.asarray(cap)  # which stays known inside jax.jit
    cap = cap.astype(float)
    finite = jnp.finfo(jnp.float32)
    if cap.ndim != 0 or (known is not None and not finite.tiny <= known <= finite.max):
        got = cap.shape if cap.ndim else known
        raise ValueError(f"soft_cap(cap) must be one positive finite number, in float32 too, got {got}")
    return SoftCap(cap)


def add_sinks(output: jax.Array, lse: jax.Array, sinks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention with a learned sink in each head: a key of its own that takes weight and gives no value.

    Attention sinks (arXiv:2309.17453) as gpt-oss has them: the softmax runs over the logits and one more.

    Args:
      output: `[*B, T, N, Hv]`, from `attention_and_lse`.
      lse: `[*B, N, T]`, from `attention_and_lse`.
      sinks: `[N]`, the sinks' logits.

    Returns:
      output and log-sum-exp with the sinks.

    Raises:
      TypeError: sinks that are not real numbers.
      ValueError: shapes that do not fit each other.

    >>> from attention_jax import attention_and_lse
    >>> x = jnp.zeros((3, 1, 2))
    >>> output, lse = add_sinks(*attention_and_lse(x, x, x + 1), jnp.zeros(1))
    >>> with jnp.printoptions(precision=2):  # three keys and the sink have a quarter of the weight each
    ...     print(output[0, 0])
    [0.75 0.75]
    """
    output, lse, sinks = as_array("output", output), as_array("lse", lse), real_array("sinks", sinks)
    of_logits = *output.shape[:-3], *output.shape[-3:-1][::-1]  # [*B, N, T]
    if output.ndim < 3 or lse.shape != of_logits or sinks.shape != of_logits[-2:-1]:
        raise ValueError(
            "add_sinks wants output [*B, T, N, Hv], lse [*B, N, T] and sinks [N]; got output "
            f"{output.shape}, lse {lse.shape}, sinks {sinks.shape}"
        )
    sinks = jnp.broadcast_to(sinks[:, None].astype(lse.dtype), lse.shape)
    blind = lse == -jnp.inf  # whose output is 0, whatever its share; a sink may be -inf, too
    seen = jnp.where(blind, 0, lse)
    share = jnp.moveaxis(jax.nn.sigmoid(seen - sinks), -1, -2)[..., None]
    return (output * share).astype(output.dtype), jnp.where(blind, sinks, jnp.logaddexp(seen, sinks))


def score_from_function(fn: Callable[..., jax.Array]) -> Score:
    """A score from `fn(logit, head, t, s)`, the new logits of one head's block.

    Args:
      fn: called with floating `[T, S]`, an integer, and integers `[T, 1]` and `[1, S]`, the positions; T and S are
        those of a block. Arrays that it captures may be traced, and are given gradients; for these, its slopes have
        to be finite at pairs that a mask hides, too: write `jnp.log(abs(t - s) + 1)`, not `jnp.log(t - s + 1)`.

    Raises:
      TypeError: no function; where the score is used, one that takes other arguments, or returns no real numbers.
      ValueError: where the score is used, logits that cannot be broadcast to those that came in.

    >>> from attention_jax import attention
    >>> x, slopes = jnp.ones((5, 2, 4)), jnp.array([0.5, 0.25])
    >>> score = score_from_function(lambda logit, head, t, s: logit - slopes[head] * abs(t - s))
    >>> attention(x, x, x, score=score).shape
    (5, 2, 4)
    """
    return as_score(fn)
