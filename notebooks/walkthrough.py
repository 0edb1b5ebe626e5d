"""The pages of docs/walkthrough as one notebook, in their order and without outputs.

    python -m notebooks.walkthrough    # writes notebooks/walkthrough.ipynb

One notebook rather than seventeen: it is installed for once, and read from top to bottom. Each page begins with what it
needs of those before, so that one can also begin anywhere in it.
"""

import re
from pathlib import Path

import jupytext
import nbformat

PAGES = Path(__file__).parents[1] / "docs" / "walkthrough"
NOTEBOOK = Path(__file__).with_suffix(".ipynb")

INSTALL = """
## Install

The next cell installs the library. In a checkout of the repository it takes that; elsewhere, such as on Colab, it
fetches one. It needs Python 3.11 or later.
"""
INSTALL_CODE = """import importlib
import subprocess
import sys
from pathlib import Path

REPOSITORY = "https://github.com/attention-jax/attention_jax"

here = Path.cwd()
folders = [here, *here.parents, here / "attention_jax"]
checkout = next((folder for folder in folders if (folder / "train" / "step.py").exists()), None)
if checkout is None:
    checkout = here / "attention_jax"
    subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, str(checkout)], check=True)
pip = [sys.executable, "-m", "pip", "install", "--quiet", "--editable", f"{checkout}[train]"]
subprocess.run(pip, check=True)
importlib.invalidate_caches()
sys.path.insert(0, str(checkout))  # which pip arranges for new processes only"""


def pages() -> list[Path]:
    return sorted(PAGES.glob("[0-9]*.md"))


def cells(page: Path) -> list[nbformat.NotebookNode]:
    """The cells of a page, with their tags."""
    return jupytext.read(page, fmt="md:myst").cells


def build() -> nbformat.NotebookNode:
    """The whole notebook."""
    opening = (PAGES / "index.md").read_text(encoding="utf-8").split("```{toctree}")[0].strip()
    built = [nbformat.v4.new_markdown_cell(opening + "\n" + INSTALL.rstrip()), nbformat.v4.new_code_cell(INSTALL_CODE)]
    built += [_shipped(cell) for page in pages() for cell in cells(page) if "remove-cell" not in _tags(cell)]
    for number, cell in enumerate(built):
        cell.id = f"cell-{number}"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return nbformat.v4.new_notebook(cells=built, metadata=kernel)


def _shipped(cell):
    if cell.cell_type == "markdown":
        # a link from page to page leads nowhere in here, and its words, "step 5", say where to look
        return nbformat.v4.new_markdown_cell(re.sub(r"\[([^]]+)\]\(\d\d_\w+\.md\)", r"\1", cell.source))
    folded = bool({"hide-cell", "hide-input"} & set(_tags(cell)))
    metadata = {"cellView": "form", "jupyter": {"source_hidden": True}} if folded else {}  # Colab's way, and Jupyter's
    return nbformat.v4.new_code_cell(cell.source, metadata=metadata)


def _tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


if __name__ == "__main__":
    notebook = build()
    nbformat.validate(notebook)
    NOTEBOOK.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    print(f"{NOTEBOOK}: {len(notebook.cells)} cells")
