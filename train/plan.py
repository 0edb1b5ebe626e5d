"""`python -m train.plan VOCAB [PRESET] [--field value ...]`: what a run would need of each device, before it is begun.

The formulas stand in `docs/scale.md`, with what they were checked against.
"""

import sys
from typing import NamedTuple

import tyro

from attention_jax.block_sizes import CPU
from configs import PRESETS
from configs.schema import Config, Model
from train.__main__ import take_preset
from train.errors import InputError, exit_status
from train.sharding import check_parts

FLOAT = 4  # bytes
UPDATE = 3.5
"""Gradients, their square averages and what else the optimiser makes before it is done, a parameter."""


class Plan(NamedTuple):
    """Bytes on each device, and bytes that each device sends in a step."""

    parameters: int
    """How many the model has; not bytes."""
    state: int
    activations: int
    attention: int
    """What the blocks of scores at work take."""
    logits: int
    gradients: int
    memory: int
    """The most at once."""
    sent: dict[str, int]
    """By what they are for."""

    def __str__(self) -> str:
        rows = {
            f"state of {self.parameters / 1e6:,.1f} M parameters": self.state, "activations": self.activations,
            "attention": self.attention, "logits": self.logits, "gradients": self.gradients,
            "at most at once": self.memory,
        }  # fmt: skip
        rows |= {f"sent in a step, {what}": size for what, size in self.sent.items()}
        return "\n".join(f"{name:36} {size / 2**30:9.3f} GiB" for name, size in rows.items())


def plan(config: Config, vocab: int) -> Plan:
    """What the run needs of each device, where every mesh axis divides what it cuts.

    Args:
      vocab: number of tokens.

    Raises:
      InputError: `--mesh.data 0`, which leaves open how many devices there are; a mesh that cannot cut the run.

    >>> from configs import PRESETS
    >>> round(plan(PRESETS["gpt2"], 50257).parameters / 1e6)
    124
    """
    model, data, tensor, parts = config.model, config.mesh.data, config.mesh.model, config.data.accumulate
    if not data:
        raise InputError("give --mesh.data N: a plan is for so many devices, not for those that happen to be here")
    check_parts(config, data)
    spread = data if config.mesh.fsdp else 1
    by_tensor, by_data, whole = _parameters(model, vocab, spread)
    held = by_tensor // (tensor * spread) + by_data // spread + whole
    tokens = config.data.batch_size // parts // data * model.context_length
    activations = round(FLOAT * tokens * model.embed_dim * kept(model, tensor))
    scores = tokens * model.context_length * model.num_heads // tensor
    attention = 3 * FLOAT * min(scores, 2 * CPU.step)
    logits, gradients = 2 * FLOAT * tokens * vocab, FLOAT * held
    stacked = gradients if model.scan else 0  # else they take the room of activations that are used up
    state = _state(config, held)
    memory = state + max(activations + attention + logits + stacked, round(UPDATE * gradients))

    of_slice, ring, sent = by_tensor // tensor + by_data + whole, (data - 1) / data, {}
    table, uncut = vocab * model.embed_dim, vocab % spread  # the table is used twice: as embedding and as head
    if data > 1:
        sent["gradients summed"] = round(2 * parts * ring * FLOAT * (of_slice + table))
    if spread > 1:
        times = 2 if model.remat else 1
        sent["parameters gathered"] = round(times * parts * ring * FLOAT * (of_slice - whole + table * (not uncut)))
    if tensor > 1:
        sums = 6 * parts * model.num_layers
        sent["activations summed"] = round(sums * 2 * (tensor - 1) / tensor * FLOAT * tokens * model.embed_dim)
    parameters = by_tensor + by_data + whole
    return Plan(parameters, state, activations, attention, logits, gradients, memory, sent)


def whole_state(config: Config, vocab: int) -> int:
    """Bytes of the state before it is spread over devices."""
    return _state(config, sum(_parameters(config.model, vocab, 1)))


def _state(config: Config, parameters: int) -> int:
    return (4 if config.optimizer.ema_decay else 3) * FLOAT * parameters


def kept(model: Model, tensor: int) -> float:
    """Numbers that a step keeps for its backward pass, a token and channel, as XLA was measured to."""
    block = 10 + 20 / tensor
    if model.remat and model.scan:  # without `scan`, XLA takes the recomputation out again, on a CPU at least
        return 1.2 * model.num_layers + block - 2
    return block * model.num_layers + (22 if model.scan else 6)


def _parameters(model: Model, vocab: int, spread: int) -> tuple[int, int, int]:
    """How many are cut by the tensor axis (and by FSDP), by FSDP alone, and not at all."""
    L, D = model.num_layers, model.embed_dim
    fused = L * (3 * D**2 + 3 * D) if model.kind == "gpt2" else 0
    table = vocab * D
    cut = vocab % spread == 0
    by_tensor = L * (12 * D**2 + 7 * D) - fused
    by_data = fused + model.context_length * D + (table if cut else 0)
    return by_tensor, by_data, L * 6 * D + 2 * D + (0 if cut else table)


def main(arguments: list[str]) -> int:
    """Print the plan of a run. Returns the exit status.

    Raises:
      InputError: no size of a vocabulary, a preset that is not there, and as `plan`.
    """
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"{__doc__}\nThe fields are those of training: python -m train --help")
        return 0
    if not arguments or not arguments[0].isdecimal() or not int(arguments[0]):
        raise InputError("how many tokens are there? python -m train.plan VOCAB [PRESET] [--field value ...]")
    vocab, rest = int(arguments[0]), arguments[1:]
    name = take_preset(rest)
    print(plan(tyro.cli(Config, default=PRESETS[name], args=rest, prog=f"python -m train.plan {vocab} {name}"), vocab))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
