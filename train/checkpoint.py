"""Parameters on disk, through Orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from train.errors import InputError


def save(directory: Path, step: int, params: dict[str, Any]) -> None:
    """Write the parameters of a step, whole or not at all; returns when they are on disk."""
    with ocp.CheckpointManager(directory.resolve()) as manager:
        manager.save(step, args=ocp.args.StandardSave(params))
        manager.wait_until_finished()


def load(directory: Path, params: dict[str, Any]) -> dict[str, Any]:
    """The newest parameters in `directory`, which must have the names, shapes and dtypes of `params`.

    Raises:
      InputError: there are none, or they are another model's.
    """
    with ocp.CheckpointManager(directory.resolve(), item_handlers=ocp.StandardCheckpointHandler()) as manager:
        step = manager.latest_step()
        if step is None:
            raise InputError(f"{directory}: no checkpoint here; the run stopped before its first save")
        saved, wanted = _shapes(manager.item_metadata(step)), _shapes(params)
        if saved != wanted:
            name, shape = next(iter(dict(wanted.items() - saved.items()).items()), ("another leaf", ()))
            raise InputError(
                f"{directory}: not the model of config.toml and tokenizer.json, which wants {name} {shape}, "
                f"saved is {saved.get(name, 'none')}"
            )
        return manager.restore(step, args=ocp.args.StandardRestore(params))


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    """Shapes by path; a list's index comes back from disk as text."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(str(entry.key) for entry in path): tuple(leaf.shape) for path, leaf in leaves}
