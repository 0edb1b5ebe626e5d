"""What is put through the contract."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


def jax_gradients(attend: Callable, inputs, cotangent, **options):
    """Output, and the gradients of `sum(output * cotangent)`, by `jax.vjp`."""

    @jax.jit
    def run(*inputs):
        output, backward = jax.vjp(lambda *inputs: attend(*inputs, **options), *inputs)
        return output, backward(cotangent)

    return run(*inputs)


class NotOfferedError(NotImplementedError):
    """A row wants what the implementation does not have."""


@dataclass(frozen=True)
class Implementation:
    """An attention, as the rows of the contract call it.

    Args:
      name: heading of its column.
      version: of the library it comes from.
      attend: called with `query [*B, T, N, H]`, `key [*B, S, K, H]`, `value [*B, S, K, Hv]`, JAX arrays, and returns
        `[*B, T, N, Hv]`. It names the options it has; a row that wants another is refused on its behalf. They are
        `mask=` (bool `[T, S]` or `[*B, N or 1, T, S]`, True = may attend), `bias=` (floating, likewise), `causal=`
        (True: its own causal mask), `key_lengths=` (`[*B]`), `dropout_rate=`, `dropout_rng=`, `precision=`, `with_lse=`
        (True: return the log-sum-exp `[*B, N, T]` too), `with_weights=` (True: return `[*B, N, T, S]` too).
      gradients: called with `attend, (query, key, value), cotangent` and options; returns the output, and the gradients
        of `sum(output * cotangent)`. Default: by `jax.vjp`.
      decode: called with `query, key, value, chunks, capacity`: causal attention of as many tokens at a time as
        `chunks` says, through a cache with room for `capacity`; returns all outputs. None if there is no cache.

    >>> from attention_jax import attention
    >>> from attention_jax.conformance import check
    >>> check(Implementation("ours", "0.1.0", attention), "row that sees no key: output")
    Passes
    """

    name: str
    version: str
    attend: Callable
    gradients: Callable = jax_gradients
    decode: Callable | None = None

    def __call__(self, *inputs, **options):
        self.refuse_unknown(options)
        return self.attend(*inputs, **_as_jax(options))

    def output_and_gradients(self, inputs, cotangent, **options):
        self.refuse_unknown(options)
        return self.gradients(self.attend, inputs, cotangent, **_as_jax(options))

    def through_cache(self, query, key, value, *, chunks, capacity):
        if self.decode is None:
            raise NotOfferedError("it has no cache")
        return self.decode(query, key, value, chunks=chunks, capacity=capacity)

    def refuse_unknown(self, options) -> None:
        missing = [option for option in options if not self.has(option)]
        if missing:
            raise NotOfferedError(f"it has no {missing[0]}=")

    def has(self, option: str) -> bool:
        return option in inspect.signature(self.attend).parameters

    @property
    def traceable(self) -> bool:
        return self.gradients is jax_gradients


def _as_jax(options):
    return {name: jnp.asarray(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
