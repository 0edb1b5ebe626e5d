"""Greedy text from a GPT-2 of random weights, beside `transformers`: `python -m benchmarks.generation`.

The smallest GPT-2 (12 layers, 768 channels), a prompt of 64 tokens and 128 new ones, on the CPU in float32, each with
its cache. Each contender writes once in each round, in a random order; printed are new tokens a second, prompt
included in the time, and their ratio. Then the time of one more token where 64 and where 512 are held, in a cache of
the same size.
"""

import argparse
import platform
import time

import jax
import numpy as np
from flax import nnx

from attention_jax.generate import generate, stream
from attention_jax.pretrained import build_gpt2
from attention_jax.sampling import Sampling
from benchmarks.interleave import medians

try:
    import torch
    import transformers
except ImportError:
    torch = None

PROMPT, NEW = 64, 128
GREEDY = Sampling(temperature=0)
RNG = jax.random.key(0)


def prompts(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 50257, (batch, length))


def ours(model, batch: int):
    return lambda: jax.block_until_ready(generate(model, prompts(batch, PROMPT), NEW, rng=RNG, sampling=GREEDY))


def theirs(model, batch: int):
    tokens = torch.from_numpy(prompts(batch, PROMPT))
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, "use_cache": True}
    return lambda: model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)


def seconds_a_token(model, held: int, room: int = 640) -> float:
    """The median time of a token after `held` others, in a cache with room for `room`."""
    tokens = stream(model, prompts(1, held), room - held, rng=RNG, sampling=GREEDY)
    times = []
    for _ in range(40):
        start = time.perf_counter()
        next(tokens)
        times.append(time.perf_counter() - start)
    return sorted(times[5:])[len(times[5:]) // 2]


def main() -> None:
    """Print the tables, as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="times that each contender writes")
    rounds = parser.parse_args().rounds
    model = build_gpt2(50257, 1024, 768, 12, 12, rngs=nnx.Rngs(0))
    peer = None if torch is None else transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}" if torch else "no torch"
    print(f"jax {jax.__version__}, {versions}, {platform.machine()}, float32\n")
    print("| batch | attention_jax, tokens/s | transformers, tokens/s | ratio |\n|---|---|---|---|")
    for batch in (1, 8):
        contenders = {"ours": ours(model, batch)} | ({} if peer is None else {"theirs": theirs(peer, batch)})
        speed = {name: batch * NEW / seconds for name, seconds in medians(contenders, rounds).items()}
        other = speed.get("theirs", float("nan"))
        print(f"| {batch} | {speed['ours']:.1f} | {other:.1f} | {speed['ours'] / other:.2f} |")
    near, far = seconds_a_token(model, 64), seconds_a_token(model, 512)
    print(f"\nA token after 64 others: {1e3 * near:.1f} ms; after 512: {1e3 * far:.1f} ms, {far / near:.2f} of that.")


if __name__ == "__main__":
    main()
