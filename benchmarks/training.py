"""The training step beside a plain PyTorch loop of the same model.

The `shakespeare` recipe for a CPU, of nanoGPT's sizes: 4 layers, 4 heads, 128 channels, context 64, batch 12, AdamW
with clipping. Ours is what `train.loop` runs in a step, the batch and the fetched metrics included. Each contender runs
a few steps in each round. Then the time from the command `python -m train` to its first training step, with nothing
compiled before.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np

from benchmarks.__main__ import main
from benchmarks.interleave import seconds
from benchmarks.results import OURS, Row
from configs import shakespeare
from train.data.text import batch
from train.memory import keep_freed_memory
from train.model import build_model
from train.optimizer import build_optimizer
from train.step import Batch, create_state, train_step

try:
    import torch
    from torch import nn
    from torch.nn import functional as F
except ImportError:
    torch = None

VOCABULARY = 65
STEPS = 10
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, 1_000_000).astype(np.int32)
BATCH = partial(
    batch, TOKENS, seed=0, batch_size=shakespeare.data.batch_size, length=shakespeare.model.context_length + 1
)


def ours():
    """Some steps of the trainer."""
    optimizer = build_optimizer(shakespeare.optimizer, shakespeare.steps)
    model = build_model(shakespeare.model, VOCABULARY, jax.random.key(0))
    graphdef, state = create_state(model, optimizer, jax.random.key(1))
    step = partial(train_step, graphdef=graphdef, optimizer=optimizer)

    def run():
        nonlocal state
        unfetched = None
        for index in range(STEPS):
            state, metrics = step(state, Batch(jax.device_put(BATCH(step=index))))
            if unfetched is not None:
                jax.device_get(unfetched)
            unfetched = metrics
        jax.block_until_ready(state)

    return run


def theirs(compiled: bool):
    """Some steps of the same model and optimiser in PyTorch."""
    model = TorchLM(shakespeare.model)
    forward = torch.compile(model) if compiled else model
    decays = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    config = shakespeare.optimizer
    groups = [{"params": decays, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2))

    def run():
        for index in range(STEPS):
            tokens = torch.from_numpy(BATCH(step=index).astype(np.int64))
            logits = forward(tokens[:, :-1])
            loss = F.cross_entropy(logits.reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            loss.item()

    return run


if torch is not None:

    class TorchBlock(nn.Module):
        """Pre-norm attention and feed-forward, with biases."""

        def __init__(self, D: int, N: int):
            super().__init__()
            self.N = N
            self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
            self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
            self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

        def forward(self, x):
            B, T, D = x.shape
            heads = self.qkv(self.norm1(x)).view(B, T, 3, self.N, D // self.N).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(*heads, is_causal=True)
            x = x + self.out(attended.transpose(1, 2).reshape(B, T, D))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    class TorchLM(nn.Module):
        """The language model of a configuration, its head tied to the embedding."""

        def __init__(self, config):
            super().__init__()
            D = config.embed_dim
            self.tokens, self.positions = nn.Embedding(VOCABULARY, D), nn.Embedding(config.context_length, D)
            self.blocks = nn.ModuleList([TorchBlock(D, config.num_heads) for _ in range(config.num_layers)])
            self.norm = nn.LayerNorm(D)

        def forward(self, tokens):
            x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.tokens.weight.T


def seconds_to_first_step() -> float:
    """From the command to the first loss of `text`, in a fresh process without a compilation cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        records = Path(folder) / "runs" / "text" / "metrics.jsonl"
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "train", "--quiet"], cwd=folder, env=environment)
        while process.poll() is None and not (records.exists() and records.stat().st_size):
            time.sleep(0.02)
        duration = time.perf_counter() - start
        process.kill()
        process.wait()
        if not records.exists():
            raise RuntimeError(f"`python -m train` ended with status {process.returncode} before its first step")
        return duration


def contenders() -> tuple[dict, dict]:
    """Those that run, by name, and why others do not."""
    if torch is None:
        return {OURS: ours()}, {}
    running = {OURS: ours(), "torch, eager": theirs(compiled=False)}
    compiled = theirs(compiled=True)
    try:
        compiled()
    except Exception as error:  # where it has no compiler, or none that works
        return running, {"torch.compile": str(error).splitlines()[0]}
    return {**running, "torch.compile": compiled}, {}


def measure(rounds: int) -> Iterator[Row]:
    """All rows of the benchmark."""
    keep_freed_memory()
    table, case = "A training step", "shakespeare"
    tokens = shakespeare.data.batch_size * shakespeare.model.context_length
    running, others = contenders()
    for name, values in seconds(running, rounds).items():
        yield Row(table, case, name, [value / STEPS for value in values], tokens=tokens)
    for name, reason in others.items():
        yield Row(table, case, name, [], missing=reason)
    starts = [seconds_to_first_step() for _ in range(3)]
    yield Row("From the command to the first training step", "text", OURS, starts)


if __name__ == "__main__":
    main(["training", *sys.argv[1:]])
