"""The one sampling engine: every sampler and every rollout draws its tokens here.

1. `Decoding` walks over positions: the generator's hidden state goes to its head, the head asks the `Policy` for codes,
   the codes go back into the generator, whose cache of keys and values is static.
2. Classifier-free guidance runs the rows once with their conditions and once with none, as one batch of 2 B; a scale of 1
   is off (the second half is then not computed), 0 is unconditional. It may change over the positions.
3. Rules (`rules.py`) reshape the guided logits; the softmax of what is left is the *sampled policy*.
4. One uniform number a row and a token, inverted through the cumulative distribution, gives the token. All numbers of a
   row are drawn together, rows in order: on the CPU a sample depends on its row, not on how many come with it.
5. A row that has drawn the tokenizer's `end` is filled with it; when all have, the decoding is over. A prefix is read in
   one forward; with `samples` more than one, condition and prefix are read once and continued so many times.

On a GPU the step is compiled with static shapes. Samplers that need more than one position a step (drafts and their
verification, trees, search) use `Decoding`'s parts: the state rewinds, `extend` takes several positions at once.
Guidance source: Ho and Salimans 2022, https://arxiv.org/abs/2207.12598 (their w is guidance - 1); static shapes and a
compiled step: PyTorch Labs 2023, gpt-fast. Deliberately absent: beams, prompts of different lengths in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from components.interfaces import Autoregressive
from components.sampling._packed import Packed
from components.sampling._policy import Guidance, Policy
from components.sampling.rules import Rule
from components.tokenizers._tokens import check_codes

OnStep = Callable[[int, Tensor], None]


def generate(
    generator: Autoregressive,
    condition: Tensor,
    rng: torch.Generator,
    rules: Sequence[Rule] = (),
    *,
    guidance: float | Guidance = 1.0,
    prefix: Tensor | None = None,
    samples: int = 1,
    on_step: OnStep | None = None,
) -> Tensor:
    """condition [B, ...] -> tokens [B * samples, L] int64, those of `prefix` [B, P, G] first; the samples of a condition
    follow one another.

    `rng` lives on the generator's device. `on_step(position, codes [B, G])` is called after each position, for streaming.
    Raises ValueError for what is no condition, or a prefix that does not fit."""
    decoding = Decoding(generator, condition, rng, rules, guidance=guidance, prefix=prefix, samples=samples)
    for position, codes in decoding:
        if on_step is not None:
            on_step(position, codes)
    return decoding.tokens()


def generate_with_log_probs(
    generator: Autoregressive,
    condition: Tensor,
    rng: torch.Generator,
    rules: Sequence[Rule] = (),
    *,
    guidance: float | Guidance = 1.0,
) -> tuple[Tensor, Tensor]:
    """As `generate`, with the log-probability in nats of each token drawn *under the sampled policy*, [B, L] float32:
    after guidance and rules, so it equals `generator.log_probs` only without both."""
    decoding = Decoding(generator, condition, rng, rules, guidance=guidance, log_probs=True)
    for _ in decoding:
        pass
    return decoding.tokens(), decoding.log_probs()


class Decoding(Iterator[tuple[int, Tensor]]):
    """One batch while it is drawn: each `next` settles a position and gives (its number, its codes [B, G]).

    >>> from components import registry
    >>> from components.interfaces import TokenSpec
    >>> small = {"type": "transformer", "depth": 1, "width": 32, "heads": 2}
    >>> config = {"type": "next_token", "backbone": small, "head": {"type": "categorical"}}
    >>> model = registry.build(Autoregressive, config, TokenSpec((8,), 4, "sequence"), 3)
    >>> [position for position, codes in Decoding(model, torch.tensor([0, 1]), torch.Generator())]
    [0, 1, 2, 3]
    """

    def __init__(
        self,
        generator: Autoregressive,
        condition: Tensor,
        rng: torch.Generator,
        rules: Sequence[Rule] = (),
        *,
        guidance: float | Guidance = 1.0,
        prefix: Tensor | None = None,
        samples: int = 1,
        log_probs: bool = False,
    ) -> None:
        self.generator, self.spec = generator, generator.spec
        self.hidden: Tensor | None = None  # of the next position, [B or 2 B, W]
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        self.rows, device = len(condition) * samples, condition.device
        generator.conditioner.check(condition)
        self.position = 0 if prefix is None else prefix.shape[1]
        self._check_prefix(prefix, len(condition))
        # Made outside inference mode: the result may be used in training.
        self.codes = torch.empty(self.rows, self.spec.positions, self.spec.codes, dtype=torch.int64, device=device)
        self.taken = torch.zeros(self.codes.shape, device=device) if log_probs else None
        guidance = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
        uniform = torch.rand(self.rows, self.spec.length, generator=rng, device=device, dtype=torch.float64)
        self.policy = Policy(rng, rules, guidance, uniform=uniform)
        if log_probs:
            self.policy.keep_log_probs()
        self.finished = None if self.spec.end is None else torch.zeros(self.rows, dtype=torch.bool, device=device)
        self.state: Any = None
        if not self.rows:
            return
        self.packed = Packed.of(generator)
        self.extend = compiled(generator) if device.type == "cuda" else generator.extend
        with sampling_mode(generator, self.packed):
            start = None
            if prefix is not None:
                self.codes[:, : self.position] = prefix.repeat_interleave(samples, 0)
                start = self.policy.with_twins(prefix)
            twins = self.policy.twins
            asked = torch.cat([condition, generator.conditioner.null(condition)]) if twins else condition
            self.hidden, self.state = generator.begin(asked, start)  # [B or 2 B, W]
            if samples > 1:
                self.hidden, self.state = self.hidden.repeat_interleave(samples, 0), self.state.repeat(samples)

    def __next__(self) -> tuple[int, Tensor]:
        position, positions = self.position, self.spec.positions
        if not self.rows or position == positions or (self.finished is not None and bool(self.finished.all())):
            raise StopIteration
        with sampling_mode(self.generator, self.packed):
            if self.hidden is None:
                latest = self.policy.with_twins(self.codes[:, position - 1 : position])
                self.hidden = self.extend(latest, self.state)[:, -1]
            self.policy.at(position / positions, position * self.spec.codes, self.codes[:, :position])
            codes = self.generator.head.sample(self.hidden, self.policy)[: self.rows]
            if self.taken is not None:
                self.taken[:, position] = self.policy.log_probs()
            if self.finished is not None and self.spec.end is not None:
                codes = codes.masked_fill(self.finished[:, None], self.spec.end)
                if self.taken is not None:
                    self.taken[:, position].masked_fill_(self.finished[:, None], 0)
                self.finished = self.finished | (codes[:, 0] == self.spec.end)
            self.codes[:, position] = codes
        self.position, self.hidden = position + 1, None
        return position, self.codes[:, position]

    def tokens(self) -> Tensor:
        """[B, L], in the order of the tokenizer; positions not drawn yet hold `end`, or nothing sensible."""
        if self.position < self.spec.positions and self.spec.end is not None:
            self.codes[:, self.position :] = self.spec.end
        return self.generator.arrange(self.codes, self.state).flatten(1)

    def log_probs(self) -> Tensor:
        """[B, L] in nats under the sampled policy"""
        if self.taken is None:
            raise ValueError("log-probabilities are kept when asked for: Decoding(..., log_probs=True)")
        return self.generator.arrange(self.taken, self.state).flatten(1)

    def _check_prefix(self, prefix: Tensor | None, rows: int) -> None:
        if prefix is None:
            return
        wanted = (rows, self.spec.codes)
        if prefix.ndim != 3 or (prefix.shape[0], prefix.shape[2]) != wanted or prefix.shape[1] > self.spec.positions:
            raise ValueError(
                f"expected a prefix [{wanted[0]}, at most {self.spec.positions}, {wanted[1]}], got {list(prefix.shape)}"
            )
        check_codes(prefix, self.spec.codebook_sizes)


_COMPILED: WeakKeyDictionary[nn.Module, Callable[[Tensor, Any], Tensor]] = WeakKeyDictionary()


def compiled(generator: Autoregressive) -> Callable[[Tensor, Any], Tensor]:
    """`generator.extend` compiled for one shape at a time and kept with the generator; for caches of fixed shapes."""
    if generator not in _COMPILED:
        alone = ref(generator)  # what is kept must not keep the generator

        def extend(codes: Tensor, state: Any) -> Tensor:
            found = alone()
            assert found is not None
            return found.extend(codes, state)

        _COMPILED[generator] = torch.compile(extend, dynamic=False, mode="max-autotune-no-cudagraphs")
    return _COMPILED[generator]


@contextmanager
def sampling_mode(generator: nn.Module, packed: Packed | None = None) -> Iterator[None]:
    """Inference without dropout, which would draw from another model; afterwards the module is as it was."""
    was_training = generator.training
    if was_training:
        generator.eval()
    try:
        with torch.inference_mode(), packed or nullcontext():
            yield
    finally:
        if was_training:
            generator.train()
