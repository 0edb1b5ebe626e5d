"""What is learned: tokenizers, tasks, questions, downloads; and what is refused before anything is compiled."""

import dataclasses
import hashlib
import io
import json
import operator
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import PRESETS, add, copy, questions, text
from configs.schema import Data
from train import tokenizer as tokenizers
from train.data import download, open_dataset, pairs, tasks
from train.data.text import read_text
from train.errors import InputError
from train.tokenizer import BpeTokenizer, ByteTokenizer, CharTokenizer, build_tokenizer

PROSE = "the cat sat on the mat and the rat ate the cat's hat; " * 20
BPE = BpeTokenizer.of(PROSE, 275)


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@given(st.text(max_size=50))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back(written):
    for tokenizer in (ByteTokenizer(), BPE, CharTokenizer.of(written + "x")):
        tokens = tokenizer.encode(written)
        assert tokens.dtype == np.int32 and all(0 <= token < len(tokenizer) for token in tokens)
        assert tokenizer.decode(tokens) == written


def test_pairs_make_text_shorter():
    assert len(BPE) == 275 and len(BPE.encode(PROSE)) < 0.5 * len(PROSE)
    assert [BPE.decode([token]) for token in BPE.encode("the cat")] == ["the", " cat"]


@pytest.mark.parametrize(
    "tokenizer", [CharTokenizer.of("banana"), ByteTokenizer(), BPE], ids=lambda t: type(t).__name__
)
def test_tokenizers_survive_a_file(tokenizer):
    tokenizers.save(tokenizer, Path("tokenizer.json"))
    assert tokenizers.load(Path("tokenizer.json")) == tokenizer
    assert tokenizers.load(Path("tokenizer.json")) != CharTokenizer.of("other")


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"kind": "other"}',
        '{"kind": "char", "words": 3}',
        '{"kind": "bpe", "model": {"a": 1}}',
        '{"kind": "char", "vocabulary": "ba"}',
    ],
)
def test_what_is_not_a_tokenizer_is_refused(content):
    Path("tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer"):
        tokenizers.load(Path("tokenizer.json"))


def test_a_text_too_short_for_its_vocabulary_is_refused():
    with pytest.raises(InputError, match=r"--data.vocab-size 5000: the text has pairs for \d+ tokens only"):
        build_tokenizer("bpe", PROSE, 5000)


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_any_text_by_any_tokenizer(kind):
    Path("mine.txt").write_text(PROSE + "é€😀" + PROSE, encoding="utf-8")
    config = dataclasses.replace(
        text, tokenizer=kind, data=Data(path=Path("mine.txt"), vocab_size=270, batch_size=2), model=copy.model
    )
    dataset = open_dataset(config)
    assert open_dataset(config).digest == dataset.digest
    tokens = np.concatenate([dataset.batch(1).tokens.ravel(), dataset.validation[0].tokens.ravel()])
    assert dataset.tokenizer.decode(dataset.batch(1).tokens[0])[2:-2] in PROSE + "é€😀" + PROSE
    assert tokens.max() < len(dataset.tokenizer)


def test_the_mark_that_a_file_is_utf_8_is_no_text():
    Path("mine.txt").write_text("mine", encoding="utf-8-sig")
    assert read_text(Path("mine.txt")) == "mine"


ANSWERS = {
    "copy": lambda question: question,
    "reverse": lambda question: "".join(reversed(question)),
    "sort": lambda question: "".join(sorted(question)),
    "add": lambda question: str(operator.add(*map(int, question.split("+")))),
}


def unpacked(batch, tokenizer):
    """The questions and answers of a batch, by what counts in it."""
    for tokens, counted in zip(batch.tokens, batch.counted, strict=True):
        first, last = np.flatnonzero(counted)[[0, -1]]
        assert counted[first : last + 1].all() and (tokens[last + 2 :] == tokens[last + 1]).all()
        yield tokenizer.decode(tokens[: first + 1]), tokenizer.decode(tokens[first + 1 : last + 2])


@pytest.mark.parametrize("name", ANSWERS)
def test_tasks(name):
    config = PRESETS[name]
    dataset = open_dataset(config)
    learned = [pair for step in (1, 2) for pair in unpacked(dataset.batch(step), dataset.tokenizer)]
    asked = [pair for batch in dataset.validation for pair in unpacked(batch, dataset.tokenizer)]
    for question, answer in learned + asked:
        assert question.endswith("=") and answer == ANSWERS[name](question[:-1]) + "\n"
    assert not {question for question, _ in learned} & {question for question, _ in asked}
    assert all(pairs.is_asked(pair, config.data.validation_fraction) for pair in asked)
    assert {len(question) for question, _ in learned} == {len(question) for question, _ in asked}
    pair = tasks.longest(name, config.data.task_length)
    assert pair[1] == ANSWERS[name](pair[0][:-1])
    assert max(len(question + answer) for question, answer in learned) <= len("".join(pair)) + 1

    assert open_dataset(dataclasses.replace(config, tokenizer="byte")).digest != dataset.digest
    again, other = open_dataset(config), open_dataset(dataclasses.replace(config, seed=1))
    again.batch(7)
    for one, two in zip(again.batch(2), dataset.batch(2), strict=True):
        np.testing.assert_array_equal(one, two)
    assert (other.batch(2).tokens != dataset.batch(2).tokens).any() and other.shown == dataset.shown
    assert (dataset.batch(1).tokens != dataset.batch(2).tokens).any()


def test_a_task_too_long_for_the_context_is_refused():
    config = dataclasses.replace(add, data=dataclasses.replace(add.data, task_length=9))
    with pytest.raises(
        InputError, match=r"have 31 tokens, and --model.context-length 12 takes 13: raise it, or shorten"
    ):
        open_dataset(config)


@pytest.mark.slow
def test_a_task_without_questions_is_refused():
    config = dataclasses.replace(copy, data=dataclasses.replace(copy.data, task_length=1, validation_fraction=1e-9))
    with pytest.raises(InputError, match=r"no questions to ask: raise --data\.task-length"):
        open_dataset(config)


def test_questions_about_spelling():
    dataset = open_dataset(questions)
    for batch in (dataset.batch(1), *dataset.validation[:3]):
        for question, answer in unpacked(batch, dataset.tokenizer):
            word = question.removesuffix("?\nA: ").split()[-1]
            right = word[0] if "first" in question else word[-1] if "last" in question else str(len(word))
            assert question.startswith("Q: ") and answer == right + "\n"


def test_questions_from_a_file():
    lines = [json.dumps({"question": f"is {n} even?", "answer": "yes" if n % 2 == 0 else "no"}) for n in range(100)]
    Path("even.jsonl").write_text("\n".join(lines))
    config = dataclasses.replace(questions, data=Data(source="questions", path=Path("even.jsonl"), batch_size=4))
    dataset = open_dataset(config)
    seen = {pair for step in range(100) for pair in unpacked(dataset.batch(step), dataset.tokenizer)}
    asked = {pair for batch in dataset.validation for pair in unpacked(batch, dataset.tokenizer)}
    assert ("Q: is 5 even?\nA: ", "no\n") in seen | asked and not seen & asked
    assert 85 < len(seen) < 97 and len(seen) + len(asked) > 95

    for line, reason in (
        ("yes", "Expecting value"), ('{"question": "a"}', "'answer'"), ("[]", "list indices"),
        ('{"question": "a", "answer": 3}', "both have to be strings"), ("\xff", "utf-8"),
        ('{"question": "\\ud800", "answer": ""}', "surrogates not allowed"), ("[" * 100_000, "recursion"),
    ):  # fmt: skip
        Path("even.jsonl").write_bytes("\n".join([*lines[:3], line]).encode("latin1"))
        with pytest.raises(InputError, match=f"--data.path even.jsonl: line 4 is not .*{reason}"):
            open_dataset(config)
    for content, message in (
        ("", "the file is empty"), (lines[0], "1 questions leave"),
        ("\n".join([*lines, json.dumps({"question": "q" * 200, "answer": "a"})]), "have 209 tokens, and"),
    ):  # fmt: skip
        Path("even.jsonl").write_text(content)
        with pytest.raises(InputError, match=message):
            open_dataset(config)


def test_downloads(monkeypatch):
    content = b"to be or not to be"
    right, asked = hashlib.sha256(content).hexdigest(), []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    target = Path("cache/text.txt")
    for _ in range(2):
        assert download.download("https://example.org/text", right, target).read_bytes() == content
    assert asked == ["https://example.org/text"]  # once
    target.write_bytes(b"to be or not to bee")  # what is there is not believed either
    assert download.download("https://example.org/text", right, target).read_bytes() == content
    for url, sha256, most, message in (
        ("http://example.org", right, 100, "only https is downloaded; download it by hand"),
        ("https://example.org", "0" * 64, 100, "has SHA-256 .*, and not 0000.* as it should"),
        ("https://example.org", right, 5, "has more than the 5 bytes it should"),
    ):
        with pytest.raises(InputError, match=message):
            download.download(url, sha256, Path("cache/other.txt"), most)

    def offline(url, timeout):
        raise OSError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(
        InputError, match=r"cannot be downloaded \(no route to host\); download it by hand and give --data.path"
    ):
        download.download("https://example.org", right, Path("cache/other.txt"))
    assert sorted(Path("cache").iterdir()) == [target]


def test_shakespeare_comes_from_the_cache(monkeypatch):
    asked = []
    monkeypatch.setattr(download, "download", lambda *arguments: asked.append(arguments) or Path("input.txt"))
    monkeypatch.setenv("XDG_CACHE_HOME", "elsewhere")
    Path("input.txt").write_text(PROSE)
    config = dataclasses.replace(PRESETS["shakespeare"], model=copy.model)
    assert open_dataset(config).tokenizer == CharTokenizer.of(PROSE)
    ((url, sha256, target),) = asked
    assert url.startswith("https://") and url.endswith("/tinyshakespeare/input.txt") and len(sha256) == 64
    assert target == Path("elsewhere/attention_jax/tinyshakespeare.txt")
