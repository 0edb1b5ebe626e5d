"""A run, from its configuration to its directory: data, steps, late metrics, validation, samples, pictures."""

import hashlib
import os

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention_jax.generate import generate
from attention_jax.view.plot import plot_heads
from configs import schema
from train import run_directory
from train.checkpoint import Checkpoints, flat, unflat
from train.data import text as data
from train.errors import DivergedError, InputError
from train.interrupts import Interrupts
from train.metrics import Metrics
from train.optimizer import build_optimizer, learning_rate
from train.pictures import plot_loss
from train.step import create_state, eval_step, train_step
from train.tokenizer import CharTokenizer

SAMPLE_LENGTH = 400
PICTURE_LENGTH = 32
MOST_SKIPPED = 10


def run(config: schema.Config) -> int:
    """Train a model as `config` says, and leave it under runs/.

    Returns:
      The exit status: 0, or 128 + the signal's number if one ended the run, which has saved its state by then.

    Raises:
      InputError: text that cannot be read or is too short, a directory that cannot be written or has another run in it;
        nothing is compiled or written by then.
    """
    text = data.read_text(config.data.path)
    tokenizer = CharTokenizer.of(text)
    tokens = data.split(tokenizer.encode(text), config.data.validation_fraction, config.model.context_length)
    if config.resume:
        directory, moved = run_directory.check_same(config, tokenizer), None
    else:
        directory, moved = run_directory.create(config, tokenizer)
    with run_directory.locked(directory), Interrupts() as interrupts:
        text_hash = hashlib.sha256(text.encode()).hexdigest()
        return _run(config, tokenizer, *tokens, text_hash, directory, moved, interrupts)


def _run(config, tokenizer, train, validation, text_hash, directory, moved, interrupts) -> int:
    batch_size, length = config.data.batch_size, config.model.context_length + 1
    model_rng, state_rng, sample_rng = jax.random.split(jax.random.key(config.seed), 3)
    optimizer = build_optimizer(config.optimizer, config.steps)
    rates = jax.device_get(jax.vmap(learning_rate(config.optimizer, config.steps))(jnp.arange(config.steps)))
    model = run_directory.build_model(config.model, len(tokenizer), model_rng)
    graphdef, state = create_state(model, optimizer, state_rng)
    validation_batches = data.whole(validation, batch_size=batch_size, length=length)
    samples = directory / "samples.txt"

    def validation_loss() -> float:
        losses = [eval_step(state.params, batch, graphdef=graphdef) for batch in validation_batches]
        return float(np.mean(jax.device_get(losses)))

    def sample(step: int) -> str:
        tokens = generate(
            nnx.merge(graphdef, state.params), validation[:1], SAMPLE_LENGTH, rng=jax.random.fold_in(sample_rng, step)
        )
        return tokenizer.decode(np.asarray(tokens)[1:])

    warnings: list[str] = []
    with Checkpoints(directory / "checkpoints", warnings.append) as checkpoints:
        checkpoints.clean()
        done = kept = 0
        if config.resume and (found := checkpoints.newest()):
            arrays, notes = found
            if notes["text"] != text_hash:
                raise InputError(f"{directory}: --resume with another text than the run began with")
            state = unflat(state, arrays, directory)
            done = int(state.step)
            kept = notes["samples"]
        samples.touch()
        os.truncate(samples, min(kept, samples.stat().st_size))
        with Metrics(
            directory / "metrics.jsonl", config.steps, batch_size * (length - 1), config.quiet, done
        ) as metrics:
            device, count = jax.devices()[0], sum(param.size for param in jax.tree.leaves(state.params))
            metrics.say(
                f"{device.platform} ({device.device_kind}), {count:,} parameters, {len(train):,} training and "
                f"{len(validation):,} validation tokens, vocabulary of {len(tokenizer)}"
            )
            for warning in warnings:
                metrics.say(warning)
            going_on = f", going on after step {done}" if config.resume else ""
            metrics.say(f"writing {directory}{going_on}" + (f"; the earlier run is now {moved}" if moved else ""))
            if done == config.steps:
                metrics.say("all steps are done")
                return 0

            unfetched = None
            for step in range(done + 1, config.steps + 1):
                tokens = data.batch(train, seed=config.seed, step=step, batch_size=batch_size, length=length)
                state, outcome = train_step(state, tokens, graphdef=graphdef, optimizer=optimizer)
                if unfetched:  # one step late, so that the device never waits for the host
                    record(metrics, step - 1, unfetched, rates)
                unfetched = outcome
                last, stopped = step == config.steps, interrupts.received is not None
                evaluate, save = step % config.eval_every == 0 or last, step % config.checkpoint_every == 0 or last
                if evaluate or save or stopped:
                    record(metrics, step, unfetched, rates)
                    unfetched = None
                if evaluate:
                    loss, written = validation_loss(), sample(step)
                    with samples.open("a", encoding="utf-8") as file:
                        file.write(f"--- step {step} ---\n{written}\n\n")
                    metrics.validation(step, loss)
                if save or stopped:
                    metrics.sync()
                    checkpoints.save(step, state, {"text": text_hash, "samples": samples.stat().st_size})
                if stopped and not last:
                    metrics.say(f"stopped after step {step}, which is saved; --resume goes on")
                    return 128 + interrupts.received

            plot_loss(metrics.records, directory / "loss.png")
            shown = wordiest(tokenizer.decode(validation), min(PICTURE_LENGTH, length - 1))
            _, weights = nnx.merge(graphdef, state.params)(jnp.asarray(tokenizer.encode(shown)), return_weights=True)
            plot_heads(weights, list(shown)).savefig(directory / "attention.png", dpi=130)

            recent = [record["train_loss"] for record in metrics.records if record.get("train_loss") is not None][-100:]
            metrics.say(f"\nA sample:\n\n{written}\n")
            metrics.say(f"train loss {np.mean(recent):.3f}, validation loss {loss:.3f} nats per token")
            metrics.say(f"pictures: {directory / 'loss.png'}, {directory / 'attention.png'}")
            metrics.say(f'more text: python -m train.sample {directory} --prompt "The "')
            return 0


def record(metrics: Metrics, step: int, outcome: dict, rates) -> None:
    """Note a step's metrics.

    Raises:
      DivergedError: it is the last of too many in a row that had to be skipped.
    """
    metrics.step(step, float(outcome["loss"]), float(rates[step - 1]))
    if int(outcome["skipped"]) >= MOST_SKIPPED:
        broken = [name for name, finite in flat(outcome["finite"]).items() if not finite]
        which = f"the gradient of {broken[0]}, among {len(broken)}" if broken else "the loss, though no gradient"
        raise DivergedError(
            f"step {step}: {MOST_SKIPPED} steps in a row were skipped, since {which}, was not finite; the last good "
            "checkpoint is kept: try a lower --optimizer.learning-rate"
        )


def wordiest(text: str, length: int) -> str:
    """The first stretch of `text`, among those that begin a line, with the most letters: one worth a picture.

    >>> wordiest("    x\\nwords, words\\n...", 8)
    'words, w'
    """
    starts = [0, *(index + 1 for index, character in enumerate(text) if character == "\n")]
    stretches = [text[start : start + length] for start in starts if start + length <= len(text)]
    return max(stretches, key=lambda stretch: sum(map(str.isalpha, stretch)))
