"""The contract of attention at its edges, as a suite that any implementation can be put through.

    python -m attention_jax.conformance                     # every implementation installed, as a table
    python -m attention_jax.conformance --only jax.nn       # one of them
    python -m attention_jax.conformance --write docs        # docs/conformance.md and docs/conformance.html

An implementation of your own takes an adapter of a dozen lines:

    >>> import jax, jax.numpy as jnp
    >>> def plain(query, key, value, *, mask=None):
    ...     logits = jnp.einsum("...tnh,...snh->...nts", query, key) * query.shape[-1] ** -0.5
    ...     logits = logits if mask is None else jnp.where(mask, logits, -jnp.inf)
    ...     return jnp.einsum("...nts,...snh->...tnh", jax.nn.softmax(logits), value)
    >>> mine = Implementation("mine", "1.0", plain)
    >>> check(mine, "row that sees no key: output")
    Deviates: output NaN in 64 of 448 numbers, not 0
    >>> check(mine, "gradient of the bias")
    Refuses: it has no bias=
    >>> check(mine, "unequal lengths")
    Passes
"""

from attention_jax.conformance import numbers, refusals, transforms  # noqa: F401, they are the rows
from attention_jax.conformance.implementation import Implementation as Implementation
from attention_jax.conformance.verdict import ROWS as ROWS
from attention_jax.conformance.verdict import check as check
