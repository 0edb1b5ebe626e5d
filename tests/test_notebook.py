"""The notebook for Colab is what its script gives, and runs from top to bottom, again, and after an interruption.

It is run as on Colab: in an environment where JAX is there, but not this package, and in a folder where it has to clone
the repository, which is a copy of this checkout here. One setting, `quick`, is another.
"""

import asyncio
import shutil
import subprocess
import sys
import sysconfig
import types
import venv
from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from notebooks import build

ROOT = Path(__file__).parents[1]
WRITTEN = build.SCRIPT.with_suffix(".ipynb").read_text(encoding="utf-8")
RUN = Path("runs", "colab-tpu-quick")


def source(marked):
    """The one cell of the notebook that holds this text."""
    [found] = [cell.source for cell in nbformat.reads(WRITTEN, 4).cells if marked in cell.source]
    return found


def test_the_notebook_is_what_the_script_gives():
    assert build.notebook() == WRITTEN, "python -m notebooks.build makes it so"
    nbformat.validate(nbformat.reads(WRITTEN, 4))


def test_another_jax_is_refused():
    versions = {"before": {"jax": "0.7.2"}, "installed": lambda: {"jax": "0.8.0"}, "checkout": Path("there")}
    with pytest.raises(AssertionError, match=r"changed {'jax': '0.7.2'} to {'jax': '0.8.0'}: choose Runtime"):
        exec(source("assert after == before"), versions)


def test_the_whole_preset_is_refused_on_a_cpu(monkeypatch, capsys):
    monkeypatch.setattr("jax.devices", lambda: [types.SimpleNamespace(platform="cpu", device_kind="cpu")])
    with pytest.raises(RuntimeError, match="no TPU: choose Runtime"):
        exec(source("jax.devices()"), {"quick": False})
    assert capsys.readouterr().out == "1 x cpu (cpu)\n"


@pytest.mark.parametrize("earlier", [False, True])
def test_runs_become_a_folder_of_the_drive(tmp_path, monkeypatch, earlier):
    mounted = []
    drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(drive=drive))
    monkeypatch.chdir(tmp_path)
    if earlier:
        Path("runs").mkdir()
        Path("runs", "mine").touch()
    cell = source("google.colab").replace("/content/drive", f"{tmp_path}/drive")
    for _ in range(2):  # the second time is that of a later session
        exec(cell, {"use_drive": True, "Path": Path})
    Path("runs", "new").mkdir()
    assert mounted == [f"{tmp_path}/drive"] * 2
    assert (tmp_path / "drive" / "MyDrive" / "attention_jax" / "runs" / "new").is_dir()
    assert Path("runs-not-on-drive", "mine").exists() == earlier


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """An environment of its own, with the packages of this one but for those that stand in .pth files, as ours does; a
    kernel in it; and a repository to clone."""
    home = tmp_path_factory.mktemp("colab")
    venv.create(home / "env")
    [packages] = (home / "env").glob("lib/python*/site-packages")
    (packages / "preinstalled.pth").write_text(sysconfig.get_path("purelib"))
    (home / "kernels" / "colab").mkdir(parents=True)
    (home / "kernels" / "colab" / "kernel.json").write_text(
        '{"display_name": "Colab", "language": "python", "argv": '
        f'["{home}/env/bin/python", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]}}'
    )
    for name in ("attention_jax", "configs", "train"):
        shutil.copytree(ROOT / name, home / "repository" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, home / "repository")
    git = ["git", "-C", str(home / "repository"), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "all"]):
        subprocess.run(git + command, check=True)
    here = {
        "JUPYTER_PATH": str(home), "XLA_FLAGS": "", "PYTHONPATH": "",
        "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.file://{home}/repository.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/attention-jax/attention_jax",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in here.items():
            patch.setenv(name, value)
        yield


def client(folder):
    notebook = nbformat.reads(WRITTEN, 4)
    assert "\nquick = False" in notebook.cells[1].source
    notebook.cells[1].source = notebook.cells[1].source.replace("quick = False", "quick = True")
    return NotebookClient(
        notebook, timeout=300, kernel_name="colab", coalesce_streams=True, resources={"metadata": {"path": str(folder)}}
    )


def executed(folder):
    """What each cell showed, by its source, in one run from top to bottom."""
    notebook = client(folder).execute()
    return {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def text(outputs):
    return "".join(output.get("text") or output.data["text/plain"] for output in outputs)


@pytest.mark.slow
def test_from_top_to_bottom_and_again(colab, tmp_path):
    shown = executed(tmp_path)
    assert not any(output.get("name") == "stderr" for outputs in shown.values() for output in outputs)
    assert (tmp_path / "attention_jax" / "configs" / "colab_tpu.py").exists()
    versions, device, stopped, resumed, loss, page, more = (
        shown[source(part)]
        for part in ("assert after == before", "jax.devices()", "with stopped_after", "train(until=config.steps)", "loss.png", "html(", "show(")
    )  # fmt: skip
    assert f"jax {jax.__version__}," in text(versions)
    assert text(device) == "1 x cpu (cpu)\n"
    assert f"which is saved; python -m train --resume --name {RUN.name}" in text(stopped)
    assert f"{RUN}, going on after step" in text(resumed) and "step 90/90  validation loss" in text(resumed)
    assert loss[0].data["image/png"]
    assert page[0].data["text/html"].startswith("<iframe srcdoc=")
    assert text(more).startswith("The ") and len(text(more)) == len("The ") + 100 + 1

    again = executed(tmp_path)
    assert "of 90 steps were done before" in text(again[source("with stopped_after")])
    assert "going on after step 90" in text(again[source("train(until=config.steps)")])
    assert again[source("show(")] == more
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [RUN.name]


@pytest.mark.slow
def test_interrupted_and_run_again_by_another_process(colab, tmp_path):
    metrics = tmp_path / RUN / "metrics.jsonl"
    (tmp_path / "drive").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "drive")  # as with use_drive

    async def interrupt(client):
        running = asyncio.ensure_future(client.async_execute())
        while not (running.done() or metrics.exists()):
            await asyncio.sleep(0.02)
        await client.km.interrupt_kernel()
        await running

    with pytest.raises(CellExecutionError) as caught:
        asyncio.run(interrupt(client(tmp_path)))
    assert caught.value.ename == "KeyboardInterrupt" and "run this cell again" in caught.value.evalue
    assert 0 < metrics.read_text().count("train_loss") < 30
    shown = executed(tmp_path)
    assert f"{RUN}, going on after step" in text(shown[source("with stopped_after")])
    assert metrics.read_text().count("train_loss") == 90
