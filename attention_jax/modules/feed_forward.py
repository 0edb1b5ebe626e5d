"""The two feed-forward networks of a transformer block."""

import math
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from attention_jax.arguments import static_int
from attention_jax.modules.layers import Dropout, Linear


def exact_gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function of x (arXiv:1606.08415), as 1 + erf; PyTorch's `nn.GELU()`.

    `jax.nn.gelu` takes erfc, which keeps more digits of what is nearly 0 (x < -3), and takes longer.
    """
    wide = x.astype(np.promote_types(x.dtype, np.float32))
    return (wide * (1 + jax.lax.erf(wide / math.sqrt(2))) / 2).astype(x.dtype)


class FeedForward(nnx.Module):
    """Two linear layers around an activation (arXiv:1706.03762, section 3.3; GELU, arXiv:1606.08415).

    Args:
      embed_dim: D.
      hidden_dim: width between the layers; 4 D if not given.
      activation: elementwise function; GELU if not given.
      use_bias: whether the layers have biases.
      dropout_rate: of the output.
      rngs: initialises the parameters.

    Raises:
      TypeError: sizes that are not integers; of a call: `rngs` that are none.
      ValueError: a size below 1, a `dropout_rate` not in [0, 1); of a call: a last dimension that is not D.

    >>> FeedForward(8, rngs=nnx.Rngs(0))(jax.numpy.ones((5, 8))).shape
    (5, 8)
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        hidden_dim: int | None = None,
        activation: Callable[[jax.Array], jax.Array] = exact_gelu,
        use_bias: bool = True,
        dropout_rate: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        embed_dim = static_int("embed_dim", embed_dim, minimum=1)
        hidden_dim = 4 * embed_dim if hidden_dim is None else static_int("hidden_dim", hidden_dim, minimum=1)
        options = {"use_bias": use_bias, "rngs": rngs}
        self.up = Linear(embed_dim, hidden_dim, axes=("embed", "mlp"), **options)
        self.down = Linear(hidden_dim, embed_dim, axes=("mlp", "embed"), **options)
        self.activation = activation
        self.dropout = Dropout(dropout_rate)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """`[*B, T, D]` -> `[*B, T, D]`; drops out if given `rngs`."""
        return self.dropout(self.down(self.activation(self.up(x))), rngs)


class SwiGLU(nnx.Module):
    """A gated feed-forward network: down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202).

    Args:
      embed_dim: D.
      hidden_dim: width between the layers; 8/3 D if not given, which has as many weights as `FeedForward`.
      use_bias: whether the layers have biases.
      dropout_rate: of the output.
      rngs: initialises the parameters.

    Raises:
      TypeError: sizes that are not integers; of a call: `rngs` that are none.
      ValueError: a size below 1, a `dropout_rate` not in [0, 1); of a call: a last dimension that is not D.

    >>> SwiGLU(12, rngs=nnx.Rngs(0)).up.kernel.shape
    (12, 32)
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        hidden_dim: int | None = None,
        use_bias: bool = False,
        dropout_rate: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        embed_dim = static_int("embed_dim", embed_dim, minimum=1)
        hidden_dim = 8 * embed_dim // 3 if hidden_dim is None else static_int("hidden_dim", hidden_dim, minimum=1)
        options = {"use_bias": use_bias, "rngs": rngs}
        self.gate = Linear(embed_dim, hidden_dim, axes=("embed", "mlp"), **options)
        self.up = Linear(embed_dim, hidden_dim, axes=("embed", "mlp"), **options)
        self.down = Linear(hidden_dim, embed_dim, axes=("mlp", "embed"), **options)
        self.dropout = Dropout(dropout_rate)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """`[*B, T, D]` -> `[*B, T, D]`; drops out if given `rngs`."""
        return self.dropout(self.down(jax.nn.silu(self.gate(x)) * self.up(x)), rngs)
