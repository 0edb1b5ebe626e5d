"""Killed, stopped or damaged, a run goes on to the same bits, and says so where it cannot."""

import dataclasses
import errno
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import PRESETS, schema
from train import loop, run_directory
from train.__main__ import main
from train.checkpoint import Checkpoints, digest, flat, unflat
from train.errors import InputError, StoppedError
from train.step import TrainState
from train.tokenizer import CharTokenizer

ROOT = Path(__file__).parents[1]
TINY = [
    "--eval-every",
    "20",
    "--checkpoint-every",
    "6",
    "--data.batch-size",
    "4",
    "--data.validation-fraction",
    "0.02",
    "--model.num-layers",
    "1",
    "--model.num-heads",
    "2",
    "--model.embed-dim",
    "16",
    "--model.context-length",
    "16",
    "--model.dropout-rate",
    "0.1",
    "--optimizer.ema-decay",
    "0.9",
    "--quiet",
]


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def start(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(Path("cache").resolve())}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "train", "text", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def steps_of(name):
    path = Path(f"runs/{name}/metrics.jsonl")
    return path.read_text().count("train_loss") if path.exists() else 0


def wait_for(process, name, steps):
    while process.poll() is None and steps_of(name) < steps:
        time.sleep(0.01)


def outcome(name):
    """Everything that has to be the same, to the last bit."""
    directory = Path(f"runs/{name}")
    newest = max(directory.glob("checkpoints/*.json"), key=lambda path: int(path.stem))
    state = json.loads(newest.read_text())
    return (
        state["step"],
        state["sha256"]["arrays"],
        (directory / "metrics.jsonl").read_bytes(),
        (directory / "samples.txt").read_bytes(),
    )


@pytest.mark.slow
def test_killed_runs_end_in_the_same_bits():
    main(["text", *TINY, "--steps", "60", "--name", "whole"])
    choose = random.Random(0)
    for kill in range(3):
        process = start(*(["--resume"] if kill else [*TINY, "--steps", "60"]), "--name", "killed", "--quiet")
        wait_for(process, "killed", 12 * kill + choose.randrange(2, 12))
        time.sleep(choose.random() / 20)
        process.kill()
        process.communicate()
    assert 0 < steps_of("killed") < 60
    main(["text", "--resume", "--name", "killed"])
    assert outcome("killed") == outcome("whole")


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_so(number, status):
    long = ["--steps", "400", "--eval-every", "400", "--checkpoint-every", "200"]
    main(["text", *TINY, *long, "--name", "whole"])
    process = start(*TINY[:-1], *long, "--name", "stopped")
    wait_for(process, "stopped", 10)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == status and err == ""
    step = int(out.split("stopped after step ")[1].split(",")[0])
    assert (Path("runs/stopped/checkpoints") / f"{step}.json").exists()
    main(["text", "--resume", "--name", "stopped", "--quiet"])
    assert outcome("stopped") == outcome("whole")


def state_of(number):
    params = {"kernel": jnp.arange(600.0).reshape(20, 30) + number, "bias": jnp.ones(7, jnp.bfloat16)}
    return TrainState(
        jnp.int32(number), params, optax.adam(1e-3).init(params), jax.random.key(number), jnp.int32(0)
    )  # fmt: skip


@pytest.mark.slow
def test_state_comes_back_as_it_was():
    with Checkpoints(Path("here")) as checkpoints:
        for step in range(5):
            checkpoints.save(step, state_of(step), {"note": step})
    warnings = []
    with Checkpoints(Path("here"), warnings.append) as checkpoints:
        arrays, notes = checkpoints.newest()
    assert notes == {"note": 4} and warnings == []
    state = unflat(state_of(0), arrays, Path("here"))
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(state_of(4)), strict=True):
        assert one.dtype == other.dtype and (one == other).all()
    assert sorted(int(path.stem) for path in Path("here").glob("*.json")) == [2, 3, 4]


def test_what_a_manifest_says_is_hashed_too():
    with Checkpoints(Path("here")) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step), {"samples": 100 * step})
    whole = Path("here/2.json").read_text()
    for right, wrong in (('"samples": 200', '"samples": 300'), ('"samples"', '"simples"'), ('"step": 2', '"step": 1')):
        assert right in whole
        Path("here/2.json").write_text(whole.replace(right, wrong))
        warnings = []
        with Checkpoints(Path("here"), warnings.append) as checkpoints:
            assert checkpoints.newest()[1] == {"samples": 100} and len(warnings) == 1
    Path("here/1.json").write_text("{}")
    with (
        Checkpoints(Path("here")) as checkpoints,
        pytest.raises(InputError, match="no checkpoint here is whole any more"),
    ):
        checkpoints.newest()


def test_what_a_killed_save_left_is_cleaned():
    with Checkpoints(Path("here")) as checkpoints:
        checkpoints.save(1, state_of(1), {})
    Path("here/7.orbax-checkpoint-tmp").mkdir()
    Path("here/7.json.tmp").write_text("{")
    shutil.copytree("here/1", "here/9")  # whole, but for its manifest
    warnings = []
    with Checkpoints(Path("here"), warnings.append) as checkpoints:
        checkpoints.clean()
        arrays, _ = checkpoints.newest()
        assert arrays["step"] == 1 and len(warnings) == 1 and "step 9 is not whole" in warnings[0]
        checkpoints.save(9, state_of(9), {})
        assert checkpoints.newest()[0]["step"] == 9
    assert not list(Path("here").glob("*tmp*"))


def test_every_damaged_file_is_found(tmp_path):
    """A byte changed, a file cut short, a file gone: what is loaded is what was saved, then or before."""
    with Checkpoints(Path("good")) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step), {})
    known = {digest(flat(state_of(step))): step for step in (1, 2)}
    files = [path for path in [*Path("good/2").rglob("*"), Path("good/2.json")] if path.is_file()]
    fallen_back = 0
    for file in files:
        for damage in ("flip", "cut", "remove"):
            shutil.rmtree("bad", ignore_errors=True)
            shutil.copytree("good", "bad")
            target = Path("bad") / file.relative_to("good")
            content = bytearray(target.read_bytes())
            if damage == "remove":
                target.unlink()
            elif damage == "cut":
                target.write_bytes(content[: len(content) // 2])
            elif content:
                content[len(content) // 2] ^= 1
                target.write_bytes(content)
            warnings = []
            with Checkpoints(Path("bad"), warnings.append) as checkpoints:
                arrays, _ = checkpoints.newest()
            step = known[digest(arrays)]
            assert (step == 1) == (len(warnings) == 1), (file, damage)
            fallen_back += step == 1
    assert fallen_back > len(files)


def test_two_runs_cannot_share_a_directory():
    directory = Path("runs/mine")
    with run_directory.locked(directory):
        code = f"from train import run_directory; from pathlib import Path; run_directory.locked(Path({str(directory)!r})).__enter__()"
        other = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
    assert other.returncode == 1 and "runs/mine: another training run is writing here" in other.stderr
    with run_directory.locked(directory):
        pass


def test_a_folder_without_locks_is_written_to_with_a_warning(monkeypatch, capsys):
    def no_locks(file, operation):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(run_directory.fcntl, "flock", no_locks)
    with run_directory.locked(Path("runs/drive")):
        assert Path("runs/drive/lock").exists()
    assert "runs/drive cannot be locked (Operation not supported): begin no second run" in capsys.readouterr().err


@pytest.mark.slow
def test_what_cannot_go_on_is_refused():
    with pytest.raises(InputError, match="runs/none: no training run is here"):
        main(["text", "--resume", "--name", "none"])
    Path("one.txt").write_text("abcdefgh " * 500)
    main(["text", *TINY, "--steps", "3", "--name", "one", "--data.path", "one.txt"])
    with pytest.raises(InputError, match=r"same run only; seed was 0, is 3, model\.embed_dim was 16, is 32"):
        main(["text", "--resume", "--name", "one", "--seed", "3", "--model.embed-dim", "32"])
    config = Path("runs/one/config.toml")
    begun = config.read_text()
    config.write_text(begun.replace("steps = 3", "steps = 9"))
    with pytest.raises(
        InputError, match=r"one/config.toml: not what .* were made with; steps was 3, is 9: put it back"
    ):
        main(["--resume", "--name", "one"])
    config.write_text(begun)
    Path("one.txt").rename("moved.txt")
    with pytest.raises(InputError, match=r"^runs/one/config.toml: --data.path one.txt: cannot be read"):
        main(["--resume", "--name", "one"])
    config.write_text(begun.replace("one.txt", "moved.txt"))
    main(["--resume", "--name", "one"])
    config.write_text(begun)
    Path("one.txt").write_text("bacdefgh " * 500)
    with pytest.raises(InputError, match=r"the data \(one.txt\) or runs/one/tokenizer.json are not what the run began"):
        main(["text", "--resume", "--name", "one"])
    Path("one.txt").write_text("abcdefghi " * 500)
    with pytest.raises(InputError, match="the text holds 'i', which the model does not know; it knows ' abcdefgh'"):
        main(["text", "--resume", "--name", "one"])


def test_a_state_of_another_model_is_refused():
    arrays = flat(state_of(1))
    other = state_of(1)._replace(
        params={"kernel": jnp.zeros((20, 30), jnp.bfloat16), "bias": jnp.ones(7, jnp.bfloat16)}
    )
    with pytest.raises(InputError, match=r"wants params.kernel bfloat16\[20, 30\]; saved is float32\[20, 30\]"):
        unflat(other, arrays, Path("here"))
    assert np.isfinite(arrays["params.kernel"]).all()


@pytest.mark.slow
def test_a_run_that_diverges_stops_and_keeps_its_last_good_state():
    """Learning rates that make the loss overflow: steps are skipped, then the run ends, naming what was not finite."""
    huge = ["--optimizer.learning-rate", "1e30", "--optimizer.warmup-steps", "0", "--optimizer.weight-decay", "0"]
    with pytest.raises(StoppedError, match=r"10 steps in a row were skipped, since the gradient of [a-z0-9_.]+, among"):
        main(["text", *TINY, "--steps", "60", "--name", "lost", "--checkpoint-every", "1", *huge])
    with Checkpoints(Path("runs/lost/checkpoints")) as checkpoints:
        arrays, _ = checkpoints.newest()
    assert arrays["skipped"] == 0 and all(np.isfinite(array.astype(np.float32)).all() for array in arrays.values())


@pytest.mark.slow
def test_a_run_that_was_moved_aside_goes_on():
    main(["text", *TINY, "--steps", "12", "--name", "whole"])
    main(["text", *TINY, "--steps", "12", "--name", "again", "--checkpoint-every", "5"])
    Path("runs/again/checkpoints/12.json").unlink()
    Path("runs/again").rename("runs/again.1")
    main(["--resume", "--name", "again.1", "--quiet"])
    assert outcome("again.1") == outcome("whole")


@pytest.mark.slow
def test_manifests_and_records_that_are_lost_are_missed(capsys):
    main(["text", *TINY, "--steps", "12", "--name", "lost"])
    whole = Path("runs/lost/metrics.jsonl").read_text()
    Path("runs/lost/metrics.jsonl").write_text("".join(whole.splitlines(keepends=True)[3:]))
    samples = Path("runs/lost/samples.txt")
    os.truncate(samples, samples.stat().st_size - 5)
    main(["--resume", "--name", "lost"])
    said = capsys.readouterr().err
    assert "3 of 12 steps are missing, from step 1 on" in said
    assert re.search(r"^runs/lost/samples.txt: 5 of \d+ bytes are missing$", said, re.MULTILINE)
    Path("runs/lost/metrics.jsonl").write_text(whole)
    for manifest in Path("runs/lost/checkpoints").glob("*.json"):
        manifest.unlink()
    with pytest.raises(InputError, match="no checkpoint here is whole any more"):
        main(["--resume", "--name", "lost"])
    assert Path("runs/lost/metrics.jsonl").read_text() == whole


@pytest.mark.slow
def test_checkpoints_that_are_gone_are_missed(capsys):
    main(["text", *TINY, "--steps", "12", "--name", "gone"])
    folder, records = Path("runs/gone/checkpoints"), Path("runs/gone/metrics.jsonl").read_bytes()
    shutil.rmtree(folder / "12")
    main(["--resume", "--name", "gone"])
    assert "the checkpoint of step 12 is not whole, and is passed over" in capsys.readouterr().err
    assert Path("runs/gone/metrics.jsonl").read_bytes() == records
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="12 steps are recorded, and no checkpoint is here: put back what was in runs"):
        main(["--resume", "--name", "gone"])
    assert Path("runs/gone/metrics.jsonl").read_bytes() == records


def test_fields_that_an_earlier_version_did_not_have_are_not_compared():
    now = run_directory.settled(PRESETS["text"])
    assert run_directory.differences({}, now) == ""
    assert run_directory.differences({"seed": "7"}, now) == "seed was 7, is 0"


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_a_command_is_imported_ends_it_at_once(number, status):
    send = f"import os, sys; sys.argv[0] = '-m'; import train; os.kill(os.getpid(), {int(number)}); print('goes on')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", send], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "", "\ninterrupted\n")


@pytest.mark.slow
def test_what_a_run_started_from_is_kept_until_it_is_saved_anew(monkeypatch):
    main(["text", *TINY, "--steps", "6", "--name", "base"])
    started = ["text", *TINY, "--steps", "6", "--name", "tuned", "--start", "runs/base"]
    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(started)
    shutil.rmtree("runs/base")
    with monkeypatch.context() as patched:
        patched.setattr("train.checkpoint.ocp.CheckpointManager.save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(["--resume", "--name", "tuned", "--quiet"])
    main(["--resume", "--name", "tuned", "--quiet"])
    assert steps_of("tuned") == 6


def interrupted(*arguments, **options):
    raise KeyboardInterrupt


def begin(barrier, seed, results):
    save = schema.save

    def slowly(config, path):
        save(config, path)
        time.sleep(0.1)

    run_directory.schema.save = slowly
    for number in range(5):
        config = dataclasses.replace(PRESETS["text"], name=f"race{number}", seed=seed)
        barrier.wait()
        try:
            with loop._directory(config, SimpleNamespace(tokenizer=CharTokenizer("ab"))) as (directory, _):
                results.put("ours" if schema.load(directory / "config.toml").seed == seed else "another's")
                barrier.wait()
        except InputError:
            results.put("refused")
            barrier.wait()


@pytest.mark.slow
def test_of_two_runs_that_begin_at_once_one_is_refused():
    processes = multiprocessing.get_context("spawn")
    barrier, results = processes.Barrier(2), processes.Queue()
    runs = [processes.Process(target=begin, args=(barrier, seed, results), daemon=True) for seed in range(2)]
    for run in runs:
        run.start()
    for _ in range(5):
        assert sorted(results.get(timeout=60) for _ in runs) == ["ours", "refused"]
    for run in runs:
        run.join()
