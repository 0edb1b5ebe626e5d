"""What the project says of itself beside its code."""

import re
from pathlib import Path

import pytest
from mutants import MUTANTS

import attention_jax

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_citation_is_of_this_version():
    assert f"\nversion: {attention_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_workflow_uses_is_pinned_by_hash_and_names_its_version(workflow):
    used = re.findall(r"\buses: (.*)", workflow.read_text(encoding="utf-8"))
    others = [action for action in used if not action.startswith("./")]
    assert others
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action) for action in others)


def test_ci_has_a_job_for_every_part():
    parts = re.search(r"^parts=\((.*)\)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    jobs = re.findall(r"\bpart: (\w+)", (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert jobs == parts[1].split()


def test_what_is_run_by_name_is_run_each_week():
    parts = re.search(r"^by_name=\((.*)\)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    weekly = (ROOT / ".github" / "workflows" / "weekly.yml").read_text(encoding="utf-8")
    assert re.search(r"\bpart: \[(.*)\]", weekly)[1].split(", ") == parts[1].split()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.wrong}")
def test_a_fault_has_its_place(mutant):
    assert (ROOT / "attention_jax" / mutant.file).read_text(encoding="utf-8").count(mutant.right) == 1


def test_code_that_opens_files_neither_unpickles_nor_evaluates():
    code = [path for folder in ("attention_jax", "train", "configs") for path in (ROOT / folder).rglob("*.py")]
    assert code
    for path in code:
        assert not re.search(r"\bpickle\b|(?<![.\w])(eval|exec)\(", path.read_text(encoding="utf-8")), path
