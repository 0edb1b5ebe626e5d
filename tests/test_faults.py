"""What goes wrong around a run is one line that says what to do, and loses nothing that was saved."""

import contextlib
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import jax
import pytest

from tests.test_resume import TINY, outcome
from train import loop, sharding
from train.__main__ import main
from train.checkpoint import Checkpoints
from train.errors import InputError, StoppedError
from train.metrics import Metrics


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@contextlib.contextmanager
def no_file_may_grow_beyond(size):
    """The kernel refuses to write more, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
@pytest.mark.parametrize("place, method, limit", [
    pytest.param(Checkpoints, "save", 100, id="checkpoint"),
    pytest.param(  # room for all but them; Orbax then leaves the failures of most of them unlooked at
        Checkpoints, "save", 20_000, id="arrays",
        marks=pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    ),
    pytest.param(Metrics, "record", 100, id="metrics"),
])  # fmt: skip
def test_a_disk_that_fills_up_stops_the_run_and_loses_nothing(place, method, limit, monkeypatch):
    main(["text", *TINY, "--steps", "30", "--name", "whole"])
    write, calls = getattr(place, method), []

    def full(*arguments, **options):
        calls.append(1)
        if len(calls) < (3 if place is Checkpoints else 15):
            return write(*arguments, **options)
        with no_file_may_grow_beyond(limit):
            return write(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(place, method, full)
        with pytest.raises(
            StoppedError, match=r"runs/full: cannot be written \([A-Z][a-z ]+\); what was saved is kept: make room, and"
        ):
            main(["text", *TINY, "--steps", "30", "--name", "full"])
    with Checkpoints(Path("runs/full/checkpoints")) as checkpoints:
        assert checkpoints.newest()[0]["step"] == 12
    main(["text", "--resume", "--name", "full", "--quiet"])
    assert outcome("full") == outcome("whole")


@pytest.mark.slow
def test_a_full_disk_is_refused_before_the_first_step(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(InputError, match=r"4 checkpoints want [0-9]+ KiB, and the disk has 1 KiB left: make room"):
        main(["text", *TINY, "--name", "full"])
    assert not Path("runs/full").exists()


def test_a_directory_that_cannot_be_made_is_refused():
    with pytest.raises(
        InputError, match=r"runs/n+: cannot be written \(File name too long\); choose another with --name"
    ):
        main(["text", *TINY, "--name", "n" * 256])
    Path("runs").rmdir()
    Path("runs").write_text("")
    with pytest.raises(InputError, match="runs is no directory, and should be that of all runs: move it away"):
        main(["text", *TINY])


@pytest.mark.slow
def test_a_step_too_large_for_the_memory_is_refused_before_it_runs():
    sizes = "--model.num-layers 1 --model.embed-dim 128 --model.context-length 64 --data.batch-size 2000000 --quiet"
    with pytest.raises(
        InputError, match=r"a step needs [0-9,]+\.\d GiB of memory, and there are .*: raise --data.accumulate"
    ):
        main(["text", *sizes.split(), "--name", "large"])


def test_memory_that_runs_out_names_what_makes_a_step_smaller(monkeypatch):
    def compile_(self, batch):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes\nmore")

    monkeypatch.setattr(loop.Trainer, "compile", compile_)
    with pytest.raises(InputError, match=r"out of memory \(RESOURCE_EXHAUSTED: .* 5 bytes\): raise .*--model.remat"):
        main(["text", *TINY])


@pytest.mark.slow
def test_memory_that_runs_out_later_loses_nothing(monkeypatch):
    evaluate = loop.Trainer.evaluate

    def evaluate_at_first(self, step, metrics):
        if step:
            raise MemoryError("5 bytes")
        evaluate(self, step, metrics)

    monkeypatch.setattr(loop.Trainer, "evaluate", evaluate_at_first)
    with pytest.raises(
        StoppedError, match=r"runs.text: out of memory \(5 bytes\); what was saved is kept: .* --resume"
    ):
        main(["text", *TINY])


def test_nothing_is_transferred_in_silence(monkeypatch):
    """A batch that is not put on the device before the step is an error: the loop's guard is on."""
    monkeypatch.setattr(sharding, "place_batch", lambda batch, mesh: batch)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        main(["text", *TINY, "--steps", "3"])


@pytest.mark.slow
def test_a_profile_is_written():
    main(["text", *TINY, "--steps", "10", "--profile"])
    assert list(Path("runs/text/profile").rglob("*.xplane.pb"))
    with pytest.raises(InputError, match="--profile wants 10 steps, and 9 are left: leave it out"):
        main(["text", *TINY, "--steps", "9", "--profile"])
