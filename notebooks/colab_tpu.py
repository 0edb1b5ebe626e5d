# %% [markdown]
# # A language model on a TPU
#
# This notebook trains the preset `colab-tpu` of attention_jax: English prose, character by character, in bfloat16, on
# as many chips as there are. It downloads no data. The project has had no TPU yet to run it on; on a CPU, shortened, it
# is run at every change.
#
# Choose **Runtime > Run all**. All cells can be run again, in this session or in a later one: what is done is not done
# twice, and a training run that was cut off goes on.

# %%
use_drive = False  # @param {type: "boolean"}
quick = False  # @param {type: "boolean"}

# %% [markdown]
# `use_drive` keeps what is trained on your Google Drive, where it outlives the machine (on Colab only). `quick` makes
# everything small, for a machine without a TPU.
#
# ## Install
#
# JAX must stay as it is: the preinstalled one fits the machine's TPU.

# %%
import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

REPOSITORY = "https://github.com/attention-jax/attention_jax"


def run_quietly(*command):
    """Run a command, and show what it says only if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout)


def installed():
    """The versions of what an installation must leave alone."""
    there = {}
    for package in ("jax", "jaxlib", "libtpu", "flax"):
        try:
            there[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            there[package] = None
    return there


here = Path.cwd()
folders = [here, *here.parents, here / "attention_jax"]
checkout = next((folder for folder in folders if (folder / "configs" / "colab_tpu.py").exists()), None)
if checkout is None:
    checkout = here / "attention_jax"
    run_quietly("git", "clone", "--depth", "1", REPOSITORY, str(checkout))

before = installed()
run_quietly(sys.executable, "-m", "pip", "install", "--editable", f"{checkout}[train]")
importlib.invalidate_caches()  # packages that are new since this process began
sys.path.insert(0, str(checkout))  # which pip arranges for new processes only

# %%
after = installed()
assert after == before, (
    f"the installation changed {before} to {after}: choose Runtime > Disconnect and delete runtime, and begin with a "
    f"machine whose versions {checkout}/pyproject.toml allows"
)
print("as before:", ", ".join(f"{package} {version}" for package, version in after.items() if version))

# %% [markdown]
# ## The device

# %%
import jax

devices = jax.devices()
print(f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})")
if devices[0].platform == "cpu" and not quick:
    raise RuntimeError("no TPU: choose Runtime > Change runtime type (Kaggle: Settings > Accelerator), or tick quick")

# %% [markdown]
# ## Where the run is kept
#
# A run is a folder under `runs/`, with its settings, metrics, pictures, and the last three checkpoints of its whole
# state. With `use_drive`, `runs` is a link to `attention_jax/runs` on the Drive; runs made before that stay on the
# machine, in `runs-not-on-drive`.

# %%
if use_drive:
    from google.colab import drive

    drive.mount("/content/drive")
    runs, kept = Path("runs"), Path("/content/drive/MyDrive/attention_jax/runs")
    kept.mkdir(parents=True, exist_ok=True)
    if not runs.is_symlink():
        if runs.exists():  # from before use_drive was ticked
            runs.rename("runs-not-on-drive")
        runs.symlink_to(kept)

# %% [markdown]
# ## What to train
#
# `config` has every field that `python -m train colab-tpu --help` names: `replace(colab_tpu, name="mine",
# data=Data(path=Path("my.txt"), batch_size=128))` learns a text of yours. Give it another name with other fields, since
# a run goes on only as it began.

# %%
from dataclasses import replace

from configs import colab_tpu
from configs.schema import Data, Model

config = colab_tpu
if quick:
    data = Data(batch_size=8, validation_fraction=0.02)
    model = Model(num_layers=2, num_heads=4, embed_dim=64, context_length=64, dropout_rate=0.2, dtype="bfloat16")
    config = replace(config, name="colab-tpu-quick", steps=90, eval_every=45, data=data, model=model)
run = Path("runs", config.name)

# %% [markdown]
# ## Train
#
# Training runs in this process, and not by `!python -m train`, because a TPU belongs to one process at a time: since
# the device was shown above, to this one. The stop button ends it after the step, saved.

# %%
from train import loop


def steps_done():
    """How many steps the run has recorded."""
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count('"train_loss"') if metrics.exists() else 0


def train(until):
    """Begin the run, or go on with it from its newest checkpoint."""
    begun = (run / "tokenizer.json").exists()  # written before the first step
    loop.run(replace(config, resume=begun))
    if steps_done() < until:
        raise KeyboardInterrupt("the run is stopped and saved; run this cell again to go on")


# %% [markdown]
# Colab may take a machine away at any time. To show what that costs, the next cell stops the run after a third of its
# steps.

# %%
import contextlib
import signal
import threading


@contextlib.contextmanager
def stopped_after(step):
    """Press the stop button, as it were, when the run has come so far."""
    over = threading.Event()

    def watch():
        while not over.wait(0.1):
            if steps_done() >= step:
                signal.raise_signal(signal.SIGINT)
                break

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


third = config.steps // 3
if steps_done() < third:
    with stopped_after(third):
        train(until=third)
else:
    print(f"{steps_done()} of {config.steps} steps were done before")

# %% [markdown]
# ## Resume
#
# The run goes on from its newest checkpoint, and ends as if it had never been stopped.
#
# After a real disconnect, **Runtime > Run all** does the same. Where `runs/` is still there, as it is with `use_drive`,
# the run loses at most the steps since its last checkpoint; one is made every 250 steps. Otherwise it begins anew.

# %%
train(until=config.steps)

# %% [markdown]
# ## The loss

# %%
from IPython.display import Image

Image(filename=str(run / "loss.png"), width=700)

# %% [markdown]
# ## What the heads look at
#
# Every layer and head of the trained model on one sentence. Choose a head at the top; point at a token to see where it
# looks.

# %%
from attention_jax.inspection import inspect
from attention_jax.view import html
from train import run_directory

_, tokenizer, model = run_directory.load(run)
tokens = tokenizer.encode("The statement is executed in the scope of the class.")
html(inspect(model, tokens), [tokenizer.decode([token]) for token in tokens], title="What each character looks at")

# %% [markdown]
# ## More text
#
# The same seed gives the same text; `temperature`, `top_k`, `top_p` and `min_p` are fields, too.

# %%
from train.sample import Sample, show

show(Sample(run, prompt="The ", length=100 if quick else 500, seed=0))
