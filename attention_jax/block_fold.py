"""A loop over blocks that carries something along each query's keys, such as a running maximum."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax

from attention_jax.blocks import Block, Sweep
from attention_jax.operation import vary_like


@dataclass(frozen=True)
class Fold(Sweep):
    """What is left when a query's blocks of keys have been gone through, one after another."""

    carried: ClassVar[tuple[str, ...]]
    """The axes of what is carried."""

    @abstractmethod
    def nothing(self) -> list[jax.Array]:
        """What is carried before the first block, for the heads and queries of a step."""

    @abstractmethod
    def fold(self, block: Block, masked: bool, operands, *before) -> Sequence[jax.Array]:
        """What is carried after a block of one head; `before` is left out where the block is the only one."""

    @abstractmethod
    def finish(self, carry) -> list[jax.Array]:
        """The outputs, for the heads and queries of a step."""

    def run(self, *operands):
        def nothing():
            return [vary_like(x, operands) for x in self.nothing()]

        def step(start, carry, blocks):
            def folded(masked):
                def one_head(block, *operands):
                    before = len(operands) - len(carry)
                    return self.fold(block, masked, operands[:before], *operands[before:])

                axes = self.axes + self.carried[: len(carry)]
                return list(self.by_head(one_head, axes, self.carried, start, [*blocks, *carry]))

            return self.by_kind(start, blocks, carry or nothing(), folded), []

        first = list if self.grid.steps("s") == 1 else nothing  # a lone block has none before it
        return self.loop(operands, "t", first, step, self.finish)
