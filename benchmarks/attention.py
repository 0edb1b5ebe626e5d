"""Attention against its peers, in one process: `python -m benchmarks.attention [--rounds 15] [--only causal]`.

Times are medians of interleaved calls, and are given as multiples of PyTorch's (of `jax.nn`'s where PyTorch is not
installed), so that numbers below 1 are faster than it. Memory is what XLA's compiled program takes besides its inputs
and outputs.
"""

import argparse
import platform
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import attention_jax as aj
from attention_jax.conformance import peers
from benchmarks.interleave import medians

try:
    import torch
except ImportError:
    torch = None

CAUSAL = [
    (32, 64, 4, 32), (16, 128, 4, 32), (8, 256, 8, 64), (4, 512, 8, 64),
    (2, 1024, 8, 64), (1, 4096, 8, 64), (1, 8192, 8, 64),
]  # fmt: skip
WINDOW = [(1, 2048, 8, 64), (1, 8192, 8, 64)]
WHOLE_UP_TO = 4096  # beyond, weights that are held whole need gigabytes


def jax_contenders(mask, T: int) -> dict[str, Callable]:
    """Each of ours, and the JAX libraries installed, as a function of query, key and value."""
    ours = {
        name: partial(aj.attention, mask=mask, implementation=name)
        for name in ("blockwise", "reference")
        if name == "blockwise" or T <= 1024
    }
    if T > WHOLE_UP_TO:
        return ours
    causal, whole = isinstance(mask, type(aj.causal())), mask.to_array(T, T)
    for peer in peers.implementations():
        if peer.traceable and peer.name in ("jax.nn", "nnx function", "tokamax", "equinox"):
            options = {"causal": True} if causal and peer.has("causal") else {"mask": whole}
            ours[peer.name] = partial(peer.attend, **options)
    return ours


def compiled(attend, inputs, cotangent):
    """Forward, and forward with backward, each compiled."""

    def backward(*inputs):
        output, pull = jax.vjp(attend, *inputs)
        return output, pull(cotangent)

    return [jax.jit(fn).lower(*inputs).compile() for fn in (attend, backward)]


def torch_contenders(inputs, cotangent, mask, T):
    """PyTorch's forward, and forward with backward, on copies in its own layout."""
    query, key, value, cotangent = (
        torch.tensor(np.swapaxes(np.asarray(x), 1, 2).copy(), requires_grad=index < 3)
        for index, x in enumerate((*inputs, cotangent))
    )
    causal = isinstance(mask, type(aj.causal()))
    options = {"is_causal": True} if causal else {"attn_mask": torch.tensor(np.array(mask.to_array(T, T)))}
    attend = partial(torch.nn.functional.scaled_dot_product_attention, **options)

    def forward():
        with torch.no_grad():
            attend(query, key, value)

    def backward():
        torch.autograd.grad(attend(query, key, value), (query, key, value), cotangent)

    return forward, backward


def compare(shape, mask, rounds: int) -> list[str]:
    """Rows of the table for one shape and mask."""
    B, T, N, H = shape
    random = np.random.default_rng(0)
    *inputs, cotangent = (jnp.asarray(random.normal(size=shape), jnp.float32) for _ in range(4))
    programs = {name: compiled(attend, inputs, cotangent) for name, attend in jax_contenders(mask, T).items()}
    results = []
    for index in range(2):
        runs = {
            name: partial(lambda program: jax.block_until_ready(program(*inputs)), program[index])
            for name, program in programs.items()
        }
        if torch is not None:
            runs["torch"] = torch_contenders(inputs, cotangent, mask, T)[index]
        results.append(medians(runs, rounds))
    base = "jax.nn" if torch is None else "torch"
    rows = []
    for name in results[0]:
        ratios = [f"{times[name] / times[base]:.2f}" if base in times else "" for times in results]
        times = [f"{times[name] * 1e3:.1f}" for times in results]
        memory = [f"{p.memory_analysis().temp_size_in_bytes / 2**20:.0f}" for p in programs.get(name, ())] or ["", ""]
        rows.append("| " + " | ".join([str(shape), name, *ratios, *times, *memory]) + " |")
    return rows


def main() -> None:
    """Print the tables, as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="calls of each contender that are timed")
    parser.add_argument("--only", choices=["causal", "window", "memory"], help="one of the tables")
    options = parser.parse_args()
    base = "jax.nn" if torch is None else f"torch {torch.__version__}"
    print(f"jax {jax.__version__}, {base}, {jax.devices()[0].device_kind}, {platform.machine()}, float32\n")
    header = f"| (B, T, N, H) | | forward / {base.split()[0]} | + backward | forward ms | + backward ms | MiB | MiB |"
    for name, mask, shapes in (("causal", aj.causal(), CAUSAL), ("window", aj.sliding_window(256, 0), WINDOW)):
        if options.only in (None, name):
            print(f"{mask!r}\n\n{header}\n|---|---|---|---|---|---|---|---|", flush=True)
            for shape in shapes:
                print("\n".join(compare(shape, mask, options.rounds)), flush=True)
            print()
    if options.only in (None, "memory"):
        print("Temporary memory of causal attention, MiB\n\n| (B, T, N, H) | forward | + backward |\n|---|---|---|")
        for T in (2048, 4096, 8192, 16384):
            x = jax.ShapeDtypeStruct((1, T, 4, 64), jnp.float32)
            programs = compiled(partial(aj.attention, mask=aj.causal()), (x, x, x), jnp.ones(x.shape))
            forward, backward = (f"{p.memory_analysis().temp_size_in_bytes / 2**20:.1f}" for p in programs)
            print(f"| {x.shape} | {forward} | {backward} |")


if __name__ == "__main__":
    main()
