"""Greedy text from a GPT-2 of random weights, beside `transformers`.

The smallest GPT-2 (12 layers, 768 channels), a prompt of 64 tokens and 128 new ones, in float32, each with its cache.
Each contender writes once in each round, the prompt included in the time. Then the time of one more token where 64 and
where 512 are held, in a cache of the same size.
"""

import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
from flax import nnx

from attention_jax.generate import generate, stream
from attention_jax.pretrained import build_gpt2
from attention_jax.sampling import Sampling
from benchmarks.__main__ import main
from benchmarks.interleave import seconds
from benchmarks.results import OURS, Row

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


def token_after(model, held: int, room: int = 640) -> list[float]:
    """Seconds of each of some tokens after `held` others, in a cache with room for `room`."""
    tokens = stream(model, prompts(1, held), room - held, rng=RNG, sampling=GREEDY)
    times = []
    for _ in range(40):
        start = time.perf_counter()
        next(tokens)
        times.append(time.perf_counter() - start)
    return times[5:]


def measure(rounds: int) -> Iterator[Row]:
    """All rows of the benchmark."""
    model = build_gpt2(50257, 1024, 768, 12, 12, rngs=nnx.Rngs(0))
    peer = None if torch is None else transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    for batch in (1, 8):
        contenders = {OURS: ours(model, batch)} | ({} if peer is None else {"transformers": theirs(peer, batch)})
        for name, values in seconds(contenders, rounds).items():
            yield Row(f"{NEW} tokens after {PROMPT}", f"batch of {batch}", name, values, tokens=batch * NEW)
    for held in (64, 512):
        yield Row("One more token", f"after {held} others", OURS, token_after(model, held), tokens=1)


if __name__ == "__main__":
    main(["generation", *sys.argv[1:]])
