"""In what form one head's block of attention is computed, which depends on the arguments and on what XLA makes fast."""

from dataclasses import dataclass, replace
from typing import Any

import jax

from attention_jax.blocks import steps
from attention_jax.devices import OLD_XLA


@dataclass(frozen=True)
class BlockForm:
    """What is known of the blocks while tracing, and what follows from it.

    A tree is that of None where there is no mask or score: compared with None itself, a tree's structure raises.
    """

    mask_tree: Any
    score_tree: Any
    mask_arrays: int  # how many
    score_arrays: int
    scale: float
    rate: float
    queries: int
    keys: int
    padded: bool  # whether there are more columns than keys
    precision: Any
    cpu: bool
    channels: tuple[int, int]  # of a key, and of a value
    own_lse: bool = True  # whether the log-sum-exp is that of these keys alone
    derived: bool = False  # whether derivatives are taken in the same program, and the log-sum-exp given is `Softmax`'s
    # what suits the steps, and what XLA makes of them, which `fitted` finds out
    by_rows: bool = False  # whether a step takes keys and values by rows, heads first; else by columns
    few: bool = False  # whether keys are few, all in a block, and the log-sum-exp given is theirs
    alone: bool = False  # whether forward and backward pass are a step each, so that XLA makes once what both ask for
    weights_turned: bool = False  # whether weights and values are turned before their product, and this back
    softmax_at_once: bool = False  # whether it makes one operation of the softmax of few, or needs it made
    many_small: bool = False  # whether many blocks are each too small for more than one core
    tiny: bool = False  # whether an operation more takes longer than all of them
    summed: bool = False  # whether its loops have summed products before a matrix product has begun

    def fitted(self, grid):
        """The same, for the steps of this grid."""
        # derivatives, of which the blocks may be longer, find keys by rows only if the forward pass has left them so
        rows = self.cpu and (self.by_rows or not self.derived)
        few = rows and steps.few(grid, self.keys, self.channels[0], self.own_lse and not self.derived)
        by_rows = few or (rows and grid.steps("t") == 1 and steps.outnumbered(self.queries, self.keys))
        few = few and self.own_lse
        weights_turned = OLD_XLA and few and not self.derived and steps.unfilled(grid, self.channels[1])
        return replace(
            self,
            by_rows=by_rows,
            few=few,
            weights_turned=weights_turned,
            softmax_at_once=few and (weights_turned or (not OLD_XLA and not self.derived)),
            alone=self.cpu and self.derived and grid.alone,
            many_small=self.cpu and OLD_XLA and steps.many_small(grid, self.channels[0]),
            tiny=steps.tiny(grid, max(self.channels)),
            summed=few and self.precision is None and steps.summed(grid, max(self.channels)),
        )

    @property
    def lone(self) -> bool:
        """Whether there is but one key, whose weight is 1."""
        return self.few and self.keys == 1

    @property
    def marks(self) -> bool:
        """Whether the product of a lone key is marked, in place of the key."""
        return self.lone and not self.tiny

    @property
    def scoreless(self) -> bool:
        return self.score_tree == jax.tree.structure(None)

    @property
    def normalised(self):
        """Whether the terms are divided by the sum of their weights, so that no d_lse output need be taken from their
        tangent: which costs less where a row of weights is no longer than one of the output."""
        return self.few and self.keys <= self.channels[1]

    @property
    def totals(self):
        """Whether the sums of exponentials tell which rows are finite: a log-sum-exp that nobody asks for is then not
        made, and XLA makes one operation more of products and exponentials."""
        return self.alone and self.few and not self.lone

    @property
    def guards(self):
        """Whether the terms of a row whose log-sum-exp is not finite are made 0 block by block: not where one operation
        on all of them is cheaper, as part of another, or made once for many blocks."""
        return self.few and not self.alone

    @property
    def first(self):
        """The axes that a step puts first: of heads and examples."""
        return "xbkg" if self.by_rows or self.alone else ""

    @property
    def scales(self):
        """Of the query, of the key, and of their product: of few keys, which are marked in any case, it costs less; a
        lone one is not."""
        if self.lone:
            return 1, 1, self.scale
        return (1, self.scale, 1) if self.few else (self.scale, 1, 1)

    def turns(self, T, S):
        """Whether a product takes keys turned, by columns: of narrow heads, for more than one query. Without a sum of
        zeros: divided, it takes longer."""
        narrow = self.channels[0] <= min(S, 32) if self.few else self.channels[0] <= 8 and S <= 512
        return OLD_XLA and self.by_rows and T > 1 and narrow

    def poisons(self, masked):
        """Whether what is not finite in a key or value is left there: where every row sees all of them, it comes out in
        the sums of each. Elsewhere it was measured to cost more than to clean them: by columns, of more rows than keys,
        and of few keys, but in a forward pass alone of many small products."""
        all_seen = self.scoreless and not masked
        clean = self.lone or self.queries > self.keys or (self.few and (self.derived or not self.many_small))
        return self.by_rows and all_seen and not clean

    def checks_at_once(self, masked):
        """Whether YNNPACK makes one operation of products, checks and exponentials, and takes less time for it: of a
        batch of small products, which it would not divide, only if they are `turned` in any case; in a newer XLA, only
        if no mask comes between."""
        divided = self.many_small and not self.turns(self.queries, self.keys)
        fused = not (divided or (masked and not OLD_XLA))
        return self.few and self.scoreless and fused and 8 <= self.keys <= self.queries
