"""The front door: one attention, and which implementation of it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from attention_jax.arguments import positions_for
from attention_jax.backends import KERNELS, Request
from attention_jax.block_sizes import grid_for
from attention_jax.blockwise import blockwise_attention
from attention_jax.checks import check_dropout, check_many_heads
from attention_jax.devices import device_of, platform_of
from attention_jax.dot_product import multi_head_attention_and_lse
from attention_jax.mask_tree import Mask, as_mask
from attention_jax.masks import prefix
from attention_jax.multi_query import as_one_head
from attention_jax.score_tree import as_score
from attention_jax.typing import MaskLike, Positions, ScoreLike

OURS: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {
    "reference": multi_head_attention_and_lse,
    "blockwise": blockwise_attention,
}


def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    mask: MaskLike | None = None,
    score: ScoreLike | None = None,
    positions: Positions | None = None,
    scale: ArrayLike | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    precision: PrecisionLike = None,
    implementation: str | None = None,
) -> jax.Array:
    """Exact attention with any mask and any score, in memory that grows linearly with length.

    softmax(score(scale * query . key)) value, over the keys that the mask lets each query see. All of `jit`, `vmap`,
    `grad`, `jvp`, their compositions to any order, `jax.checkpoint` and `scan` work, and keep the memory linear.

    Args:
      query: `[*B, T, N, H]`, floating point; `*B` is any number of batch dimensions.
      key: `[*B, S, K, H]`, same dtype, N a multiple of K (arXiv:2305.13245).
      value: `[*B, S, K, Hv]`, same dtype.
      mask: `Mask`, or bool `[T, S]` or `[*B, N or 1, T, S]`, True = may attend. Default: every query sees every key.
      score: a change to the logits: `attention_jax.scores`, or a function `(logit, head, t, s) -> logit`.
      positions: where queries and keys stand for `mask` and `score`, integers `[*B, T]` and `[*B, S]`; a key at a
        negative position is seen by none. Default: 0, 1, 2, ... both.
      scale: factor on query . key. Default: 1/sqrt(H).
      dropout_rate: probability, in [0, 1), that a weight is dropped, independently in each head and batch element.
      dropout_rng: random key, wanted when `dropout_rate` is not 0.
      precision: of the matrix products, as in `jax.numpy.matmul`.
      implementation: "reference", which makes the whole matrix of weights, "blockwise", or a kernel: "cudnn",
        "splash", "tokamax". Default: the one that `explain` names.

    Returns:
      `[*B, T, N, Hv]` in the dtype of `query`; 0 for a query that sees no key, NaN for one that sees a non-finite key
      or value.

    Raises:
      TypeError: integer or bool inputs, a float mask, a traced dropout rate.
      ValueError: shapes or dtypes that do not fit each other, an unknown implementation.
      NotImplementedError: the implementation that was asked for cannot do this; the message says why.

    >>> import jax.numpy as jnp
    >>> from attention_jax import causal
    >>> query, key = jnp.ones((2, 300, 4, 8)), jnp.ones((2, 300, 2, 8))
    >>> attention(query, key, key, mask=causal()).shape
    (2, 300, 4, 8)
    """
    return _attend(
        query, key, value, mask=mask, score=score, positions=positions, scale=scale, dropout_rate=dropout_rate,
        dropout_rng=dropout_rng, precision=precision, implementation=implementation, lse=False,
    )[0]  # fmt: skip


def attention_and_lse(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    mask: MaskLike | None = None,
    score: ScoreLike | None = None,
    positions: Positions | None = None,
    scale: ArrayLike | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    precision: PrecisionLike = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`attention`, and the log-sum-exp of each query's logits.

    Args:
      query, key, value, mask, score, positions, scale, dropout_rate, dropout_rng, precision, implementation: as
        `attention`.

    Returns:
      output `[*B, T, N, Hv]`; log-sum-exp `[*B, N, T]` in float32 or better, differentiable, -inf for a query that sees
      no key, NaN for one that sees what is not finite. With it, outputs over parts of the keys can be joined, and sinks
      added: see `add_sinks`.

    Raises:
      TypeError, ValueError, NotImplementedError: as `attention`.

    >>> import jax.numpy as jnp
    >>> x = jnp.zeros((4, 1, 8))
    >>> attention_and_lse(x, x, x)[1].round(3).tolist()
    [[1.3860000371932983, 1.3860000371932983, 1.3860000371932983, 1.3860000371932983]]
    """
    return _attend(
        query, key, value, mask=mask, score=score, positions=positions, scale=scale, dropout_rate=dropout_rate,
        dropout_rng=dropout_rng, precision=precision, implementation=implementation, lse=True,
    )  # fmt: skip


def _attend(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    mask: MaskLike | None,
    score: ScoreLike | None,
    positions: Positions | None,
    implementation: str | None,
    lse: bool,
    **options: Any,
) -> tuple[jax.Array, Any]:
    """Output, and the log-sum-exp or None."""
    request = _request(query, key, value, mask, score, positions, lse, **options)
    name = _choose(request, implementation).implementation
    if name in KERNELS:
        return KERNELS[name](request), None
    return OURS[name](*request.arrays, mask=request.mask, score=request.score, **options)


def placed(
    mask: MaskLike | None, score: ScoreLike | None, positions: Positions | None, batch: Sequence[int], T: int, S: int
) -> tuple[MaskLike | None, ScoreLike | None]:
    """Mask and score as rules on the positions that are given, of T queries and S keys."""
    if positions is None:
        return mask, score
    queries, keys = positions_for(positions, batch, T, S)
    mask = ~prefix(0) if mask is None else as_mask(mask)
    return mask.place(queries, keys), None if score is None else as_score(score).place(queries, keys)


def _request(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    mask: MaskLike | None,
    score: ScoreLike | None,
    positions: Positions | None,
    lse: bool,
    *,
    scale: ArrayLike | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    precision: PrecisionLike = None,
) -> Request:
    query, key, value = check_many_heads(query, key, value)
    mask, score = placed(mask, score, positions, query.shape[:-3], query.shape[-3], key.shape[-3])
    mask, score = None if mask is None else as_mask(mask), None if score is None else as_score(score)
    rate = check_dropout(dropout_rate, dropout_rng)
    return Request(query, key, value, mask, score, scale, rate, precision, lse)


class _Choice(NamedTuple):
    implementation: str
    reason: str
    passed_over: dict[str, str]


def _choose(request: Request, implementation: str | None) -> _Choice:
    if not isinstance(implementation, str | None):
        raise TypeError(f"implementation must be None or a name, got {implementation!r}")
    if implementation in KERNELS:
        if lack := KERNELS[implementation].lacks(request):
            raise NotImplementedError(f"implementation={implementation!r} cannot do this: {lack}")
    elif implementation not in (None, *OURS):
        known = ", ".join(map(repr, (*OURS, *KERNELS)))
        raise ValueError(f"implementation must be None or one of {known}, got {implementation!r}")
    if implementation is not None:
        return _Choice(implementation, "asked for", {})
    if any(0 in array.shape for array in request.arrays):
        return _Choice("reference", "there is nothing to compute", {})
    passed_over: dict[str, str] = {}
    for name, kernel in KERNELS.items():
        problem = kernel.would_not_help(request)
        if problem is None:
            return _Choice(name, f"it is the fastest on {platform_of(request.query)} of those that can", passed_over)
        passed_over[name] = problem
    # By `python -m benchmarks attention` on 2 CPU cores, blockwise takes 0.1 to 0.6 of the reference's time, forward
    # and backward, at all lengths where both were measured. A problem of one block has no loop: it is the plain path.
    return _Choice("blockwise", "it was the faster of ours at every length at which both were measured", passed_over)


@dataclass(frozen=True)
class Explanation:
    """What `attention` will do with some arguments; printing it says so in words."""

    implementation: str
    """Its name, as `implementation=` takes it."""
    reason: str
    """Why this one."""
    passed_over: dict[str, str]
    """The kernels that were not taken, and why."""
    blocks: int | None
    """Blocks of weights a head, as the mask cuts them; 1 for the reference, None for a kernel, which has its own."""
    skipped: int | None
    """How many of them the mask leaves empty; None if that depends on arrays, and is decided at run time."""
    unmasked: int | None
    """How many it leaves full."""
    block_size: tuple[int, int] | None
    """Queries and keys in a block."""
    temporary_bytes: int
    """Memory of the compiled forward pass besides its inputs and outputs."""

    def __str__(self) -> str:
        if self.block_size is None:
            blocks = "blocks of its own"
        elif self.implementation == "reference":
            blocks = f"all weights at once, {self.block_size[0]} queries x {self.block_size[1]} keys"
        else:
            number = "1 block" if self.blocks == 1 else f"{self.blocks} blocks"
            blocks = f"{number} of {self.block_size[0]} queries x {self.block_size[1]} keys for each head"
            if self.skipped is None:
                blocks += "; the mask's arrays say at run time which are empty"
            else:
                blocks += f": {self.skipped} skipped as empty, {self.unmasked} without a mask"
        lines = [f"{self.implementation}: {self.reason}", blocks]
        lines += [f"{self.temporary_bytes / 2**20:.1f} MiB of temporary memory"]
        return "\n".join(lines + [f"not {name}: {reason}" for name, reason in self.passed_over.items()])


def explain(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    mask: MaskLike | None = None,
    score: ScoreLike | None = None,
    positions: Positions | None = None,
    scale: ArrayLike | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    precision: PrecisionLike = None,
    implementation: str | None = None,
) -> Explanation:
    """What `attention` will run with these arguments, why, which blocks it skips, and how much memory it takes.

    Args:
      query, key, value, mask, score, positions, scale, dropout_rate, dropout_rng, precision, implementation: as
        `attention`; of query, key, value and mask only shapes and dtypes matter: a `jax.ShapeDtypeStruct` will do.

    Returns:
      An `Explanation`; printing it says the same in words.

    Raises:
      TypeError, ValueError, NotImplementedError: as `attention`.

    >>> import jax.numpy as jnp
    >>> from attention_jax import sliding_window
    >>> x = jnp.ones((2048, 4, 32))
    >>> plan = explain(x, x, x, mask=sliding_window(256, 0))
    >>> plan.implementation, plan.blocks, plan.skipped
    ('blockwise', 64, 49)
    """
    options: dict[str, Any] = {"scale": scale, "dropout_rate": dropout_rate, "dropout_rng": dropout_rng}
    options["precision"] = precision
    numbers, tree = jax.tree.flatten(None if score is None else as_score(score))
    # inputs, as in a call; closed over, they would be counted as temporary memory
    arrays = {index: number for index, number in enumerate(numbers) if np.ndim(number)}
    plans: list[tuple[_Choice, _Blocks]] = []

    def run(
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: MaskLike | None,
        arrays: dict[int, jax.Array],
        positions: Positions | None,
    ) -> jax.Array:
        score = jax.tree.unflatten(tree, [arrays.get(index, number) for index, number in enumerate(numbers)])
        request = _request(query, key, value, mask, score, positions, False, **options)
        choice = _choose(request, implementation)
        plans.append((choice, _blocks(request, choice.implementation)))
        chosen: dict[str, Any] = {"score": score, "positions": positions, "implementation": choice.implementation}
        return attention(query, key, value, mask=mask, **chosen, **options)

    with jax.default_device(device_of(query)) if isinstance(query, jax.Array) else nullcontext():
        compiled = jax.jit(run).lower(query, key, value, mask, arrays, positions).compile()
    memory: Any = compiled.memory_analysis()
    choice, (blocks, skipped, unmasked, size) = plans[0]
    return Explanation(*choice, blocks, skipped, unmasked, size, memory.temp_size_in_bytes)


_Blocks = tuple[int | None, int | None, int | None, tuple[int, int] | None]


def _blocks(request: Request, implementation: str) -> _Blocks:
    """How many blocks, how many of them are skipped and unmasked, and their size, as far as they are known."""
    T, S = request.query.shape[-3], request.key.shape[-3]
    if implementation in KERNELS:
        return None, None, None, None
    if implementation == "reference":
        return 1, 0, int(request.mask is None), (T, S)
    shapes, platform = (request.query.shape, request.value.shape), platform_of(request.query)
    shape, mask = as_one_head(*shapes, request.mask, request.score, request.dropout_rate, platform)
    grid = grid_for(mask, request.score, shape, request.value.shape, platform)
    size, rows, columns = (grid.size("t"), grid.size("s")), grid.steps("t"), grid.steps("s")
    of_each = request.query.shape[-2] // shape[-2]  # heads whose queries are taken as one's
    return rows * columns, *_count(mask, size, rows, columns, S), (-(-size[0] // of_each), size[1])


def _count(mask: Mask | None, size: tuple[int, int], rows: int, columns: int, S: int) -> tuple[int | None, int | None]:
    first_row, first_column = np.arange(rows)[:, None] * size[0], np.arange(columns)[None, :] * size[1]
    last_row, last_column = first_row + size[0] - 1, first_column + size[1] - 1
    some, every = True, True
    if mask is not None:
        if jax.tree.leaves(mask):
            return None, None
        some, every = mask.some_every((first_row, last_row), (first_column, last_column))
    every = every & (last_column < S)
    shape = rows, columns
    return int((~np.broadcast_to(some, shape)).sum()), int(np.broadcast_to(every, shape).sum())
