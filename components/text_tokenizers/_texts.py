"""What every text tokenizer checks, the name of the token that ends a text, and how tokenizers.json writes bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

END = "<|end|>"


def checked(texts: Iterable[str]) -> Iterator[str]:
    """The same texts; ValueError names the first that no bytes can say (half of a surrogate pair)."""
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text {number}, character {error.start}: {text[error.start]!r} alone is no text"
            ) from None
        yield text


def before_end(tokens: Tensor, vocabulary: int, end: int) -> list[int]:
    """[T] -> the ids that stand before the first `end`; ValueError for what are no tokens of this vocabulary."""
    if tokens.ndim != 1 or tokens.dtype != torch.int64:
        raise ValueError(f"expected the tokens of one text, [T] int64, got {list(tokens.shape)} {tokens.dtype}")
    ids: list[int] = tokens.tolist()
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        raise ValueError(f"expected tokens from 0 to {vocabulary - 1}, got {min(ids)} to {max(ids)}")
    return ids[: ids.index(end)] if end in ids else ids


def byte_letters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary, [256]: printable ones for themselves, the others,
    in their order, from U+0100 on."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    themselves = {ord(letter): letter for letter in letters if ord(letter) < 256}
    others = iter(letter for letter in letters if ord(letter) >= 256)
    return [themselves.get(byte) or next(others) for byte in range(256)]
