"""Parameters on disk, through Orbax."""

from pathlib import Path
from typing import Any

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
      InputError: there are none.
    """
    with ocp.CheckpointManager(directory.resolve()) as manager:
        step = manager.latest_step()
        if step is None:
            raise InputError(f"{directory}: no checkpoint here; the run stopped before its first save")
        return manager.restore(step, args=ocp.args.StandardRestore(params))
