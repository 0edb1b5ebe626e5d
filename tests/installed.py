"""What was installed from the wheel is the library, whole and alone.

Run by the Python that it was installed for, in a folder that is no checkout: `python -P PATH/TO/installed.py`.
"""

import doctest
import importlib
import importlib.util
import sys
from importlib.metadata import metadata
from pathlib import Path

import attention_jax

WITH_EXAMPLES = "masks", "scores", "dot_product", "dispatch", "cache", "modules.attention", "view.page", "view.table"


def main() -> None:
    """Raises AssertionError with what is not as it should be."""
    folder = Path(attention_jax.__file__).parent
    assert folder.is_relative_to(sys.prefix), f"{folder} is not what was installed in {sys.prefix}"
    assert metadata("attention-jax")["Version"] == attention_jax.__version__
    assert (folder / "py.typed").exists(), "py.typed is not in the wheel: type checkers will not look"
    for name in ("train", "configs", "tests", "notebooks"):
        assert importlib.util.find_spec(name) is None, f"{name} is in the wheel, or on the path"
    tried = failed = 0
    for name in WITH_EXAMPLES:
        module = importlib.import_module(f"attention_jax.{name}")
        results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
        tried, failed = tried + results.attempted, failed + results.failed
    assert tried and not failed, f"{failed} of {tried} examples failed"
    print(f"attention_jax {attention_jax.__version__} as installed: {tried} examples run")


if __name__ == "__main__":
    main()
