"""The code in README.md, CONTRIBUTING.md and the how-to pages runs as it stands, prints what they say, and the commands
are ones."""

import doctest
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import tyro

from train.__main__ import main
from train.evaluate import Evaluate
from train.sample import Sample

ROOT = Path(__file__).parents[1]
README, HOWTO = ROOT / "README.md", sorted((ROOT / "docs" / "howto").glob("*.md"))
PAGES = [*HOWTO, ROOT / "CONTRIBUTING.md"]
PYTHON = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.DOTALL | re.MULTILINE)
SHELL = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^(?:\w+=\S+ )?python -m (train\S*)(.*)$", re.MULTILINE)


def python_blocks(page: Path) -> list[tuple[str, str]]:
    """The code, and the `text` block after it, which is what it prints."""
    return PYTHON.findall(page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """The programs of `train` that a page calls, with their arguments."""
    text = "".join(SHELL.findall(page.read_text(encoding="utf-8")))
    return [(program, shlex.split(arguments, comments=True)) for program, arguments in COMMAND.findall(text)]


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_blocks_of_the_readme_run_one_by_one(capsys):
    blocks = python_blocks(README)
    assert blocks
    for code, _ in blocks:
        exec(compile(code, "README.md", "exec"), {})
    assert "■ ■ · · · ·" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # which would take minutes
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_of_a_page_run_one_after_another(page, capsys):
    known = {"__name__": page.stem}
    for code, printed in python_blocks(page):
        if "torch" in code and importlib.util.find_spec("torch") is None:
            continue  # it is installed on one row of versions
        exec(compile(code, page.name, "exec"), known)
        if printed:
            assert capsys.readouterr().out == printed
    for name, value in known.items():
        if getattr(value, "__module__", None) == page.stem:  # defined on the page
            for example in doctest.DocTestFinder().find(value, name, module=False, globs=known):
                assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.stem)
def test_commands_have_fields_and_values_that_there_are(page, monkeypatch):
    runs = []
    monkeypatch.setattr("train.loop.run", runs.append)
    for program, arguments in commands(page):
        if program == "train":
            main(arguments)
        else:
            tyro.cli({"train.sample": Sample, "train.evaluate": Evaluate}[program], args=arguments)
    assert len(runs) == sum(program == "train" for program, _ in commands(page))


def test_files_that_the_readme_links_to_are_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text(encoding="utf-8"))
    assert links and all((ROOT / link).exists() for link in links)


def test_pages_have_code():
    assert all(python_blocks(page) or commands(page) for page in HOWTO)
    assert sum(len(commands(page)) for page in HOWTO) > 10
