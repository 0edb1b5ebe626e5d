"""Questions with answers, one pair a sequence: only the answers are learned, and each is right or wrong as a whole."""

import hashlib
import zlib
from collections.abc import Sequence

import numpy as np

from configs.schema import Config, Data
from train.data import END, Dataset, questions, tasks
from train.errors import InputError
from train.step import Batch
from train.tokenizer import Tokenizer, build_tokenizer

Pair = tuple[str, str]

ASKED = 1024
SHOWN = 10
MOST_TRIES = 100_000


def dataset(config: Config, tokenizer: Tokenizer | None) -> Dataset:
    """The pairs of `config.data`. A question's hash says whether it is learned or asked: never both.

    Raises:
      InputError: a file that is wrong, or a pair that the context is too short for.
    """
    data, length = config.data, config.model.context_length + 1
    if data.source == "questions":
        known = questions.read(data.path)
        learned = [pair for pair in known if not is_asked(pair, data.validation_fraction)]
        asked = [pair for pair in known if is_asked(pair, data.validation_fraction)]
        if not learned or not asked:
            raise InputError(
                f"{len(known)} questions leave {len(learned)} to learn and {len(asked)} to be asked: give more, or "
                "another --data.validation-fraction"
            )
    else:
        learned, asked = None, drawn(data, np.random.default_rng(0), ASKED, asked=True)
        longest = tasks.longest(data.source, data.task_length)
        known = [longest, (tasks.CHARACTERS, "")]
    if tokenizer is None:
        text = "".join(question + answer + END for question, answer in known + asked)
        tokenizer = build_tokenizer(config.tokenizer, text, data.vocab_size)
    for pair in [longest] if learned is None else known:
        pack([pair], tokenizer, length)

    def batch(step: int) -> Batch:
        random = np.random.Generator(np.random.Philox(key=[config.seed, step]))
        if learned is None:
            return pack(drawn(data, random, data.batch_size, asked=False), tokenizer, length)
        chosen = random.integers(len(learned), size=data.batch_size)
        return pack([learned[index] for index in chosen], tokenizer, length)

    size = min(data.batch_size, len(asked))
    whole = len(asked) // size * size  # in batches of one size
    learning = "new questions in every step" if learned is None else f"{len(learned):,} questions to learn"
    return Dataset(
        tokenizer=tokenizer,
        batch=batch,
        validation=[pack(asked[first : first + size], tokenizer, length) for first in range(0, whole, size)],
        shown=asked[:SHOWN],
        answers=True,
        summary=f"{learning}, {whole:,} others to be asked, vocabulary of {len(tokenizer)}",
        digest=hashlib.sha256(repr((data.source, data.task_length, known)).encode()).hexdigest(),
    )


def is_asked(pair: Pair, fraction: float) -> bool:
    """Whether a question is among the share that is never learned."""
    return zlib.crc32(pair[0].encode()) < fraction * 2**32


def drawn(data: Data, random: np.random.Generator, count: int, *, asked: bool) -> list[Pair]:
    """Random pairs of a task, all to be asked or all to be learned.

    Raises:
      InputError: there seem to be none.
    """
    pairs: list[Pair] = []
    tried = 0
    while len(pairs) < count:
        if not pairs and tried > MOST_TRIES:
            which = "ask" if asked else "learn"
            raise InputError(f"no questions to {which}: raise --data.task-length, or change --data.validation-fraction")
        pair = tasks.draw(data.source, data.task_length, random)
        if is_asked(pair, data.validation_fraction) == asked:
            pairs.append(pair)
        tried += 1
    return pairs


def pack(pairs: Sequence[Pair], tokenizer: Tokenizer, length: int) -> Batch:
    """Pairs as sequences `[B, length]`, filled up with their last token; the answers and their ends count.

    Raises:
      InputError: a pair has more tokens.

    >>> from train.tokenizer import CharTokenizer
    >>> batch = pack([("ab=", "ba"), ("c=", "c")], CharTokenizer("\\n=abc"), 7)
    >>> batch.tokens.tolist(), batch.counted.sum(1).tolist()
    ([[2, 3, 1, 3, 2, 0, 0], [4, 1, 4, 0, 0, 0, 0]], [3, 2])
    """
    tokens = np.empty((len(pairs), length), np.int32)
    counted = np.zeros((len(pairs), length - 1), bool)
    for row, (question, answer) in enumerate(pairs):
        asked, answered = tokenizer.encode(question), tokenizer.encode(answer + END)
        end = len(asked) + len(answered)
        if end > length:
            raise InputError(
                f"a question and its answer have {end} tokens, and --model.context-length {length - 1} takes "
                f"{length}: raise it, or shorten {question + answer!r}"
            )
        tokens[row, : len(asked)], tokens[row, len(asked) : end], tokens[row, end:] = asked, answered, answered[-1]
        counted[row, len(asked) - 1 : end - 1] = True
    return Batch(tokens, counted)
