"""Attention weights as an interactive web page: one file that fetches nothing and runs nothing but its own script."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from attention_jax.statistics import AttentionStatistics
from attention_jax.view.table import check_tokens

Arrays = dict[str, np.ndarray]
Parts = tuple[Arrays, tuple[int, ...], Arrays]

NAN = 255  # the byte that stands for NaN; the others are multiples of 1 / steps
LARGEST = 20_000_000  # bytes of numbers: what a browser opens without a long wait


class Page(str):
    """A whole HTML document; the last expression of a notebook cell shows it."""

    __slots__ = ()

    def __repr__(self) -> str:  # a notebook keeps it beside the page, which it would otherwise hold twice
        return f"<Page of {len(self):,} characters>"

    def save(self, path: str | Path) -> Path:
        """Writes the page to `path` as UTF-8, making its parent directories, and returns the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.encode())  # not text, whose line ends some systems change: the hashes would not fit
        return path

    def _repr_html_(self) -> str:
        frame = 'sandbox="allow-scripts" style="width:100%;height:800px;border:0"'
        return f'<iframe srcdoc="{escape(self)}" title="Attention" {frame}></iframe>'


def html(
    weights: ArrayLike | AttentionStatistics,
    tokens: Sequence[str],
    *,
    key_tokens: Sequence[str] | None = None,
    title: str = "Attention",
) -> Page:
    """A page to explore attention with: all heads at a glance, one head as a matrix, as lines and over the text.

    The page is one file that needs no network, and shows tokens and title as text whatever they hold.

    Args:
      weights: floating `[layers, N, T, S]`, `[N, T, S]` or `[T, S]`, such as `attention_weights` returns for one
        example, or the `AttentionStatistics` of a long one. NaN is shown as such.
      tokens: T labels of the queries.
      key_tokens: S labels of the keys. Default: `tokens`, where T = S.
      title: the heading.

    Returns:
      The document, a `str` that can `save(path)` itself and that a notebook shows. The page says how exact its weights
      are: to within 0.003, or 0.005 where that keeps it below a million bytes.

    Raises:
      TypeError: weights that are not floating, labels or a title that are not strings.
      ValueError: weights and labels that do not fit each other, weights outside 0 to 1, too many of them for a page.

    >>> page = html(np.tril(np.full((2, 3, 4, 4), 0.25)), list("abcd"), title="Four letters")
    >>> page.save("/dev/null").name, len(page) < 100_000
    ('null', True)
    """
    if not isinstance(title, str):
        raise TypeError(f"expected title as a string, got {type(title).__name__}")
    read: Callable[[Any], Parts] = statistics_arrays if hasattr(weights, "top_keys") else weights_arrays
    arrays, shape, numbers = read(weights)
    T, S = shape[-2:]
    tokens = check_labels("tokens", tokens, "T", T)
    if key_tokens is None and T != S:
        raise ValueError(f"expected key_tokens, S = {S} of them, because tokens labels the T = {T} queries, got None")
    keys = None if key_tokens is None else check_labels("key_tokens", key_tokens, "S", S)
    if keys is None and T > 1 and "weights" in arrays:
        numbers["previous_token"] = mean_of_seen(np.diagonal(arrays["weights"], -1, axis1=-2, axis2=-1))
    data: dict[str, Any] = {"title": title, "tokens": tokens, "keys": keys, "shape": shape}
    data["numbers"] = {name: as_lists(array) for name, array in numbers.items()}
    page = fill(data, arrays, steps=254)
    if len(page) > 1_000_000 and len(coarser := fill(data, arrays, steps=126)) <= 1_000_000:
        return coarser
    return page


def weights_arrays(weights: ArrayLike) -> Parts:
    """The arrays that the page holds; and its shape, and its numbers about each head."""
    weights = check_floating("weights", weights)
    if not 2 <= weights.ndim <= 4 or 0 in weights.shape:
        raise ValueError(f"expected weights [layers, N, T, S], [N, T, S] or [T, S], none 0, got {weights.shape}")
    check_size(weights.size)
    weights = check_weights("weights", weights).reshape((1,) * (4 - weights.ndim) + weights.shape)
    entropy = -(weights * np.log(np.where(weights == 0, 1, weights))).sum(-1).mean(-1)
    return {"weights": weights}, weights.shape, {"entropy": entropy, "first_token": mean_of_seen(weights[..., 0])}


def mean_of_seen(weights: np.ndarray) -> np.ndarray:
    """The mean over the queries that see the key, whose weight is not 0: as `AttentionStatistics` has it."""
    return weights.sum(-1) / np.maximum((weights != 0).sum(-1), 1)


def statistics_arrays(statistics: AttentionStatistics) -> Parts:
    """The same, of `AttentionStatistics`."""
    top_keys, S = np.asarray(statistics.top_keys), np.shape(statistics.received)[-1]
    if not 3 <= top_keys.ndim <= 4 or 0 in top_keys.shape:
        raise ValueError(f"expected weights.top_keys [layers, N, T, k] or [N, T, k], none 0, got {top_keys.shape}")
    if not np.issubdtype(top_keys.dtype, np.integer):
        raise TypeError(f"expected weights.top_keys as integers, got {top_keys.dtype}")
    least, most = top_keys.min(), top_keys.max()
    if least < -1 or most >= S:
        raise ValueError(f"expected weights.top_keys from -1 to S - 1 = {S - 1}, got {least} to {most}")
    *heads, T, k = top_keys.shape
    layers, N = (1, *heads)[-2:]
    check_size(layers * N * (T * (5 * k + 8) + 4 * S))

    def field(name: str, *shape: int) -> np.ndarray:
        array = check_floating(f"weights.{name}", getattr(statistics, name))
        if array.shape != (*heads, *shape):
            raise ValueError(f"expected weights.{name} {(*heads, *shape)}, as weights.top_keys, got {array.shape}")
        return array.astype(np.float32).reshape(layers, N, *shape)

    arrays = {name: field(name, size) for name, size in (("entropy", T), ("distance", T), ("received", S))}
    arrays["top_keys"] = top_keys.astype(np.int32).reshape(layers, N, T, k)
    arrays["top_weights"] = check_weights("weights.top_weights", field("top_weights", T, k))
    numbers = {name: arrays[name].mean(-1) for name in ("entropy", "distance")}
    for name in ("first_token", "previous_token", "duplicate_token", "induction"):
        if getattr(statistics, name) is not None:
            numbers[name] = field(name)
    return arrays, (layers, N, T, S), numbers


def fill(data: dict[str, Any], arrays: Arrays, steps: int) -> Page:
    """The template with everything in its place, weights rounded to multiples of 1 / steps."""
    packed = {name: pack(array, steps if name.endswith("weights") else None) for name, array in arrays.items()}
    text = json.dumps({**data, "steps": steps, "nan": NAN, "arrays": packed}, allow_nan=False, separators=(",", ":"))
    for character in "<>&":  # so that no token ends the script; all that is not ASCII, json escapes itself
        text = text.replace(character, f"\\u{ord(character):04x}")
    names = "page.html", "page.css", "weights.js", "page.js"
    page, style, *scripts = (Path(__file__).with_name(name).read_text("utf-8") for name in names)
    script = "\n".join(scripts)
    parts = {"STYLE": style, "SCRIPT": script, "STYLE_HASH": sha256(style), "SCRIPT_HASH": sha256(script), "DATA": text}
    for name, part in parts.items():  # the data last, which nothing is to be replaced in
        page = page.replace(f"{{{{{name}}}}}", part)
    return Page(page)


def pack(array: np.ndarray, steps: int | None = None) -> str:
    """The array's bytes, little-endian, compressed, in base64; if steps, one byte for a number."""
    if steps:
        array = np.where(np.isnan(array), NAN, np.rint(array * steps)).astype(np.uint8)
    array = array.astype(array.dtype.newbyteorder("<"))
    packer = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_FILTERED)
    return base64.b64encode(packer.compress(array.tobytes()) + packer.flush()).decode()


def sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def as_lists(array: np.ndarray) -> list[Any]:
    return [[round(float(x), 4) if np.isfinite(x) else None for x in row] for row in array]


def check_floating(name: str, array: ArrayLike) -> np.ndarray:
    array = np.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"expected {name} as a floating array, got {array.dtype}")
    return array


def check_weights(name: str, weights: np.ndarray) -> np.ndarray:
    weights = weights.astype(np.float32)
    if (weights < 0).any() or (weights > 1.01).any():  # a little above 1 is rounding
        raise ValueError(f"expected {name} from 0 to 1, got {np.nanmin(weights):.4g} to {np.nanmax(weights):.4g}")
    return np.minimum(weights, 1)


def check_size(size: int) -> None:
    if size > LARGEST:
        raise ValueError(
            f"expected weights that take {LARGEST:,} bytes or fewer in the page, got {size:,}: "
            "choose fewer layers or heads, or pass attention_statistics of them"
        )


def check_labels(name: str, labels: Sequence[str], letter: str, length: int) -> list[str]:
    labels = check_tokens(name, labels)
    if len(labels) != length:
        raise ValueError(f"expected {name} to be {letter} = {length} strings, as weights, got {len(labels)}")
    return labels
