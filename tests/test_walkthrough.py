"""The pages of the walk-through run as they stand, with what they assert, and make the notebook that is shipped."""

import re

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest

from notebooks import walkthrough

PAGES = walkthrough.pages()


@pytest.fixture(autouse=True)
def quiet_figures():
    with matplotlib.rc_context({"backend": "agg"}), np.printoptions():
        yield
    plt.close("all")


# the site's build runs them all, too
@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs(page):
    names = {}
    code = [cell.source for cell in walkthrough.cells(page) if cell.cell_type == "code"]
    assert sum("assert" in cell for cell in code) >= 1  # of what the page says, and its answers
    for number, cell in enumerate(code):
        exec(compile(cell, f"{page.name}, cell {number}", "exec"), names)


def test_numbers_in_the_contents_are_those_of_the_pages():
    contents = (walkthrough.PAGES / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"^\d\d_\w+$", contents, re.MULTILINE) == [page.stem for page in PAGES]
    for number, page in enumerate(PAGES, 1):
        text = page.read_text(encoding="utf-8")
        assert int(page.stem[:2]) == number
        assert re.findall(r"^# (\d+)\. ", text, re.MULTILINE)[0] == str(number)
        for name, target in re.findall(r"\[step (\d+)\]\((\w+)\.md\)", text):
            assert PAGES[int(name) - 1].stem == target


def test_notebook_is_what_the_pages_make():
    shipped = nbformat.read(walkthrough.NOTEBOOK, as_version=4)
    assert shipped == walkthrough.build(), "write it anew: python -m notebooks.walkthrough"
