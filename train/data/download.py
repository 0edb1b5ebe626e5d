"""Texts from the network: over https, known by their hash, and written whole or not at all."""

import hashlib
import os
import tempfile
import urllib.request
from pathlib import Path

from train.errors import InputError

TINY_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
MOST_BYTES = 2 * 2**20


def tiny_shakespeare() -> Path:
    """Where Tiny Shakespeare is, in the user's cache; it is downloaded the first time."""
    return download(TINY_SHAKESPEARE, TINY_SHAKESPEARE_SHA256, cache() / "tinyshakespeare.txt")


def cache() -> Path:
    """The folder that downloads are kept in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attention_jax"


def download(url: str, sha256: str, target: Path, most_bytes: int = MOST_BYTES) -> Path:
    """`target`, with the content of that hash; fetched if it is not there yet.

    Raises:
      InputError: it cannot be fetched, is larger than `most_bytes`, or is another content.
    """
    if target.exists() and hashlib.sha256(target.read_bytes()).hexdigest() == sha256:
        return target
    advice = f"download it by hand and give --data.path, or put it at {target}"
    if not url.startswith("https://"):
        raise InputError(f"{url}: only https is downloaded; {advice}")
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            content = response.read(most_bytes + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{url}: cannot be downloaded ({error}); {advice}") from error
    if len(content) > most_bytes:
        raise InputError(f"{url}: has more than the {most_bytes:,} bytes it should; {advice}")
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise InputError(f"{url}: has SHA-256 {found}, and not {sha256} as it should; {advice}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
            file.write(content)
        Path(file.name).replace(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror}); {advice}") from error
    return target
