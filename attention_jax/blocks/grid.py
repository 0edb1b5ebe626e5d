"""How many queries, keys, heads and examples there are, and how many a step takes of each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

LETTERS = "xbkgts"


@dataclass(frozen=True)
class Grid:
    """The length of each of the axes `xbkgts`, how much of it one step takes, and how much beside derivatives, how many
    queries or keys a tile at least, how many steps may run together, and how many examples of `vmap` a step may take:
    of more, if that is all, and if that is all beside derivatives."""

    lengths: tuple[int, ...]
    sizes: tuple[int, ...]
    derived_sizes: tuple[int, ...]
    tile: int
    together: int
    examples: tuple[int, int, int]

    def length(self, letter: str) -> int:
        return self.lengths[LETTERS.index(letter)]

    def size(self, letter: str) -> int:
        return self.sizes[LETTERS.index(letter)]

    def steps(self, letter: str) -> int:
        return self.length(letter) // self.size(letter)

    @property
    def alone(self) -> bool:
        """Whether one step takes all there is."""
        return self.lengths == self.sizes

    def tile_of(self, most: int) -> int:
        """How many queries or keys a tile has, where a block has so many tiles at most."""
        return self.tile * -(-max(self.size("t"), self.size("s")) // (most * self.tile))

    def of_examples(self, count: int, apart: bool) -> "Grid":
        """The same for so many examples of `vmap`, each with steps of its own if they are `apart`."""
        some, most, derived_most = (1, 0, 0) if apart else self.examples
        part = divisor(count, some)
        sizes = count if count <= most else part, *self.sizes[1:]
        if count <= derived_most:
            derived_sizes = count, *self.derived_sizes[1:]
        else:
            derived_sizes = part, *map(min, self.sizes[1:], self.derived_sizes[1:])
        return replace(self, lengths=(count, *self.lengths[1:]), sizes=sizes, derived_sizes=derived_sizes)

    def derived(self) -> "Grid":
        """The same where derivatives are taken in the same program."""
        some, _, most = self.examples
        return replace(self, sizes=self.derived_sizes, examples=(some, most, most))

    def start(self, letter: str, step: Any) -> Any:
        """Where a step begins; known in advance where there is but one, and with it what the mask does to a block."""
        return 0 if self.steps(letter) == 1 else step * self.size(letter)

    def block_shape(self, axes: str, shape: Sequence[int]) -> list[int]:
        """What one step takes of an array."""
        return [size if a == "." else min(size, self.size(a)) for a, size in zip(axes, shape, strict=True)]

    def head_shape(self, axes: str, shape: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """What one head has of that, and its axes."""
        sizes = zip(axes, self.block_shape(axes, shape), strict=True)
        own = [(a, size) for a, size in sizes if a in "ts."]
        return "".join(a for a, _ in own), tuple(size for _, size in own)


def divisor(number: int, most: int) -> int:
    """The largest that is at most `most`, or 1."""
    return max(divisor for divisor in range(1, number + 1) if number % divisor == 0 and divisor <= max(most, 1))
