"""GPT-2 against `transformers`, on small random models; and files that are not what they should be."""

import hashlib
import json
import shutil
import types
from functools import partial

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from attention_jax import pretrained
from attention_jax.generate import generate
from attention_jax.modules import FeedForward, MultiHeadAttention, TransformerBlock, TransformerLM
from attention_jax.positions import rotary_frequencies
from attention_jax.pretrained import build_gpt2, download_gpt2, load_gpt2, load_tokenizer, save_gpt2
from attention_jax.sampling import Sampling

SIZES = {"vocab_size": 61, "context_length": 24, "embed_dim": 24, "num_heads": 3, "num_layers": 2}
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 17))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp("gpt2")
    save_gpt2(build_gpt2(*SIZES.values(), rngs=nnx.Rngs(0)), directory)
    return directory


@pytest.fixture
def saved(original, tmp_path):
    return shutil.copytree(original, tmp_path, dirs_exist_ok=True)


def theirs(directory, **options):
    """A model of `transformers` whose parameters are all random, saved; and the module torch."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=61, n_positions=24, n_embd=24, n_head=3, n_layer=2, **options)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(directory)
    return model, torch


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"n_inner": 40, "layer_norm_epsilon": 1e-3}])
def test_logits_and_greedy_text_are_those_of_transformers(options, tmp_path):
    model, torch = theirs(tmp_path, **options)
    ours = load_gpt2(tmp_path)
    with torch.no_grad():
        logits = model(torch.from_numpy(TOKENS)).logits.numpy()
    assert np.abs(ours(TOKENS) - logits).max() < 1e-4 < np.abs(logits).max()
    for row in TOKENS:
        prompt = torch.from_numpy(row[None, :5])
        wanted = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=19,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        text = generate(ours, row[:5], 19, rng=jax.random.key(0), sampling=Sampling(temperature=0))
        assert text.tokens.tolist() == wanted[0].tolist()


@pytest.mark.slow
def test_what_is_saved_is_read_by_transformers(tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    model = build_gpt2(*SIZES.values(), rngs=nnx.Rngs(1))
    model.tokens.embedding[...] *= 20
    save_gpt2(model, tmp_path)
    with torch.no_grad():
        logits = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()(torch.from_numpy(TOKENS)).logits.numpy()
    assert np.abs(model(TOKENS) - logits).max() < 1e-4 < np.abs(logits).max()


def test_there_and_back(saved):
    model = load_gpt2(saved)
    save_gpt2(model, saved / "again")
    assert (saved / "again" / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()
    assert sorted(path.name for path in (saved / "again").iterdir()) == ["config.json", "model.safetensors"]
    again = load_gpt2(saved / "again")
    np.testing.assert_array_equal(model(TOKENS), again(TOKENS))


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_either_way_of_naming_and_half_precision(prefix, saved):
    """The hub's files have no prefix, and hold masks that are not parameters."""
    model, path = load_gpt2(saved), saved / "model.safetensors"
    tensors = {
        prefix + name.removeprefix("transformer."): tensor.astype(np.float16)
        for name, tensor in load_file(path).items()
    }
    tensors[f"{prefix}h.0.attn.bias"] = np.ones((1, 1, 24, 24), np.float16)
    tensors["lm_head.weight"] = tensors[f"{prefix}wte.weight"].copy()
    save_file(tensors, path)
    loaded = load_gpt2(saved)
    assert loaded.tokens.embedding[...].dtype == jnp.float32
    assert np.abs(loaded(TOKENS) - model(TOKENS)).max() < 1e-3


def header(path, change):
    """The file with another header."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = change(content[8 : 8 + length].decode()).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def tensors(path, change):
    held = load_file(path)
    change(held)
    save_file(held, path)


WEIGHTS = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-5]), "no safetensors file"),
    "cut in its header": (lambda path: path.write_bytes(path.read_bytes()[:50]), "its header would have"),
    "empty": (lambda path: path.write_bytes(b""), "no safetensors file"),
    "missing": (lambda path: path.unlink(), "no safetensors file: .*No such file"),
    "a header of 2**60 bytes": (lambda path: path.write_bytes((2**60).to_bytes(8, "little") + b"{}"), "its header would have"),
    "no JSON": (lambda path: path.write_bytes((3).to_bytes(8, "little") + b"abc"), "no safetensors file"),
    "a list": (lambda path: header(path, lambda text: "[]"), "no safetensors file"),
    "a name twice": (lambda path: header(path, lambda text: text.replace("ln_2.bias", "ln_1.bias", 1)), "a name stands twice"),
    "a tensor twice": (
        lambda path: tensors(path, lambda held: held.update({"wte.weight": held["transformer.wte.weight"].copy()})), "holds a tensor twice",
    ),
    "offsets outside": (lambda path: header(path, lambda text: text.replace('"data_offsets":[0,', '"data_offsets":[9,', 1)), "no safetensors file"),
    "a tensor missing": (lambda path: tensors(path, lambda held: held.pop("transformer.h.1.mlp.c_fc.bias")), "lacks 'h.1.mlp.c_fc.bias'$"),
    "another tensor": (lambda path: tensors(path, lambda held: held.update({"../../etc/passwd": np.ones(3)})), "does not have, '../../etc/passwd'$"),
    "another shape": (
        lambda path: tensors(path, lambda held: held.update({"transformer.ln_f.bias": np.ones(23, np.float32)})),
        r"transformer.ln_f.bias has shape \(23,\), config.json asks for \(24,\)",
    ),
    "transposed": (
        lambda path: tensors(path, lambda held: held.update({"transformer.h.0.mlp.c_fc.weight": held["transformer.h.0.mlp.c_fc.weight"].T.copy()})),
        r"has shape \(96, 24\), config.json asks for \(24, 96\)",
    ),
    "whole numbers": (lambda path: header(path, lambda text: text.replace('"F32"', '"I32"', 1)), "is I32, expected one of F32, F16, BF16"),
    "brackets": (lambda path: header(path, lambda text: "[" * 10**5), "no safetensors file"),
    "another head": (lambda path: tensors(path, lambda held: held.update({"lm_head.weight": np.ones((61, 24), np.float32)})), "lm_head.weight is not"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("damage", WEIGHTS)
def test_damaged_weights_are_refused(damage, saved):
    spoil, message = WEIGHTS[damage]
    spoil(saved / "model.safetensors")
    with pytest.raises(ValueError, match=message) as refusal:
        load_gpt2(saved)
    assert "model.safetensors" in str(refusal.value) and "\n" not in str(refusal.value)


CONFIGS = {
    "another model": ({"model_type": "llama"}, "model_type must be 'gpt2', got 'llama'"),
    "another activation": ({"activation_function": "relu"}, "activation_function must be 'gelu_new', got 'relu'"),
    "no scale": ({"scale_attn_weights": False}, "scale_attn_weights must be True, got False"),
    "a size as text": ({"n_embd": "24"}, "n_embd must be a positive integer below .* got '24'"),
    "a size of 0": ({"n_layer": 0}, "n_layer must be a positive integer"),
    "a truth for a size": ({"n_layer": True}, "n_layer must be a positive integer below .* got True"),
    "heads": ({"n_head": 7}, "24 channels, 7 heads"),
    "layers": ({"n_layer": 3}, "lacks 'h.2.attn.c_attn.bias' and 11 more"),
    "epsilon": ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon must be between 0 and 1, got nan"),
    "hidden": ({"n_inner": -4}, "n_inner must be a positive integer"),
}


@pytest.mark.parametrize("change", CONFIGS)
def test_wrong_configs_are_refused(change, saved):
    fields, message = CONFIGS[change]
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ValueError, match=message):
        load_gpt2(saved)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"model_type": "gpt2", "model_type": "gpt2"}', "nul", "[" * 10**5])
def test_configs_that_are_none_are_refused(text, saved):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        load_gpt2(saved)


def test_a_flipped_byte_is_found_by_the_hash(saved):
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    good = hashlib.sha256(content).hexdigest()
    load_gpt2(saved, sha256=good.upper())
    content[-3] ^= 1
    path.write_bytes(content)
    load_gpt2(saved)
    with pytest.raises(ValueError, match=r"SHA-256 is .*, not .*; fetch it again"):
        load_gpt2(saved, sha256=good)


@pytest.mark.slow
def test_models_that_are_no_gpt2_are_not_saved(tmp_path):
    def block(**options):
        gelu = partial(FeedForward, activation=jax.nn.gelu)
        return partial(
            TransformerBlock, attention=partial(MultiHeadAttention, fused=True, **options), feed_forward=gelu
        )

    for model in (
        TransformerLM(61, 24, 24, 3, 2, rngs=nnx.Rngs(0)),
        TransformerLM(61, 24, 24, 3, 2, scan=True, rngs=nnx.Rngs(0)),
        TransformerLM(61, 24, 24, 3, 2, tied=False, rngs=nnx.Rngs(0)),
        TransformerLM(61, 24, 24, 3, 2, block=block(rotary=rotary_frequencies(8)), rngs=nnx.Rngs(0)),
        TransformerLM(61, 24, 24, 4, 2, block=block(num_kv_heads=2), rngs=nnx.Rngs(0)),
    ):
        with pytest.raises(ValueError, match="not of GPT-2's architecture"):
            save_gpt2(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_tokenizers(tmp_path):
    """From two files or from one, the same; every text comes back."""
    from tokenizers import ByteLevelBPETokenizer

    text = "The cat sat on the mat. Ünïcode 猫 \n\t  two  spaces"
    made = ByteLevelBPETokenizer()
    made.train_from_iterator([text] * 3, vocab_size=300)
    made.save_model(str(tmp_path))
    one = load_tokenizer(tmp_path)
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(tmp_path / "tokenizer.json"))
    assert len(made.encode("<|endoftext|>").ids) == 1
    for tokenizer in (one, load_tokenizer(tmp_path)):
        assert tokenizer.encode(text).ids == made.encode(text).ids
        assert len(tokenizer.encode("<|endoftext|>").ids) > 5
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    for name in ("tokenizer.json", "merges.txt"):
        (tmp_path / name).write_text("{")
        with pytest.raises(ValueError, match=r"holds no tokenizer\.json"):
            load_tokenizer(tmp_path)
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path)


class Hub:
    """A hub that holds one directory."""

    def __init__(self, directory, monkeypatch):
        self.asked, self.directory = [], directory
        for name in ("vocab.json", "merges.txt"):
            (directory / name).write_text("{}")
        digest = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
        self.files = [
            types.SimpleNamespace(
                rfilename=path.name, size=path.stat().st_size, lfs=types.SimpleNamespace(sha256=digest)
            )
            for path in directory.iterdir()
        ]
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot)

    def model_info(self, repository, revision, files_metadata):
        self.asked.append((repository, revision))
        return types.SimpleNamespace(siblings=self.files)

    def snapshot(self, repository, revision, allow_patterns):
        self.asked.append((repository, revision, *allow_patterns))
        target = self.directory / "snapshot"
        target.mkdir()
        for name in allow_patterns:
            shutil.copy(self.directory / name, target / name)
        return str(target)


def test_download(saved, monkeypatch):
    hub = Hub(saved, monkeypatch)
    directory = download_gpt2("gpt2-medium")
    where = "openai-community/gpt2-medium", pretrained.REVISIONS["gpt2-medium"]
    assert hub.asked == [where, (*where, *pretrained.FILES)]
    np.testing.assert_array_equal(load_gpt2(directory)(TOKENS), load_gpt2(saved)(TOKENS))


@pytest.mark.parametrize("name, options, message", [
    ("someone/gpt2", {}, "someone/gpt2 needs revision=, a commit of 40 hexadecimal digits; got ''"),
    ("gpt2", {"revision": "main"}, "needs revision=.* got 'main'"),
    ("gpt2", {"limit": 1000}, "bytes, more than the limit of 1000"),
])  # fmt: skip
def test_downloads_are_refused(name, options, message, saved, monkeypatch):
    hub = Hub(saved, monkeypatch)
    with pytest.raises(ValueError, match=message):
        download_gpt2(name, **options)
    assert not (hub.directory / "snapshot").exists()


def test_a_download_with_other_bytes_is_refused(saved, monkeypatch):
    Hub(saved, monkeypatch)
    (saved / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="fetch it again"):
        download_gpt2("gpt2")


def test_a_download_without_a_tokenizer_is_refused(saved, monkeypatch):
    hub = Hub(saved, monkeypatch)
    hub.files = [file for file in hub.files if file.rfilename != "merges.txt"]
    with pytest.raises(ValueError, match=r"has no merges\.txt"):
        download_gpt2("gpt2")
