"""Byte-pair encoding on bytes: the pair of neighbouring tokens that is most frequent becomes a token, again and again.

1. A text is cut before its words, at numbers and at signs (the expression of GPT-2); no token reaches over a cut.
2. The vocabulary begins with the end token and the 256 bytes, so that every text has tokens and comes back as it was.
3. Each merge joins the pair that occurs most often in the texts; of pairs that occur as often, the one of lower ids.
4. A text is encoded by the merges in the order in which they were learnt.

Training and encoding are Hugging Face's `tokenizers`, imported when they are needed; `tokenizer.json` is its file. Sources:
Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; on bytes: Radford et al. 2019, GPT-2. Deliberately absent:
normalization and lower case (they lose text), tokens for what is unknown (nothing is), dropout of merges, and the unigram
model, which that library does not learn the same way twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import TextTokenizer
from components.registry import ComponentError
from components.text_tokenizers._texts import END, before_end, byte_letters, checked

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SMALLEST = 257  # the bytes and the end


class BPE(TextTokenizer):
    """`vocabulary` tokens, `end` among them; a pair that occurs less often than `min_frequency` is never joined.

    >>> tokenizer = BPE(vocabulary=258)
    >>> tokenizer.fit(["so so so"])
    >>> [len(tokens) for tokens in tokenizer.encode(["so", "os"])]
    [1, 2]
    """

    end = 0

    def __init__(
        self, *, vocabulary: Annotated[int, Field(ge=1)] = 4096, min_frequency: Annotated[int, Field(ge=1)] = 2
    ) -> None:
        if vocabulary < _SMALLEST:
            raise ComponentError(
                f"expected at least {_SMALLEST} tokens (the 256 bytes and the end), got {vocabulary}", ("vocabulary",)
            )
        self.vocabulary, self.min_frequency = vocabulary, min_frequency
        self._learnt: Tokenizer | None = None

    def fit(self, texts: Iterable[str]) -> None:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        learnt = Tokenizer(models.BPE())
        learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        learnt.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary,
            min_frequency=self.min_frequency,
            special_tokens=[END],
            initial_alphabet=byte_letters(),
            show_progress=False,
        )
        learnt.train_from_iterator(checked(texts), trainer)
        self._take(learnt)

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        found = self._model.encode_batch(list(checked(texts)), add_special_tokens=False)
        return [torch.tensor(one.ids, dtype=torch.int64) for one in found]

    def decode(self, tokens: Sequence[Tensor]) -> list[str]:
        ids = [before_end(one, self.vocabulary, self.end) for one in tokens]
        return self._model.decode_batch(ids, skip_special_tokens=False)

    def dump(self) -> str:
        return self._model.to_str()

    def restore(self, stored: str) -> None:
        from tokenizers import Tokenizer

        try:
            found = Tokenizer.from_str(stored)
        except Exception as error:  # what the library raises has no class of its own
            raise ValueError(f"not readable by tokenizers ({error})") from error
        if found.token_to_id(END) != self.end:
            raise ValueError(f"expected '{END}' to be token {self.end}, it is {found.token_to_id(END)}")
        self._take(found)

    def _take(self, learnt: Tokenizer) -> None:
        size = learnt.get_vocab_size()
        if size != self.vocabulary:
            raise ComponentError(
                f"expected {self.vocabulary} tokens, there are {size}: with min_frequency {self.min_frequency} these texts "
                "give no more; ask for fewer, or give more texts",
                ("vocabulary",),
            )
        learnt.encode_special_tokens = True  # a text in which the end's name is written does not end there
        self._learnt = learnt

    @property
    def _model(self) -> Tokenizer:
        if self._learnt is None:
            raise ValueError("this tokenizer has no vocabulary yet: `fit` it, or load one")
        return self._learnt
