"""Position embeddings that a language model adds to its token embeddings."""

import jax
from flax import nnx

from attention_jax.arguments import static_int
from attention_jax.positions import learned_positions, sinusoidal_positions


class LearnedPositions(nnx.Module):
    """One learned vector a position (arXiv:1705.03122); a longer input is an error.

    Args:
      context_length: the number of positions.
      embed_dim: D.
      rngs: initialises the table.

    Raises:
      ValueError: no positions; of a call: a position that there is no row for.

    >>> LearnedPositions(16, 8, rngs=nnx.Rngs(0))(5).shape
    (5, 8)
    """

    def __init__(self, context_length: int, embed_dim: int, *, rngs: nnx.Rngs) -> None:
        context_length = static_int("context_length", context_length, minimum=1)
        init = nnx.initializers.normal(0.02)
        self.table = nnx.Param(init(rngs.params(), (context_length, embed_dim)), axes=("position", "embed"))

    def __call__(self, positions: int | jax.Array) -> jax.Array:
        """The embeddings of the first so many positions, `[T, D]`, or of integers `[*B, T]`, `[*B, T, D]`: see
        `learned_positions`."""
        return learned_positions(self.table[...], positions)


class SinusoidalPositions(nnx.Module):
    """The fixed embedding of arXiv:1706.03762: no parameters, any length.

    Args:
      context_length: not used; it is there for the sake of `LearnedPositions`.
      embed_dim: D, even.
      rngs: not used, likewise.

    Raises:
      ValueError: of a call: D is odd.

    >>> SinusoidalPositions(16, 8, rngs=nnx.Rngs(0))(20).shape
    (20, 8)
    """

    def __init__(self, context_length: int, embed_dim: int, *, rngs: nnx.Rngs) -> None:
        del context_length, rngs
        self.embed_dim = embed_dim

    def __call__(self, positions: int | jax.Array) -> jax.Array:
        """The embeddings of the first so many positions, `[T, D]`, or of integers `[*B, T]`, `[*B, T, D]`."""
        return sinusoidal_positions(positions, self.embed_dim)
