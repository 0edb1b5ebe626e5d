"""The pages of docs/walkthrough as one notebook, in their order and without outputs.

    python -m notebooks.walkthrough    # writes notebooks/walkthrough.ipynb; needs jupytext

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
It runs in a checkout of the repository, and needs Python 3.11 or later. There, in a terminal,

```sh
pip install -e ".[train]" jupyterlab && jupyter lab notebooks/walkthrough.ipynb
```

On Colab, put the checkout into the session, and make a cell above the next one with the two lines
`%cd` *its folder* and `%pip install -e ".[train]"`.
"""
CHECK = """import sys

sys.path[:0] = [".", ".."]  # the checkout, whether Jupyter was started in it or in notebooks/
import attention_jax
import train

print(attention_jax.__path__[0], train.__path__[0], sep="\\n")"""


def pages() -> list[Path]:
    return sorted(PAGES.glob("[0-9]*.md"))


def cells(page: Path) -> list[nbformat.NotebookNode]:
    """The cells of a page, with their tags."""
    return jupytext.read(page, fmt="md:myst").cells


def build() -> nbformat.NotebookNode:
    """The whole notebook."""
    opening = (PAGES / "index.md").read_text(encoding="utf-8").split("```{toctree}")[0].strip()
    built = [nbformat.v4.new_markdown_cell(opening + "\n" + INSTALL.rstrip()), nbformat.v4.new_code_cell(CHECK)]
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
