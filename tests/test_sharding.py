"""The work spread over devices gives what one device gives; so do two processes."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from attention_jax import attention, causal
from configs import schema, text
from train import sharding
from train.__main__ import main
from train.errors import InputError
from train.model import build_model
from train.optimizer import build_optimizer
from train.step import Batch, create_state, train_step

ROOT = Path(__file__).parents[1]
SIZES = {"num_layers": 2, "num_heads": 4, "embed_dim": 32, "context_length": 16}
MESHES = [
    schema.Mesh(data=8), schema.Mesh(data=2, model=4), schema.Mesh(model=2), schema.Mesh(data=4, fsdp=True),
    schema.Mesh(data=2, model=2, fsdp=True), schema.Mesh(data=0, model=4),
]  # fmt: skip
needs_devices = pytest.mark.skipif(jax.device_count() < 8, reason="wants 8 devices, such as simulated ones on a CPU")


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def trained(mesh_config, optimizer, steps=3, **model):
    """The losses of some steps, the parameters after them, and the state where it lies."""
    config = dataclasses.replace(
        text, mesh=mesh_config, data=schema.Data(batch_size=16, accumulate=2), model=schema.Model(**SIZES, **model)
    )
    mesh = sharding.build_mesh(config)
    built = build_model(config.model, 16, jax.random.key(0), sharding.sharded_attention(mesh))
    graphdef, state = create_state(built, optimizer, jax.random.key(1), average=True)
    state = sharding.place(state, built, mesh, mesh_config.fsdp)
    shardings = jax.tree.map(lambda array: array.sharding, state)
    options = {"graphdef": graphdef, "optimizer": optimizer, "accumulate": 2, "ema_decay": 0.5}
    step = jax.jit(partial(train_step, **options), donate_argnums=0, out_shardings=(shardings, None))
    losses = []
    for seed in range(steps):
        tokens = np.random.default_rng(seed).integers(0, 16, (16, 17)).astype(np.int32)
        state, metrics = step(state, sharding.place_batch(Batch(tokens), mesh))
        losses.append(float(metrics["loss"]))
    return losses, sharding.gather((state.params, state.average), mesh), state


@pytest.mark.slow
@needs_devices
@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: f"{mesh.data}x{mesh.model}{'f' * mesh.fsdp}")
def test_a_mesh_trains_as_one_device_does(mesh):
    losses, params, _ = trained(schema.Mesh(), optax.sgd(0.5))
    spread, others, state = trained(mesh, optax.sgd(0.5))
    np.testing.assert_allclose(spread, losses, rtol=2e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-6), others, params)
    assert {leaf.sharding.mesh.size for leaf in jax.tree.leaves(state.params)} == {mesh.model * (mesh.data or 2)}


@needs_devices
@pytest.mark.slow
def test_what_is_cut_is_smaller_on_each_device():
    def held(mesh, **model):
        _, _, state = trained(mesh, build_optimizer(schema.Optimizer(), 10), steps=1, **model)
        leaves = jax.tree.leaves((state.params, state.opt_state, state.average))
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)

    whole = held(schema.Mesh())
    assert held(schema.Mesh(data=8)) == whole
    assert held(schema.Mesh(data=8, fsdp=True)) < 0.15 * whole
    assert held(schema.Mesh(model=4)) < 0.35 * whole
    assert held(schema.Mesh(data=2, model=4, fsdp=True), scan=True) < 0.2 * whole


@pytest.mark.slow
@needs_devices
def test_each_device_attends_for_its_own_examples_and_heads():
    config = dataclasses.replace(text, mesh=schema.Mesh(data=2, model=4), data=schema.Data(batch_size=4))
    mesh = sharding.build_mesh(config)
    query, key, value = jax.random.normal(jax.random.key(0), (3, 4, 9, 4, 5))
    place = partial(jax.device_put, device=jax.NamedSharding(mesh, P("data", None, "model")))
    spread = jax.jit(partial(sharding.sharded_attention(mesh), mask=causal()))
    output = spread(*map(place, (query, key, value)))
    np.testing.assert_allclose(output, attention(query, key, value, mask=causal()), atol=1e-6)
    assert output.sharding.spec[0] == "data" and output.sharding.spec[2] == "model"
    hlo = spread.lower(*map(place, (query, key, value))).compile().as_text()
    assert not any(word in hlo for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))

    dropped = jax.jit(partial(sharding.sharded_attention(mesh), dropout_rate=0.5))
    same = jnp.broadcast_to(query[:1, :, :1], query.shape)
    output = np.asarray(dropped(same, same, same, dropout_rng=jax.random.key(3)))
    patterns = {output[b, :, n].tobytes() for b in range(4) for n in range(4)}
    assert len(patterns) == 16  # no two heads or examples drop the same


@needs_devices
@pytest.mark.parametrize("mesh, message", [
    ("--mesh.data 9", "want 9 devices; here: 8"),
    ("--mesh.data 3", r"--data.batch-size / --data.accumulate = 16 cannot be cut into 3 equal parts"),
    ("--mesh.model 8", r"--model.num-heads = 4 cannot be cut into 8 equal parts"),
])  # fmt: skip
def test_what_cannot_be_spread_is_refused(mesh, message):
    with pytest.raises(InputError, match=message):
        main(["text", "--data.batch-size", "16", *mesh.split()])
    assert not Path("runs").exists()


@needs_devices
def test_too_little_to_validate_on_is_refused_before_anything_is_trained():
    Path("short.txt").write_text("abcdefgh " * 300)
    with pytest.raises(InputError, match=r"3 sequences of the validation part cannot be cut into --mesh.data 4 equal"):
        main(["text", "--data.path", "short.txt", "--mesh.data", "4", "--data.validation-fraction", "0.15"])


RUN = (
    "--steps 12 --eval-every 6 --checkpoint-every 4 --data.batch-size 4 --data.validation-fraction 0.02 "
    "--model.num-layers 1 --model.num-heads 2 --model.embed-dim 16 --model.context-length 16 --quiet"
)


def records(name):
    return [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]


def assert_same_records(name, other):
    assert len(records(name)) == len(records(other)) == 14
    for one, two in zip(records(name), records(other), strict=True):
        assert one.keys() == two.keys() and [*one.values()] == pytest.approx([*two.values()], rel=1e-4)


@needs_devices
@pytest.mark.slow
def test_a_run_on_a_mesh_can_go_on_on_another():
    main(["text", *RUN.split(), "--name", "one"])
    main(["text", *RUN.split(), "--name", "mesh", "--mesh.data", "4", "--mesh.model", "2", "--mesh.fsdp"])
    assert_same_records("mesh", "one")
    for path in Path("runs/mesh/checkpoints").glob("12*"):
        path.rename(path.with_name(f"gone{path.suffix}")) if path.suffix else shutil.rmtree(path)
    Path("runs/mesh/checkpoints/gone.json").unlink()
    main(["text", "--resume", "--name", "mesh", "--mesh.data", "2", "--quiet"])
    assert_same_records("mesh", "one")


@pytest.mark.slow
def test_two_processes_train_as_one_does():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-m", "train", "text", *RUN.split(), "--mesh.data", "2", "--mesh.model", "2"]
    command += ["--mesh.coordinator", address, "--mesh.processes", "2", "--name", "two"]

    for arguments in (command, [*command, "--resume"]):
        processes = [
            subprocess.Popen(
                [*arguments, "--mesh.process", str(number)], env=environment, stderr=subprocess.PIPE, text=True
            )
            for number in range(2)
        ]
        try:
            for process in processes:
                error = process.communicate(timeout=200)[1]
                assert process.returncode == 0, error
                assert "missing" not in error  # of what the first process has alone
        finally:
            for process in processes:
                process.kill()
    main(["text", *RUN.split(), "--name", "one"])
    assert_same_records("two", "one")
    assert [path.name for path in Path("runs").iterdir() if path.name != "one"] == ["two"]
