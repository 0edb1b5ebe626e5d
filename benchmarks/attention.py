"""Attention beside that of other libraries, forward and with its backward pass, and the memory it takes."""

import sys
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import attention_jax as aj
from attention_jax.conformance import peers
from benchmarks.__main__ import main
from benchmarks.interleave import seconds
from benchmarks.results import OURS, Row

try:
    import torch
except ImportError:
    torch = None

CAUSAL = [
    (8, 16, 4, 16), (32, 64, 4, 32), (32, 64, 8, 64), (16, 128, 4, 32), (8, 256, 8, 64), (4, 512, 8, 64),
    (2, 1024, 8, 64), (1, 4096, 8, 64), (1, 8192, 8, 64),
]  # fmt: skip
WINDOW = [(1, 2048, 8, 64), (1, 8192, 8, 64)]
DECODING = [(8, 1024, 8, 64), (1, 4096, 32, 128)]
MEMORY = [(1, T, 4, 64) for T in (1024, 2048, 4096, 8192, 16384)]
PEERS_UP_TO = {"jax.nn": 4096, "nnx function": 1024, "tokamax": 1024, "equinox": 1024}
"""They hold all weights, for which longer inputs take seconds a call, and then gigabytes."""

FORWARD, WITH_BACKWARD = "forward", "forward and backward"


def measure(rounds: int) -> Iterator[Row]:
    """All rows of the benchmark."""
    for shape in CAUSAL:
        yield from times("Causal attention", shape, aj.causal(), rounds)
    for shape in WINDOW:
        yield from times("A window of 256 keys", shape, aj.sliding_window(256, 0), rounds)
    for shape in DECODING:
        yield from times("One query on all keys", shape, None, rounds, queries=1)
    for shape in MEMORY:
        yield from memory(shape)


def times(table: str, shape, mask, rounds: int, queries: int | None = None) -> Iterator[Row]:
    """Seconds of every contender, forward and with the backward pass; forward alone of some queries, as text is made of
    one after another."""
    random = np.random.default_rng(0)
    of_queries = (shape[0], queries or shape[1], *shape[2:])
    shapes = of_queries, shape, shape, of_queries
    *inputs, cotangent = (jnp.asarray(random.normal(size=each), jnp.float32) for each in shapes)
    for direction in [FORWARD] if queries else [FORWARD, WITH_BACKWARD]:
        calls = programs(contenders(shape, mask), direction, inputs, cotangent)
        if torch is not None:
            calls["torch"] = torch_call(direction, inputs, cotangent, mask)
        for name, values in seconds(calls, rounds).items():
            yield Row(f"{table}, {direction}", str(shape), name, values)


def memory(shape) -> Iterator[Row]:
    """What each program takes besides its inputs and outputs, by XLA's account; nothing is run."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, attend in contenders(shape, aj.causal()).items():
        for direction in FORWARD, WITH_BACKWARD:
            size = compiled(attend, direction, [x, x, x], x).memory_analysis().temp_size_in_bytes / 2**20
            yield Row(f"Memory of causal attention, {direction}", str(shape), name, [size], "MiB")


def contenders(shape, mask) -> dict[str, Callable]:
    """Ours, and the JAX libraries installed, as functions of query, key and value."""
    T = shape[1]
    found = {OURS: partial(aj.attention, mask=mask)}
    if T <= 1024:
        found[f"{OURS}, reference"] = partial(aj.attention, mask=mask, implementation="reference")
    for peer in peers.implementations():
        if PEERS_UP_TO.get(peer.name, 0) >= T:
            if mask is None:
                options = {}
            elif is_causal(mask) and peer.has("causal"):
                options = {"causal": True}
            else:
                options = {"mask": mask.to_array(T, T)}
            found[peer.name] = partial(peer.attend, **options)
    return found


def is_causal(mask) -> bool:
    return isinstance(mask, type(aj.causal()))


def programs(attends: dict[str, Callable], direction, inputs, cotangent) -> dict[str, Callable]:
    """Calls of each, compiled, which wait until it has finished."""
    return {
        name: partial(finished, compiled(attend, direction, inputs, cotangent), inputs, cotangent)
        for name, attend in attends.items()
    }


def compiled(attend, direction, inputs, cotangent):
    """A program of the inputs and the cotangent, which the forward pass does without."""

    def forward(inputs, cotangent):
        return attend(*inputs)

    def with_backward(inputs, cotangent):
        output, pull = jax.vjp(attend, *inputs)
        return output, pull(cotangent)

    return jax.jit(forward if direction == FORWARD else with_backward).lower(inputs, cotangent).compile()


def finished(program, *inputs):
    return jax.block_until_ready(program(*inputs))


def torch_call(direction, inputs, cotangent, mask):
    """PyTorch's call, on copies in its own layout."""
    *inputs, cotangent = peers.to_torch(*inputs, cotangent)
    inputs = [x.requires_grad_() for x in inputs]
    T = inputs[0].shape[-2]
    if mask is None or is_causal(mask):
        options = {"is_causal": mask is not None}
    else:
        options = {"attn_mask": torch.tensor(np.array(mask.to_array(T, T)))}
    attend = partial(torch.nn.functional.scaled_dot_product_attention, *inputs, **options)

    def forward():
        with torch.no_grad():
            attend()

    def with_backward():
        torch.autograd.grad(attend(), inputs, cotangent)

    return forward if direction == FORWARD else with_backward


if __name__ == "__main__":
    main(["attention", *sys.argv[1:]])
