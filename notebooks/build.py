"""`python -m notebooks.build`: write the notebook that `colab_tpu.py` says."""

from pathlib import Path

import jupytext

SCRIPT = Path(__file__).with_name("colab_tpu.py")
METADATA = {
    "accelerator": "TPU",
    "colab": {"provenance": [], "gpuType": "V5E1"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
}


def notebook() -> str:
    """The notebook as JSON, the same every time; Colab opens it on a TPU."""
    made = jupytext.read(SCRIPT)
    made.metadata = METADATA
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number}"  # jupytext draws them at random
    return jupytext.writes(made, fmt="ipynb") + "\n"


if __name__ == "__main__":
    SCRIPT.with_suffix(".ipynb").write_text(notebook(), encoding="utf-8")
