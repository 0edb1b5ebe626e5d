"""The state of a run on disk, through Orbax, with a hash of its content: what is not whole is never loaded."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from train.errors import InputError
from train.memory import in_words

KEPT = 3


class Checkpoints:
    """The newest checkpoints of a run, each a folder of Orbax's and beside it a manifest `STEP.json`.

    The manifest is written last, and holds the SHA-256 of the folder's files, of which Orbax checks none, and that of
    the arrays in them. A folder without one is a save that never came to its end. A context manager.

    Args:
      directory: where they are; made if it is not there.
      warn: called with a line about each checkpoint that had to be passed over.
    """

    def __init__(self, directory: Path, warn: Callable[[str], None] = lambda line: None):
        self.directory, self.warn = directory.resolve(), warn
        policy = ocp.checkpoint_managers.LatestN(KEPT)
        process = jax.process_index()  # each has a directory of its own, and waits for no other
        alone = ocp.options.MultiprocessingOptions(
            primary_host=process, active_processes={process}, barrier_sync_key_prefix=str(process)
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, enable_async_checkpointing=False, multiprocessing_options=alone, create=False
        )
        self.directory.mkdir(parents=True, exist_ok=True)
        self.manager = ocp.CheckpointManager(
            self.directory, options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.manager.close()

    def clean(self) -> None:
        """Remove what a save left that never came to its end; for the process that holds the run's directory."""
        for path in [*self.directory.glob("*.orbax-checkpoint-tmp*"), *self.directory.glob("*.json.tmp")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def check_space(self, state: Any) -> None:
        """Refuse to begin what there is no room to save.

        Raises:
          InputError: it says how much room there is, and how much is wanted.
        """
        missing = max(KEPT + 1 - len(self.manager.all_steps()), 1)
        wanted = missing * sum(leaf.nbytes for leaf in jax.tree.leaves(jax.tree.map(_data, state)))
        free = shutil.disk_usage(self.directory).free
        if free < wanted:
            raise InputError(
                f"{self.directory}: {missing} checkpoints want {in_words(wanted)}, and the disk has {in_words(free)} "
                "left: make room, or run elsewhere"
            )

    def save(self, step: int, state: Any, notes: dict[str, Any]) -> None:
        """Write the state of a step; it is on disk, hash and all, when this returns.

        Args:
          state: a tree of arrays and random keys.
          notes: JSON that belongs to it.
        """
        arrays = flat(state)
        if shutil.disk_usage(self.directory).free < sum(array.nbytes for array in arrays.values()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # which Orbax would say in a hundred lines
        if step in self.manager.all_steps():  # not whole, or the run would have gone on from it
            self._manifest(step).unlink(missing_ok=True)
            self.manager.delete(step)
        try:
            self.manager.save(step, args=ocp.args.StandardSave(arrays), force=True)
            self.manager.wait_until_finished()
        except ValueError as error:
            said = re.search(r"os_error_code='(\d+)'", str(error))  # by the system, to TensorStore
            if not said:
                raise
            raise OSError(int(said[1]), os.strerror(int(said[1]))) from error
        hashes = {
            "files": digest_files(self.directory / str(step)),
            "arrays": digest(arrays),
            "notes": digest_notes(step, notes),
        }
        manifest = {"step": step, "sha256": hashes, "notes": notes}
        unfinished = self.directory / f"{step}.json.tmp"
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(manifest, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(self._manifest(step))
        for path in self.directory.glob("*.json"):
            if path.stem.isdigit() and int(path.stem) not in self.manager.all_steps():
                path.unlink()

    def newest(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The arrays and notes of the newest checkpoint that is whole; None if nothing was ever saved.

        Raises:
          InputError: something was, and none of it is whole.
        """
        manifests = {int(path.stem) for path in self.directory.glob("*.json") if path.stem.isdigit()}
        for step in sorted(manifests.union(self.manager.all_steps()), reverse=True):
            try:
                manifest = json.loads(self._manifest(step).read_text(encoding="utf-8"))
                hashes = manifest["sha256"]
                found = digest_files(self.directory / str(step)), digest_notes(manifest["step"], manifest["notes"])
                if found == (hashes["files"], hashes["notes"]):
                    arrays = self.manager.restore(step, args=ocp.args.StandardRestore())
                    arrays = {name: np.asarray(array) for name, array in arrays.items()}
                    if hashes["arrays"] == digest(arrays):
                        return arrays, manifest["notes"]
                reason = "its content is not what its manifest says"
            except (OSError, ValueError, KeyError, TypeError) as error:
                reason = f"its manifest: {error}"
            self.warn(f"the checkpoint of step {step} is not whole, and is passed over: {reason}")
        # a lone folder without a manifest is a first save that never came to its end
        if len(self.manager.all_steps()) > 1 or any(self.directory.glob("*.json")):
            raise InputError(f"{self.directory}: no checkpoint here is whole any more; begin anew with another --name")
        return None

    def _manifest(self, step: int) -> Path:
        return self.directory / f"{step}.json"


def flat(state: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree by their paths, random keys as their data."""
    return {name: np.asarray(_data(leaf)) for name, leaf in zip(names(state), jax.tree.leaves(state), strict=True)}


def names(tree: Any) -> list[str]:
    """What the leaves of a tree are called.

    >>> names({"layer": {"kernel": 1, "bias": 2}})
    ['layer.bias', 'layer.kernel']
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]


def unflat(like: Any, arrays: dict[str, np.ndarray], source: Path) -> Any:
    """The tree that `flat` took apart, which has to be as `like`; `arrays` may hold more.

    Raises:
      InputError: an array is missing, or has another shape or dtype than that of `like`.
    """
    leaves, tree = jax.tree.flatten(like)
    expected = dict(zip(names(like), map(_data, leaves), strict=True))
    for name, wanted in expected.items():
        given = arrays.get(name)
        if given is None or given.shape != wanted.shape or given.dtype != wanted.dtype:
            saved = "nothing" if given is None else f"{given.dtype}{list(given.shape)}"
            raise InputError(
                f"{source}: not the model of config.toml and tokenizer.json, which wants "
                f"{name} {wanted.dtype}{list(wanted.shape)}; saved is {saved}"
            )

    new = (jax.numpy.asarray(arrays[name]) for name in expected)
    return jax.tree.unflatten(
        tree, [jax.random.wrap_key_data(x) if _is_key(old) else x for x, old in zip(new, leaves, strict=True)]
    )


def digest(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of the arrays' names, dtypes, shapes and bytes."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def digest_notes(step: int, notes: dict[str, Any]) -> str:
    """SHA-256 of what a manifest says besides."""
    return hashlib.sha256(json.dumps([step, notes], sort_keys=True).encode()).hexdigest()


def digest_files(directory: Path) -> str:
    """SHA-256 of all files' paths and bytes."""
    sha = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        sha.update(f"{path.relative_to(directory)} {path.stat().st_size}\n".encode())
        sha.update(path.read_bytes())
    return sha.hexdigest()


def _data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Any) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
