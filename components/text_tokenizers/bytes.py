"""Plain bytes: token b is byte b of a text's UTF-8, and 256 ends it.

1. Nothing is learnt, so nothing depends on the texts: 257 tokens, the same for every language.
2. What is drawn need be no UTF-8; bytes that are none become U+FFFD.
3. `tokenizer.json` says the same as a byte-pair encoding without merges.

Source: Xue et al. 2021, ByT5, https://arxiv.org/abs/2105.13626. Deliberately absent: that paper's other special tokens
(padding is `segments` here) and its shift of the bytes by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from components.interfaces import TextTokenizer
from components.text_tokenizers._texts import END, before_end, byte_letters, checked


class Bytes(TextTokenizer):
    """
    >>> Bytes().encode(["hé"])
    [tensor([104, 195, 169])]
    >>> Bytes().decode([torch.tensor([104, 195, 169, 256, 104])])
    ['hé']
    """

    vocabulary = 257
    end = 256

    def __init__(self) -> None:
        pass

    def fit(self, texts: Iterable[str]) -> None:
        """There is nothing to learn; the texts are not read."""

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        return [torch.tensor(list(text.encode()), dtype=torch.int64) for text in checked(texts)]

    def decode(self, tokens: Sequence[Tensor]) -> list[str]:
        return [bytes(before_end(ids, self.vocabulary, self.end)).decode(errors="replace") for ids in tokens]

    def dump(self) -> str:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        vocabulary = {letter: byte for byte, letter in enumerate(byte_letters())} | {END: self.end}
        written = Tokenizer(models.BPE(vocabulary, []))
        written.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        written.decoder = decoders.ByteLevel()
        written.add_special_tokens([AddedToken(END, special=True, normalized=False)])
        return written.to_str()

    def restore(self, stored: str) -> None:
        if stored != self.dump():
            raise ValueError("it is not the vocabulary of plain bytes")
