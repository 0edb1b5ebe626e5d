"""Notebooks, all of them generated: `colab_tpu` from the script of that name, by `python -m notebooks.build`;
`walkthrough` from the pages of docs/walkthrough, by `python -m notebooks.walkthrough`."""
