"""Multi-query attention (Shazeer 2019, arXiv:1911.02150) as attention of one head.

Heads that share a key and value differ in their queries alone. In memory these stand in one row already, those of all
heads of the first position, then of the second: taken as such, none need be put in another order.
"""

from collections.abc import Sequence

import jax

from attention_jax.axes import length_along
from attention_jax.block_sizes import CPU
from attention_jax.blocks.steps import few_keys
from attention_jax.captured import holds_function
from attention_jax.mask_tree import Mask
from attention_jax.node import node, static
from attention_jax.score_tree import Score
from attention_jax.spans import Span, Truth


def as_one_head(
    query_shape: Sequence[int],
    value_shape: Sequence[int],
    mask: Mask | None,
    score: Score | None,
    rate: float,
    platform: str,
) -> tuple[tuple[int, ...], Mask | None]:
    """The shape of the queries as those of one head, and the mask of these; or both as they are.

    That is where only the mask's rule or its keys' arrays tell rows apart: not functions, which would be asked for each
    head anew. On a CPU alone: elsewhere heads may be spread over devices. A lone query makes no matrix product. Keys
    that are not few should be no more than the rows, and under no mask known while tracing, which has tiles in blocks
    of one head's rows. Measured with 2 to 4096 queries on 2 to 2048 keys, of 4 to 12 heads of 8 to 128 channels.

    >>> as_one_head((5, 7, 4, 8), (5, 9, 1, 8), None, None, 0.0, "cpu")
    ((5, 28, 1, 8), None)
    """
    *batch, T, N, H = query_shape
    S, K = value_shape[-3:-1]
    few = few_keys(S, H, CPU.tile)
    alike = platform == "cpu" and K == 1 < N and T > 1 and score is None and not rate and (few or S <= T * N)
    if alike and mask is not None:
        leaves = jax.tree.leaves(mask)
        own = zip(leaves, mask.axes(), strict=True)
        of_keys = all(length_along(leaf, letters, a) == 1 for leaf, letters in own for a in "nt")
        alike = of_keys and not holds_function(mask) and (few or bool(leaves))
        mask = Interleaved(mask, N) if alike else mask
    return (*batch, T * N, 1, H) if alike else tuple(query_shape), mask


@node
class Interleaved(Mask):
    """A mask of positions, each of which has a row for each head."""

    mask: Mask
    heads: int = static()

    def at(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        return self.mask.at(rows // self.heads, columns)

    def axes(self) -> list[str]:
        return self.mask.axes()

    def some_every(self, rows: Span, columns: Span) -> tuple[Truth, Truth]:
        return self.mask.some_every(self._positions(rows), columns)

    def columns_of(self, rows: Span, S: int) -> Span:
        return self.mask.columns_of(self._positions(rows), S)

    def check(self, T: int, S: int) -> None:
        self.mask.check(T // self.heads, S)

    def _positions(self, rows: Span) -> Span:
        return rows[0] // self.heads, rows[1] // self.heads
