"""A loop over blocks that merges what is found in each, such as a maximum, with what was found in those before."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax

from attention_jax.blocks.sweep import Sweep
from attention_jax.blocks.tiles import Block
from attention_jax.operation import vary_like


@dataclass(frozen=True)
class Fold(Sweep):
    """What is left when a query's blocks of keys have been gone through, one after another."""

    most_tiles = 8  # there is less to compile than in a sum's transpose
    carried: ClassVar[tuple[str, ...]]
    """The axes of what is found."""

    @abstractmethod
    def nothing(self) -> list[jax.Array]:
        """What is found where there is nothing, for the heads and queries of a step."""

    @abstractmethod
    def find(self, block: Block, masked: bool, *operands) -> Sequence[jax.Array]:
        """What is found in a block of one head."""

    @abstractmethod
    def merge(self, one, other) -> list[jax.Array]:
        """What is found in both, for the heads and queries of a step."""

    @abstractmethod
    def finish(self, found) -> list[jax.Array]:
        """The outputs, for the heads and queries of a step."""

    def run(self, *operands):
        def nothing():
            return [vary_like(x, operands) for x in self.nothing()]

        def step(start, before, take):
            def find(tiles):
                own = self.find, self.axes, self.carried
                return self.by_tile(*own, start, take(), tiles, nothing(), lambda _, found: found)

            found = self.by_kind(start, take, find)
            return self.merge(before, found) if before else found, []

        first = list if self.grid.steps("s") == 1 else nothing  # a lone block has none before it
        return self.loop(operands, first, step, self.finish, self.grid.together)
