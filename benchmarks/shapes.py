"""Attention of shapes drawn by chance beside that of `jax.nn`, small enough for its matrices of all weights."""

import random
import sys
from collections.abc import Iterator
from functools import partial
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

import attention_jax as aj
from attention_jax.conformance.peers import by_jax_nn
from benchmarks.__main__ import main
from benchmarks.attention import FORWARD, WITH_BACKWARD, programs
from benchmarks.interleave import seconds
from benchmarks.results import OURS, Row

COUNT = 40
LENGTHS = 1, 2, 4, 7, 16, 31, 32, 64, 77, 100, 128, 197, 256, 512, 2048
LARGEST = 2**28
"""Multiplications of a product, of which this many take some ten milliseconds."""


class Shape(NamedTuple):
    """Of query, key and value, and which keys a query sees: all, those before it, or those that are no padding."""

    B: int
    T: int
    S: int
    N: int
    K: int
    H: int
    sees: Literal["", "causal", "padded"]

    def __str__(self) -> str:
        parts = [f"({self.B}, {self.T}, {self.N}, {self.H})"]
        parts += [f"{self.S} key{'s' * (self.S > 1)}"] if self.S != self.T else []
        parts += [f"{self.K} head{'s' * (self.K > 1)} of keys"] if self.K != self.N else []
        return ", ".join(parts + [self.sees] * bool(self.sees))


CROSS = (
    Shape(4, 512, 77, 8, 8, 64, ""),
    Shape(4, 512, 77, 8, 8, 64, "padded"),
    Shape(1, 4096, 77, 8, 8, 40, ""),
    Shape(8, 32, 512, 8, 8, 64, ""),
    Shape(1, 16, 2048, 8, 8, 64, ""),
    Shape(2, 16, 2048, 8, 8, 64, "padded"),
    Shape(4, 2048, 64, 8, 1, 64, ""),
)
"""Of an image on the tokens of a text, of few queries on the keys of a longer one, and of heads that share few keys."""


def drawn(count: int) -> list[Shape]:
    """The same ones each time."""
    chance, shapes = random.Random(0), list[Shape]()
    while len(shapes) < count:
        T, N = chance.choice(LENGTHS), chance.choice((1, 4, 8, 12))
        S = chance.choice((T, T, *LENGTHS))
        B, K, H = chance.choice((1, 4, 16, 64)), chance.choice((N, N, 1)), chance.choice((8, 16, 32, 64, 128))
        sees = chance.choice(("", "padded", "causal") if T == S else ("", "padded"))
        if B * N * T * S * H <= LARGEST:
            shapes.append(Shape(B, T, S, N, K, H, sees))
    return shapes


def measure(rounds: int) -> Iterator[Row]:
    """All rows of the benchmark."""
    for title, shapes in ("Shapes drawn by chance", drawn(COUNT)), ("Cross-attention", CROSS):
        for shape in shapes:
            for direction in FORWARD, WITH_BACKWARD:
                yield from times(f"{title}, {direction}", shape, direction, rounds)


def times(table: str, shape: Shape, direction: str, rounds: int) -> Iterator[Row]:
    """Seconds of both."""
    B, T, S, N, K, H, sees = shape
    chance = np.random.default_rng(0)
    of_query, of_key = (B, T, N, H), (B, S, K, H)
    *inputs, cotangent = (
        jnp.asarray(chance.normal(size=each), jnp.float32) for each in (of_query, of_key, of_key, of_query)
    )
    lengths = jnp.asarray(chance.integers(1, S + 1, B), jnp.int32)
    masks = {"": None, "causal": aj.causal(), "padded": aj.key_lengths(lengths)}
    theirs = {"": {}, "causal": {"causal": True}, "padded": {"key_lengths": lengths}}
    contenders = {OURS: partial(aj.attention, mask=masks[sees]), "jax.nn": partial(by_jax_nn, **theirs[sees])}
    for name, values in seconds(programs(contenders, direction, inputs, cotangent), rounds).items():
        yield Row(table, str(shape), name, values)


if __name__ == "__main__":
    main(["shapes", *sys.argv[1:]])
