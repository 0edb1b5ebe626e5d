"""A run, from its configuration to its directory: data, steps, late metrics, validation, samples, pictures."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention_jax.generate import generate
from attention_jax.view.plot import plot_heads
from configs import schema
from train import checkpoint, run_directory
from train.data import text as data
from train.metrics import Metrics
from train.optimizer import build_optimizer, learning_rate
from train.pictures import plot_loss
from train.step import create_state, eval_step, train_step
from train.tokenizer import CharTokenizer

SAMPLE_LENGTH = 400
PICTURE_LENGTH = 32


def run(config: schema.Config) -> None:
    """Train a model as `config` says, and leave it under runs/.

    Raises:
      InputError: text that cannot be read or is too short, or a directory that cannot be written; nothing is compiled
        or written by then.
    """
    text = data.read_text(config.data.path)
    tokenizer = CharTokenizer.of(text)
    length = config.model.context_length + 1
    train, validation = data.split(tokenizer.encode(text), config.data.validation_fraction, config.model.context_length)
    directory, moved = run_directory.create(config, tokenizer)

    batch_size = config.data.batch_size
    model_rng, state_rng, sample_rng = jax.random.split(jax.random.key(config.seed), 3)
    optimizer = build_optimizer(config.optimizer, config.steps)
    rates = jax.device_get(jax.vmap(learning_rate(config.optimizer, config.steps))(jnp.arange(config.steps)))
    model = run_directory.build_model(config.model, len(tokenizer), model_rng)
    graphdef, state = create_state(model, optimizer, state_rng)
    validation_batches = data.whole(validation, batch_size=batch_size, length=length)

    def validation_loss() -> float:
        losses = [eval_step(state.params, batch, graphdef=graphdef) for batch in validation_batches]
        return float(np.mean(jax.device_get(losses)))

    def sample(step: int) -> str:
        tokens = generate(
            nnx.merge(graphdef, state.params), validation[:1], SAMPLE_LENGTH, rng=jax.random.fold_in(sample_rng, step)
        )
        return tokenizer.decode(np.asarray(tokens)[1:])

    with Metrics(directory / "metrics.jsonl", config.steps, batch_size * (length - 1), config.quiet) as metrics:
        device, count = jax.devices()[0], sum(param.size for param in jax.tree.leaves(state.params))
        metrics.say(
            f"{device.platform} ({device.device_kind}), {count:,} parameters, {len(train):,} training and "
            f"{len(validation):,} validation tokens, vocabulary of {len(tokenizer)}"
        )
        metrics.say(f"writing {directory}" + (f"; the earlier run is now {moved}" if moved else ""))

        unfetched = None
        for step in range(1, config.steps + 1):
            tokens = data.batch(train, seed=config.seed, step=step, batch_size=batch_size, length=length)
            state, outcome = train_step(state, tokens, graphdef=graphdef, optimizer=optimizer)
            if unfetched:  # one step late, so that the device never waits for the host
                metrics.step(step - 1, float(unfetched["loss"]), float(rates[step - 2]))
            unfetched = outcome
            if step % config.eval_every == 0 or step == config.steps:
                metrics.step(step, float(unfetched["loss"]), float(rates[step - 1]))
                unfetched = None
                loss, written = validation_loss(), sample(step)
                with (directory / "samples.txt").open("a", encoding="utf-8") as samples:
                    samples.write(f"--- step {step} ---\n{written}\n\n")
                metrics.validation(step, loss)

        checkpoint.save(directory / "checkpoints", config.steps, state.params)
        plot_loss(metrics.records, directory / "loss.png")
        shown = wordiest(tokenizer.decode(validation), min(PICTURE_LENGTH, length - 1))
        _, weights = nnx.merge(graphdef, state.params)(jnp.asarray(tokenizer.encode(shown)), return_weights=True)
        plot_heads(weights, list(shown)).savefig(directory / "attention.png", dpi=130)

        recent = [record["train_loss"] for record in metrics.records if "train_loss" in record][-100:]
        metrics.say(f"\nA sample:\n\n{written}\n")
        metrics.say(f"train loss {np.mean(recent):.3f}, validation loss {loss:.3f} nats per token")
        metrics.say(f"pictures: {directory / 'loss.png'}, {directory / 'attention.png'}")
        metrics.say(f'more text: python -m train.sample {directory} --prompt "The "')


def wordiest(text: str, length: int) -> str:
    """The first stretch of `text`, among those that begin a line, with the most letters: one worth a picture.

    >>> wordiest("    x\\nwords, words\\n...", 8)
    'words, w'
    """
    starts = [0, *(index + 1 for index, character in enumerate(text) if character == "\n")]
    stretches = [text[start : start + length] for start in starts if start + length <= len(text)]
    return max(stretches, key=lambda stretch: sum(map(str.isalpha, stretch)))
