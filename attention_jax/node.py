"""What masks and scores are made of: frozen dataclasses that are pytrees."""

from dataclasses import dataclass, field
from typing import Any, TypeVar, dataclass_transform

import jax

Node = TypeVar("Node")


def static() -> Any:
    """A field that is not an array."""
    return field(metadata={"static": True})


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(static,))
def node(cls: type[Node]) -> type[Node]:
    """A frozen dataclass that is a pytree: what is not `static()` is an array or holds some."""
    return jax.tree_util.register_dataclass(dataclass(frozen=True, eq=False)(cls))
