"""A run, from its configuration to its directory: steps, late metrics, validation, samples, pictures, checkpoints."""

import contextlib
import dataclasses
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from configs.schema import Config
from train import run_directory, sharding, show
from train.checkpoint import Checkpoints, flat, names, unflat
from train.data import Dataset, open_dataset
from train.errors import InputError, StoppedError
from train.evaluate import describe, evaluate
from train.interrupts import Interrupts
from train.memory import SMALLER_STEP, check_memory, in_words, keep_freed_memory, step_memory
from train.metrics import Metrics, Speed
from train.model import build_model, flops_per_token, peak_flops
from train.optimizer import build_optimizer, learning_rate
from train.plan import whole_state
from train.step import Batch, create_state, train_step
from train.tokenizer import printable

MOST_SKIPPED = 10
PROFILED = 5


def run(config: Config) -> int:
    """Train a model as `config` says, and leave it under runs/.

    Returns:
      The exit status: 0, or 128 + the signal's number if one ended the run, which has saved its state by then.

    Raises:
      InputError: what cannot be done as asked; nothing has been trained or lost by then.
      StoppedError: too many steps in a row had to be skipped, or the disk or the memory is full.
    """
    keep_freed_memory()
    sharding.connect(config.mesh)
    config = dataclasses.replace(config, quiet=config.quiet or jax.process_index() > 0)  # the first one speaks for all
    mesh = sharding.build_mesh(config)
    batch = 4 * config.data.batch_size * (config.model.context_length + 1)
    remedy = "lower --data.batch-size or --model.context-length"
    check_memory("a batch of tokens needs", batch, jax.devices()[0], remedy)
    dataset = _data(config)
    rows = len(dataset.validation[0].tokens)
    if mesh is not None and rows % mesh.shape["data"]:
        raise InputError(
            f"{rows} sequences of the validation part cannot be cut into --mesh.data {mesh.shape['data']} equal parts: "
            "give more to validate on, or another mesh"
        )
    with _directory(config, dataset) as (directory, moved), Interrupts() as interrupts:
        try:
            return Trainer(config, dataset, mesh, directory, interrupts).run(moved)
        except OSError as error:
            raise StoppedError(
                f"{directory}: cannot be written ({error.strerror or error}); what was saved is kept: make room, and "
                "go on with --resume"
            ) from error
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            what = f"out of memory ({str(error).partition(chr(10))[0]})"
            if not run_directory.has_begun(directory):
                raise InputError(f"{what}: {SMALLER_STEP}") from error
            raise StoppedError(
                f"{directory}: {what}; what was saved is kept: make room, and go on with --resume"
            ) from error


def _data(config: Config) -> Dataset:
    if config.resume:
        return run_directory.data_of(run_directory.RUNS / config.name, config, run_directory.check_same(config))
    return open_dataset(config, run_directory.check_start(config, config.start) if config.start else None)


@contextlib.contextmanager
def _directory(config: Config, dataset: Dataset) -> Iterator[tuple[Path, Path | None]]:
    """The run's directory, held; and where an earlier run went. Of several processes the first one has it, and the
    others write what they write to a folder that is thrown away."""
    if jax.process_index():
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder), None
        return
    directory = run_directory.RUNS / config.name
    with contextlib.ExitStack() as held:
        with run_directory.one_after_another():
            moved = None if config.resume else run_directory.create(config, dataset.tokenizer)
            held.enter_context(run_directory.locked(directory))
        try:
            yield directory, moved
        except InputError as error:
            if config.resume or run_directory.has_begun(directory):
                raise
            run_directory.take_back(directory, moved)
            raise InputError(f"{error}; the earlier run is {directory} again" if moved else str(error)) from error


class Trainer:
    """What stays the same through a run, and its state."""

    def __init__(self, config: Config, dataset: Dataset, mesh: Mesh | None, directory: Path, interrupts: Interrupts):
        self.config, self.dataset, self.mesh = config, dataset, mesh
        self.directory, self.interrupts = directory, interrupts
        model_rng, state_rng, self.sample_rng = jax.random.split(jax.random.key(config.seed), 3)
        optimizer = build_optimizer(config.optimizer, config.steps)
        self.rates = jax.device_get(jax.vmap(learning_rate(config.optimizer, config.steps))(jnp.arange(config.steps)))
        vocab_size = len(dataset.tokenizer)
        remedy = "lower the model's sizes, or spread it by --mesh.data N --mesh.fsdp"
        check_memory("model and optimizer need", whole_state(config, vocab_size), jax.devices()[0], remedy)
        model = build_model(config.model, vocab_size, model_rng, sharding.sharded_attention(mesh))
        average = config.optimizer.ema_decay > 0
        self.graphdef, self.state = create_state(model, optimizer, state_rng, average=average)
        self.plain = self.graphdef  # of a single device
        if mesh is not None:
            self.plain = nnx.graphdef(build_model(config.model, vocab_size, model_rng))
        self.samples = directory / "samples.txt"
        self.step_fn = partial(
            train_step, graphdef=self.graphdef, optimizer=optimizer, dtype=config.model.dtype,
            accumulate=config.data.accumulate, label_smoothing=config.loss.label_smoothing,
            z_loss=config.loss.z_loss, ema_decay=config.optimizer.ema_decay,
        )  # fmt: skip

    def start_from(self, directory: Path) -> None:
        """Take the parameters of another run's model, or of a GPT-2."""
        _, _, model = run_directory.load_start(directory)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        params = unflat(self.state.params, flat(params), directory)
        average = None if self.state.average is None else jax.tree.map(jnp.copy, params)
        self.state = self.state._replace(params=params, average=average)

    def run(self, moved: Path | None) -> int:
        """Go on from the newest checkpoint, if the run is to be resumed, to the last step."""
        with Checkpoints(self.directory / "checkpoints", partial(print, file=sys.stderr)) as checkpoints:
            saved, done, kept = self.restore(checkpoints)
            recorded, kept = (0, 0) if jax.process_index() else (done, kept)  # other processes have an empty folder
            self.samples.touch()
            if (size := self.samples.stat().st_size) < kept:
                print(f"{self.samples}: {kept - size} of {kept} bytes are missing", file=sys.stderr)
            os.truncate(self.samples, min(kept, size))
            checkpoints.check_space(self.state)
            with Metrics(self.directory / "metrics.jsonl", self.config, self.speed(), recorded) as metrics:
                self.say_what_it_is(metrics, done, moved)
                if self.config.start and not saved:
                    self.save(0, metrics, checkpoints)  # the other run may be gone when this one goes on
                status = self.train(done, metrics, checkpoints) if done < self.config.steps else 0
                if status == 0:
                    self.finish(metrics)
                return status

    def restore(self, checkpoints: Checkpoints) -> tuple[bool, int, int]:
        """Whether there was a checkpoint, steps that are done, and the length of the samples that belong to them."""
        found = None
        if self.config.resume:
            if jax.process_index():
                with Checkpoints(run_directory.RUNS / self.config.name / "checkpoints") as theirs:
                    found = theirs.newest()
            else:
                checkpoints.clean()
                found = checkpoints.newest()
                if not found:
                    run_directory.check_unsaved(self.config, self.directory)
        sharding.wait_for_all("restored")
        notes: dict[str, Any] = {"samples": 0}
        if found:
            arrays, notes = found
            if changes := run_directory.differences(notes.get("config", {}), run_directory.settled(self.config)):
                raise InputError(
                    f"{self.directory / 'config.toml'}: not what the saved steps were made with; {changes}: put it "
                    "back, or train on with another --name and --start"
                )
            if notes["data"] != self.dataset.digest:
                data = self.config.data.path or repr(self.config.data.source)
                raise InputError(
                    f"{self.directory}: the data ({data}) or {self.directory / 'tokenizer.json'} are not what the run "
                    "began with: put those back, or train on with another --name and --start"
                )
            self.state = unflat(self.state, arrays, self.directory)
        elif self.config.start:
            self.start_from(self.config.start)
        done = int(self.state.step)
        model = nnx.merge(self.graphdef, self.state.params)
        self.state = sharding.place(self.state, model, self.mesh, self.config.mesh.fsdp)
        return found is not None, done, notes["samples"]

    def speed(self) -> Speed:
        """What a step is."""
        devices = jax.devices()[:1] if self.mesh is None else list(self.mesh.devices.flat)
        peaks = [peak_flops(device) for device in devices]
        tokens = self.config.data.batch_size * self.config.model.context_length
        flops = tokens * flops_per_token(self.config.model, len(self.dataset.tokenizer))
        known = [peak for peak in peaks if peak is not None and self.config.model.dtype == "bfloat16"]
        return Speed(tokens, flops, sum(known) if len(known) == len(peaks) else None)

    def say_what_it_is(self, metrics: Metrics, done: int, moved: Path | None) -> None:
        device, count = jax.devices()[0], sum(param.size for param in jax.tree.leaves(self.state.params))
        devices = "" if self.mesh is None else f" x {self.mesh.size}"
        metrics.say(f"{device.platform} ({device.device_kind}){devices}, {count:,} parameters, {self.dataset.summary}")
        going_on = f", going on after step {done}" if self.config.resume else ""
        metrics.say(f"writing {self.directory}{going_on}" + (f"; the earlier run is now {moved}" if moved else ""))

    def compile(self, batch: Batch) -> tuple[jax.stages.Compiled, int]:
        """The step, compiled for this state and batch, and the bytes that it needs on each device.

        Raises:
          InputError: the device has fewer.
        """
        shardings = jax.tree.map(lambda array: array.sharding, self.state)
        step = jax.jit(self.step_fn, donate_argnums=0, out_shardings=(shardings, None))
        compiled = step.lower(self.state, batch).compile()
        check_memory("a step needs", needed := step_memory(compiled), jax.devices()[0])
        return compiled, needed

    def train(self, done: int, metrics: Metrics, checkpoints: Checkpoints) -> int:
        """The loop. The host waits for the device only where it evaluates or saves, and for the step before."""
        config, unfetched, profiling = self.config, None, False
        if config.profile and config.steps - done < 2 * PROFILED:
            raise InputError(f"--profile wants {2 * PROFILED} steps, and {config.steps - done} are left: leave it out")
        batch = self.batch(done + 1)
        compiled, needed = self.compile(batch)
        metrics.say(f"a step needs {in_words(needed)} of memory" + ("" if self.mesh is None else " a device"))
        if config.start and done == 0:
            self.evaluate(0, metrics)
        for step in range(done + 1, config.steps + 1):
            if config.profile and step == done + PROFILED:
                jax.profiler.start_trace(self.directory / "profile")
                profiling = True
            with jax.transfer_guard("disallow"):
                self.state, outcome = compiled(self.state, batch)
                if step < config.steps:
                    batch = self.batch(step + 1)
                if unfetched:
                    self.record(step - 1, unfetched, metrics)
            unfetched = outcome
            last = step == config.steps
            evaluate, save = step % config.eval_every == 0 or last, step % config.checkpoint_every == 0 or last
            stopped = self.stopped(save)
            if profiling and (stopped or step == done + 2 * PROFILED):
                jax.block_until_ready(outcome)
                jax.profiler.stop_trace()
                profiling = False
            if evaluate or save or stopped:
                skipped = self.record(step, unfetched, metrics)
                save = save and (last or not skipped)  # or checkpoints of a streak would take the place of good ones
                unfetched = None
            if evaluate:
                self.evaluate(step, metrics)
            if save or stopped:
                self.save(step, metrics, checkpoints)
            if stopped and not last:
                metrics.say(f"stopped after step {step}, which is saved; python -m train --resume --name {config.name}")
                return 128 + stopped
        return 0

    def batch(self, step: int) -> Batch:
        return sharding.place_batch(self.dataset.batch(step), self.mesh)

    def save(self, step: int, metrics: Metrics, checkpoints: Checkpoints) -> None:
        """Have the state on disk, and all records and samples that belong to it."""
        metrics.sync()
        notes = {
            "data": self.dataset.digest, "samples": self.samples.stat().st_size,
            "config": run_directory.settled(self.config),
        }  # fmt: skip
        checkpoints.save(step, sharding.gather(self.state, self.mesh), notes)

    def stopped(self, together: bool) -> int:
        """The number of the signal that is to end the run, or 0; processes ask each other only when `together`."""
        received = self.interrupts.received or 0
        if jax.process_count() == 1:
            return received
        return sharding.highest(received) if together else 0

    def record(self, step: int, outcome: dict, metrics: Metrics) -> int:
        """Note a step's metrics.

        Returns:
          How many steps in a row have been skipped by now.

        Raises:
          StoppedError: it is the last of too many in a row that had to be skipped.
        """
        outcome = jax.device_get(outcome)
        metrics.step(step, float(outcome["loss"]), float(self.rates[step - 1]))
        if outcome["skipped"] >= MOST_SKIPPED:
            gradients = zip(names(self.state.params), outcome["finite"], strict=True)
            broken = [name for name, finite in gradients if not finite]
            which = f"the gradient of {broken[0]}, among {len(broken)}" if broken else "the loss, though no gradient"
            raise StoppedError(
                f"step {step}: {MOST_SKIPPED} steps in a row were skipped, since {which}, was not finite; what was "
                "saved before them is kept: try a lower --optimizer.learning-rate"
            )
        return int(outcome["skipped"])

    def evaluate(self, step: int, metrics: Metrics) -> None:
        """Validation, a sample of what the model writes, and a picture of its attention."""
        batches = [sharding.place_batch(batch, self.mesh) for batch in self.dataset.validation]
        options = {"graphdef": self.graphdef, "dtype": self.config.model.dtype}
        metrics.validation(step, evaluate(self.state.best, batches, self.dataset.answers, **options))
        model = nnx.merge(self.plain, sharding.gather(self.state.best, self.mesh))
        sample = show.sample(model, self.dataset, jax.random.fold_in(self.sample_rng, step))
        with self.samples.open("a", encoding="utf-8") as file:
            file.write(f"--- step {step} ---\n{sample}\n\n")
        show.plot_attention(model, self.dataset, self.directory / "attention" / f"{step:06d}.png")

    def finish(self, metrics: Metrics) -> None:
        """Say what became of the run."""
        show.plot_loss(metrics.records, self.directory / "loss.png")
        train = [record["train_loss"] for record in metrics.records if record.get("train_loss") is not None][-100:]
        validations = [record for record in metrics.records if "validation_loss" in record]
        samples = self.samples.read_text(encoding="utf-8").split(f"--- step {self.config.steps} ---\n")
        metrics.say(f"\nA sample:\n\n{printable(samples[-1].rstrip())}\n")
        if validations and validations[0]["step"] == 0:
            metrics.say(f"at the start: {describe(validations[0])}")
        if train and validations:
            metrics.say(f"train loss {np.mean(train):.3f}, {describe(validations[-1])}")
        metrics.say(f"pictures: {self.directory / 'loss.png'}, {self.directory / 'attention'}")
        shown = self.dataset.shown[0][0]
        prompts = [shown] if self.dataset.answers else shown.split()[:1]  # of characters that the model knows
        prompts = [prompt for prompt in prompts if printable(prompt) == prompt]  # a terminal obeys others
        options = [shlex.quote(f"--prompt={prompt}") for prompt in prompts]  # which may begin with a dash
        metrics.say(" ".join(["more text: python -m train.sample", str(self.directory), *options]))
