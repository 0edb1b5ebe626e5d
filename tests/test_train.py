"""The command line and the run: what is left behind, what is refused, and that the same seed gives the same run."""

import dataclasses
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from configs import schema, text
from train import run_directory
from train import tokenizer as tokenizers
from train.__main__ import main
from train.data.text import batch, read_text, split, whole
from train.errors import InputError, exit_status
from train.evaluate import Evaluate, describe, report
from train.metrics import Metrics, Speed
from train.model import build_model
from train.sample import Sample, write
from train.step import Batch, eval_step
from train.tokenizer import CharTokenizer

ROOT = Path(__file__).parents[1]
TINY = (
    "--steps 30 --eval-every 20 --data.batch-size 4 --data.validation-fraction 0.02 "
    "--model.num-layers 1 --model.num-heads 2 --model.embed-dim 16 --model.context-length 16"
)


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def records(name):
    return [json.loads(line) for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]


def command(*arguments, timeout=300):
    """What `python -m ...` does, compiled as for a user."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, env=environment, timeout=timeout
    )


def test_a_run_leaves_what_it_says(capsys):
    main(["text", *TINY.split(), "--name", "one"])
    out = capsys.readouterr().out
    assert "parameters" in out and "A sample:" in out and "python -m train.sample runs/one" in out
    directory = Path("runs/one")
    for picture in ("loss.png", "attention/000020.png", "attention/000030.png"):
        assert (directory / picture).read_bytes().startswith(b"\x89PNG")
    assert schema.load(directory / "config.toml") == dataclasses.replace(
        text, name="one", steps=30, eval_every=20,
        data=schema.Data(batch_size=4, validation_fraction=0.02),
        model=schema.Model(num_layers=1, num_heads=2, embed_dim=16, context_length=16),
    )  # fmt: skip
    assert [record["step"] for record in records("one") if "train_loss" in record] == list(range(1, 31))
    validation = {record["step"]: record["validation_loss"] for record in records("one") if "validation_loss" in record}
    assert list(validation) == [20, 30]
    losses = [record["train_loss"] for record in records("one") if "train_loss" in record]
    assert np.mean(losses[-5:]) < losses[0] - 0.2
    assert f"{np.mean(losses):.3f}, validation loss {validation[30]:.3f}" in out
    samples = (directory / "samples.txt").read_text(encoding="utf-8")
    assert "--- step 20 ---" in samples and "--- step 30 ---" in samples

    # the saved model is the trained one
    config, tokenizer, model = run_directory.load(directory)
    tokens = tokenizer.encode(read_text(None))
    _, held_out = split(tokens, config.data.validation_fraction, config.model.context_length)
    graphdef, params = nnx.split(model)
    losses = [
        eval_step(params, Batch(tokens), graphdef=graphdef)[0] / 64
        for tokens in whole(held_out, batch_size=4, length=17)
    ]
    assert np.mean(losses) == pytest.approx(validation[30], rel=1e-5)
    assert report(Evaluate(directory)) == describe({"validation_loss": validation[30]})

    # samples repeat by seed, and differ between seeds
    one, again, other = ("".join(write(Sample(directory, prompt="def", length=60, seed=seed))) for seed in (1, 1, 2))
    assert one == again != other and one.startswith("def") and len(one) == 63

    for wrong, message in (
        ({"prompt": ""}, "--prompt is empty"),
        ({"prompt": "a\u2603"}, "--prompt 'a\u2603': the text holds '\u2603', .* it knows"),
        ({"seed": 2**64}, "--seed"),
        ({"length": -1}, "--length"),
        ({"top_p": 2.0}, "^--top-p must be above 0"),
    ):
        with pytest.raises(InputError, match=message):
            list(write(Sample(directory, **wrong)))
    tokenizers.save(CharTokenizer.of("another vocabulary"), directory / "tokenizer.json")
    with pytest.raises(InputError, match=r"which wants params.tokens.embedding float32\[14, 16\]; saved is"):
        list(write(Sample(directory)))

    # a second run of the name keeps the first
    main(["text", *TINY.split(), "--name", "one", "--quiet"])
    assert capsys.readouterr().out == ""
    assert records("one") == records("one.1")  # and, with the same seed, is the same
    main(["text", *TINY.split(), "--name", "two", "--seed", "1", "--quiet"])
    assert records("one")[-1] != records("two")[-1]


@pytest.mark.slow
def test_a_text_of_one_line(capsys):
    """Which a model cannot begin with a line break, and whose words may look like options."""
    Path("own.txt").write_text("--option one two three. " * 200)
    main([*TINY.split(), "--data.path", "own.txt", "--name", "own", "--steps", "4"])
    directory = Path("runs/own")
    assert capsys.readouterr().out.endswith("more text: python -m train.sample runs/own --prompt=--option\n")
    assert "".join(write(Sample(directory, length=3)))[0] == " "
    assert command("train.sample", "runs/own", "--prompt=--option", "--length", "1").stdout.startswith("--option")
    with pytest.raises(InputError, match="the preset copy 'copy': --resume goes on with the same run only"):
        main(["copy", "--resume", "--name", "own"])
    assert main(["text", "--resume", "--name", "own", "--quiet"]) == 0
    assert capsys.readouterr().err == "runs/own goes on with its own model, not that of the preset text\n"

    assert report(Evaluate(directory)).startswith("validation loss")
    Path("own.txt").write_text("--option one two three. " * 201)
    with pytest.raises(InputError, match="runs/own: these are other data than the run learned from"):
        report(Evaluate(directory))


@pytest.mark.slow
def test_a_prompt_that_is_no_text():
    tokenizer = tokenizers.BpeTokenizer.of("banana bandana " * 20, 260)
    model = build_model(schema.Model(), len(tokenizer), jax.random.key(0))
    with (
        mock.patch("train.run_directory.load", return_value=(schema.Config(), tokenizer, model)),
        pytest.raises(InputError, match=r"--prompt 'T.udcff': .*surrogates not allowed"),
    ):
        list(write(Sample(Path("runs/bytes"), prompt="T\udcff")))


@pytest.mark.slow
def test_a_run_goes_on_though_nobody_reads():
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *TINY.split(), "--name", "unread"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
    )  # fmt: skip
    with process:
        assert "parameters" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 0
    assert len([record for record in records("unread") if "train_loss" in record]) == 30


@pytest.mark.slow
def test_what_cannot_be_begun_leaves_nothing(monkeypatch):
    main([*TINY.split(), "--name", "full", "--steps", "1", "--quiet"])
    earlier = sorted(Path("runs").rglob("*"))
    monkeypatch.setattr(tokenizers, "save", mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(InputError, match=r"runs/full: cannot be written .No space left on device"):
        main([*TINY.split(), "--name", "full"])
    assert sorted(Path("runs").rglob("*")) == earlier


@pytest.mark.slow
@pytest.mark.parametrize("arguments, message", [
    (["--data.batch-size", "10000000"], "a step needs .* GiB of memory, .*: raise --data.accumulate or lower --data.batch-size, .*--mesh.fsdp"),
    (["--data.batch-size", "1000000000000"], "a batch of tokens needs .* GiB of memory, .*: lower --data.batch-size or --model.context-length"),
    (["--model.embed-dim", "1000000000"], "model and optimizer need .* GiB of memory, .*: lower the model's sizes, .*--mesh.fsdp"),
])  # fmt: skip
@pytest.mark.parametrize("earlier", [False, True])
def test_what_is_too_large_is_refused_and_moves_nothing(earlier, arguments, message):
    if earlier:
        main([*TINY.split(), "--name", "large", "--steps", "1", "--quiet"])

    def files():
        found = sorted(path for path in Path("runs").rglob("*") if path.is_file() and path.name != "lock")
        return [(path, path.stat().st_mtime_ns) for path in found]

    before = files()
    again = "; the earlier run is runs/large again" if earlier and "tokens" not in message else ""
    with pytest.raises(InputError, match=f"{message}{again}$"):
        main([*TINY.split(), "--name", "large", "--quiet", *arguments])
    assert files() == before and Path("runs/large").exists() == earlier


@pytest.mark.slow
def test_a_sample_is_shown_whole(monkeypatch, capsys):
    monkeypatch.setattr("train.show.sample", lambda *_: "one ---\n\x1b[31mtwo\n--- step 3\n")
    main([*TINY.split(), "--name", "dashes", "--steps", "1"])
    assert "A sample:\n\none ---\n\\x1b[31mtwo\n--- step 3\n\ntrain loss" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("line", [" \n", "\x1b[31mabc \u202eabc\n"], ids=["blank", "controls"])
def test_text_without_words_to_be_shown_gives_no_prompt(line, capsys):
    Path("blank.txt").write_text(line * 1000)
    main([*TINY.split(), "--name", "blank", "--steps", "1", "--data.path", "blank.txt"])
    assert capsys.readouterr().out.endswith("more text: python -m train.sample runs/blank\n")


@pytest.mark.slow
def test_what_a_run_learned_from_has_changed():
    """Where nothing but the data can be at fault, the message says where they are."""
    text = Path("words.txt")
    text.write_text("alpha beta\n" * 200)
    main([*TINY.split(), "--name", "words", "--steps", "1", "--data.path", "words.txt", "--quiet"])
    text.write_text("alpha beta\n" * 200 + "gamma")
    wrong = "--data.path words.txt: the text holds 'g', which the model does not know; .*; give the text that it has"
    with pytest.raises(InputError, match=f"^runs/words/config.toml: {wrong}"):
        main(["--resume", "--name", "words"])
    with pytest.raises(InputError, match=f"^runs/words/config.toml: {wrong}"):
        run_directory.load_with_data(Path("runs/words"))
    with pytest.raises(InputError, match=r"data.path was words.txt, is others.txt: .* in runs/words/config.toml$"):
        main(["--resume", "--name", "words", "--data.path", "others.txt"])
    with pytest.raises(InputError, match=r"runs/words learns 'words.txt', and the preset copy 'copy'"):
        main(["copy", "--resume", "--name", "words"])
    with Path("runs/words/tokenizer.json").open("ab") as file:
        file.write(b"\xff")
    with pytest.raises(InputError, match=r"^runs/words/tokenizer.json: not a tokenizer .*can't decode byte 0xff"):
        main(["--resume", "--name", "words"])


@pytest.mark.parametrize("content, message", [
    (None, "missing.txt: cannot be read (No such file or directory)"),
    (b"", "missing.txt: the file is empty"),
    (b"caf\xe9 au lait", "missing.txt: not UTF-8 text, byte 0xe9 at offset 3; convert it, e.g. iconv -f latin1"),
    ("a café".encode()[:-1], "missing.txt: not UTF-8 text, byte 0xc3 at offset 5; the file is cut off within a character"),
    ("a café".encode("utf-16"), "missing.txt: not UTF-8 text, byte 0xff at offset 0; convert it: iconv -f utf-16 -t utf-8"),
    ("a cafe".encode("utf-16-le"), "missing.txt: not UTF-8 text; it holds bytes of 0, which no text has"),
    (b"a\0\xff", "missing.txt: not UTF-8 text, byte 0xff at offset 2; it holds bytes of 0, which no text has"),
    (b"too short", "missing.txt: the training text has 8 tokens, fewer than --model.context-length 128 + 1"),
])  # fmt: skip
def test_bad_data_is_refused_before_anything_is_compiled(content, message):
    if content is not None:
        Path("missing.txt").write_bytes(content)
    with pytest.raises(InputError) as error:
        main(["--data.path", "missing.txt"])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not Path("runs").exists()


@pytest.mark.parametrize("arguments, message", [
    (["--stesp", "3"], "Perhaps you meant"),
    (["--model.num-heads", "3"], "embed_dim=128 must be a multiple of num_heads=3"),
    (["--steps", "0"], "steps must be at least 1, got 0"),
    (["--steps", "3000000000"], "steps must be at most 10,000,000, since each leaves a record, got 3000000000"),
    (["--steps", "many"], "--steps"),
    (["--name", "../elsewhere"], "letters, digits and . _ - only"),
    (["--name", ".."], "letters, digits and . _ - only"),
    (["--model.dropout-rate", "nan"], "dropout_rate must be at least 0 and below 1, got nan"),
    (["--optimizer.learning-rate", "-1"], "learning_rate must be at least 0"),
    (["--data.source", "add", "--data.task-length", "19"], "task_length must be at most 18 for add"),
    (["--mesh.processes", "2", "--mesh.coordinator", "here"], "coordinator must be HOST:PORT, got 'here'"),
    (["--mesh.processes", "2"], "go together: give both, or neither"),
    (["--data.accumulate", "3"], "batch_size=8 must be a multiple of accumulate=3"),
    (["--data.validation-fraction", "1"], "validation_fraction must be above 0 and below 1"),
])  # fmt: skip
def test_a_wrong_field_is_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert message in " ".join((shown.out + shown.err).replace("│", " ").split())


def test_an_unknown_preset_is_refused():
    with pytest.raises(InputError, match="no preset is called 'txet'; there are: text, shakespeare, "):
        main(["txet"])


def test_a_preset_goes_first():
    with pytest.raises(InputError, match="the preset goes first: copy --steps 5"):
        main(["--steps", "5", "copy"])


def test_a_run_may_be_called_as_a_preset(monkeypatch):
    monkeypatch.setattr("train.loop.run", lambda config: config.name)
    assert main(["--name", "copy"]) == "copy"


def test_an_error_is_one_line_and_status_2():
    result = command("train", "--data.path", "missing.txt")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "error: --data.path missing.txt: cannot be read (No such file or directory)\n"


def test_sampling_refusals():
    result = command("train.sample", "runs/nothing")
    assert result.returncode == 2 and result.stderr == "error: runs/nothing: no training run is here; runs: none yet\n"
    tokenizer = CharTokenizer.of("abc")
    with pytest.raises(InputError, match="holds 'é'"):
        tokenizer.encode("abé")
    run_directory.create(schema.Config(name="stopped"), tokenizer)
    with pytest.raises(InputError, match="no checkpoint here"):
        run_directory.load(Path("runs/stopped"))
    Path("runs/stopped/tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"^runs/stopped/tokenizer.json: cannot be read \(No such file or directory\)"):
        run_directory.load(Path("runs/stopped"))
    Path("runs/stopped/config.toml").write_text("stepps = 3")
    with pytest.raises(
        InputError, match=r"^runs/stopped/config.toml: no field is called 'stepps'; there are: name, steps"
    ):
        run_directory.load(Path("runs/stopped"))
    with pytest.raises(
        InputError, match=r"^--start runs/nothing: no training run is here; runs: runs/stopped; give a run"
    ):
        run_directory.load_start(Path("runs/nothing"))


def test_batches_are_pure_functions_of_seed_and_step():
    tokens = np.arange(1000)
    options = {"batch_size": 5, "length": 7}
    later = batch(tokens, seed=3, step=100, **options)
    batch(tokens, seed=3, step=99, **options)
    np.testing.assert_array_equal(batch(tokens, seed=3, step=100, **options), later)
    assert (np.diff(later, axis=1) == 1).all() and later.shape == (5, 7)
    for seed, step in ((3, 101), (4, 100)):
        assert (batch(tokens, seed=seed, step=step, **options) != later).any()
    starts = np.concatenate([batch(np.arange(9), seed=0, step=step, **options)[:, 0] for step in range(50)])
    assert set(starts) == {0, 1, 2}  # every place there is, and none beyond


def test_validation_covers_the_text_once():
    batches = whole(np.arange(101), batch_size=3, length=6)
    assert batches.shape == (6, 3, 6)
    np.testing.assert_array_equal(batches[..., 1:].reshape(-1), np.arange(1, 91))
    assert whole(np.arange(8), batch_size=3, length=6).shape == (1, 1, 6)


def test_saving_and_evaluating_take_no_time_of_a_step(monkeypatch):
    clock = iter([0.0, 1.0, 101.0, 102.0, 202.0, 203.0])
    monkeypatch.setattr("train.metrics.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with Metrics(Path("metrics.jsonl"), schema.Config(quiet=True), Speed(1, 1, None)) as metrics:
        for step, between in enumerate((metrics.sync, partial(metrics.validation, 4, {"validation_loss": 1.0}), list)):
            metrics.step(2 * step + 1, 1.0, 0.1)
            metrics.step(2 * step + 2, 1.0, 0.1)
            between()
    assert (metrics.timed, metrics.seconds) == (3, 3.0)


@pytest.mark.parametrize("width, shown", [(40, "123/5000 loss 0.041"), (100, "123/5000 loss 0.041  1 tokens/s")])
def test_a_narrow_terminal_shows_the_step_and_the_loss(width, shown, monkeypatch):
    clock = iter([0.0, 1.0])
    monkeypatch.setattr("train.metrics.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setenv("COLUMNS", str(width))
    with Metrics(Path("metrics.jsonl"), schema.Config(steps=5000), Speed(1, 1, None)) as metrics:
        metrics.step(122, 0.041, 0.1)
        metrics.step(123, 0.041, 0.1)
    terminal = Console(file=io.StringIO(), width=width)
    terminal.print(metrics.progress.make_tasks_table(metrics.progress.tasks))
    assert shown in terminal.file.getvalue().replace(" 123", "123")
    assert terminal.file.getvalue().count("\n") == 1


def test_what_has_no_number_can_be_described():
    assert "perplexity inf" in describe({"validation_loss": 1e4})
    assert "validation loss nan nats per token, perplexity nan" in describe({"validation_loss": None})


def test_configurations_survive_a_file():
    config = dataclasses.replace(text, data=schema.Data(path=Path('a "b"\\c.txt')))
    schema.save(config, Path("config.toml"))
    assert schema.load(Path("config.toml")) == config


@pytest.mark.parametrize(
    "line, message",
    [
        ('steps = "abc"', "steps must be a whole number, got 'abc'"),
        ("steps = 32.5", "steps must be a whole number, got 32.5"),
        ("steps = true", "steps must be a whole number, got True"),
        ("quiet = 1", "quiet must be true or false, got 1"),
        ("start = 1", "start must be a path, got 1"),
        ("data = 1", "data must be a table, got 1"),
        ("loss.z_loss = 'no'", "z_loss must be a number, got 'no'"),
        ("model.kind = 'gpt3'", "kind must be one of plain, gpt2, got 'gpt3'"),
        ("data.stepz = 1", "no field is called 'stepz'; there are: source, path"),
    ],
)
def test_a_wrong_line_of_a_configuration(line, message):
    Path("config.toml").write_text(line)
    with pytest.raises(ValueError, match=f"^config.toml: {re.escape(message)}"):
        schema.load(Path("config.toml"))


def test_whole_numbers_serve_where_any_do():
    Path("config.toml").write_text("optimizer.learning_rate = 1")
    assert schema.load(Path("config.toml")).optimizer.learning_rate == 1.0


def test_ctrl_c_is_one_word_and_status_130(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert exit_status(interrupted) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_nobody_reads_on():
    program = "import sys\nfrom train.errors import exit_status\nsys.exit(exit_status(lambda: print('x' * 10**6)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout.read(1) == b"x"
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1


@pytest.mark.slow
def test_questions_are_answered_better_after_a_text_model_has_learned_some(capsys):
    small = "--model.num-layers 1 --model.num-heads 2 --model.embed-dim 32 --model.context-length 64"
    main(["text", *small.split(), "--steps", "30", "--name", "prose", "--quiet"])
    lines = [json.dumps({"question": f"is {n} even?", "answer": "yes" if n % 2 == 0 else "no"}) for n in range(300)]
    Path("even.jsonl").write_text("\n".join(lines))
    arguments = ["questions", *small.split(), "--steps", "200", "--data.path", "even.jsonl", "--name", "even"]
    main([*arguments, "--start", "runs/prose"])
    out = capsys.readouterr().out
    before, *_, after = (record["accuracy"] for record in records("even") if "accuracy" in record)
    assert before < 0.2 and after > 0.9
    assert f"at the start: validation loss {records('even')[0]['validation_loss']:.3f} nats per token, 0.0 %" in out
    samples = Path("runs/even/samples.txt").read_text()
    assert "Q: is 1" in samples and "(right: " in samples.split("--- step 200")[0]
    assert (
        "".join(write(Sample(Path("runs/even"), prompt="Q: is 8 even?\nA: ", temperature=0.0)))
        == "Q: is 8 even?\nA: yes"
    )

    # killed before its first checkpoint, it starts from the same weights again
    metrics = Path("runs/even/metrics.jsonl")
    whole = metrics.read_bytes()
    metrics.write_bytes(b"")
    shutil.rmtree("runs/even/checkpoints")
    main(["questions", "--resume", "--name", "even", "--quiet"])
    assert metrics.read_bytes() == whole

    with pytest.raises(InputError, match="--start runs/prose: a run cannot start from itself"):
        main(["text", "--start", "runs/prose", "--name", "prose"])
    with pytest.raises(InputError, match=r"runs/nowhere: no training run is here; runs: .*prose"):
        main([*arguments, "--start", "runs/nowhere"])
    with pytest.raises(InputError, match=r"--start runs/prose: it has another model; model.embed_dim is 64, there 32"):
        main([*arguments, "--start", "runs/prose", "--model.embed-dim", "64"])


@pytest.mark.training
@pytest.mark.parametrize("name", ["copy", "reverse", "sort", "add"])
def test_the_textbook_tasks_are_learned(name):
    main([name, "--quiet"])
    assert records(name)[-1]["accuracy"] >= 0.99


@pytest.mark.training
def test_the_default_run_learns_english():
    result = command("train", timeout=1800)
    assert result.returncode == 0, result.stderr
    losses = [record["validation_loss"] for record in records("text") if "validation_loss" in record]
    assert losses[-1] < 2.0
    assert f"validation loss {losses[-1]:.3f} nats per token" in result.stdout


@pytest.mark.slow
def test_a_gpt2_learns_more(capsys):
    """From a directory; the first validation is that of the weights as they were."""
    from tokenizers import ByteLevelBPETokenizer

    from attention_jax.pretrained import build_gpt2, save_gpt2
    from train.step import next_token_losses

    Path("my.txt").write_text("to be or not to be, that is the question.\n" * 200)
    made = ByteLevelBPETokenizer()
    made.train(["my.txt"], vocab_size=300, min_frequency=1)
    model = build_gpt2(made.get_vocab_size(), 32, 16, 2, 2, rngs=nnx.Rngs(0))
    model.tokens.embedding[...] *= 30
    save_gpt2(model, "small")
    made.save("small/tokenizer.json")

    sizes = (
        "--model.num-layers 2 --model.num-heads 2 --model.embed-dim 16 --model.context-length 32 --model.dtype float32"
    )
    arguments = [
        "gpt2",
        "--start",
        "small",
        "--data.path",
        "my.txt",
        *sizes.split(),
        "--steps",
        "40",
        "--eval-every",
        "20",
    ]
    main([*arguments, "--optimizer.learning-rate", "0.003"])
    out = capsys.readouterr().out
    first, *_, last = (record["validation_loss"] for record in records("gpt2") if "validation_loss" in record)
    assert last < 0.7 * first and "at the start: validation loss" in out
    _, tokenizer, _ = run_directory.load_start(Path("small"))
    _, held_out = split(tokenizer.encode(Path("my.txt").read_text()), 0.1, 32)
    losses = [
        next_token_losses(model, jax.numpy.asarray(tokens))[0].mean()
        for tokens in whole(held_out, batch_size=1, length=33)
    ]
    assert first == pytest.approx(np.mean(losses), rel=1e-4)
    assert "".join(write(Sample(Path("runs/gpt2"), prompt="to be", length=5))).startswith("to be")

    with pytest.raises(InputError, match=r"--start small: it has another model; model.num_layers is 3, there 2"):
        main([*arguments, "--model.num-layers", "3"])
    with pytest.raises(InputError, match=r"--start small: it has another model; data.vocab_size is 500, there 1024"):
        main([*arguments, "--data.vocab-size", "500"])
    Path("small/model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"--start small: small/model.safetensors is no safetensors file"):
        main(arguments)
