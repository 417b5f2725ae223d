"""The vocabulary: every kind of component, with the shapes that go in and come out.

Letters in shapes: B batch, C channels, H W pixels, N latents (positions) per sample, D latent width, G codes per latent,
L = N * G tokens per sample, V tokens in the vocabulary, T positions of a sequence, W width of hidden states, K classes.

A component's constructor is its schema: keyword-only arguments are configuration (they stand in the recipe),
positional ones are wired by whoever builds it. `kind.family` is the package whose files hold the built-ins:
the name of a built-in is the name of its file, and the file defines one class of that kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

A = TypeVar("A")
B = TypeVar("B")


# ------------------------------------------------------------------------------------------------ values


@dataclass(frozen=True)
class ImageFormat:
    """What images look like to a network: square, `size` pixels a side, float in [-1, 1], [B, channels, size, size]."""

    size: int
    channels: Literal[1, 3]


@dataclass(frozen=True)
class TokenSpec:
    """What a tokenizer's tokens look like; handed to generator, head and sampler so that no size is said twice.

    A sample has `positions` N latents of G codes each; its tokens [B, L], L = N * G, are these codes position by position,
    so that `tokens.view(B, N, G)` are the codes. Code g is an integer in [0, codebook_sizes[g])."""

    codebook_sizes: tuple[int, ...]  # one size per code of a position
    positions: int  # N
    layout: Literal["grid", "sequence"]
    grid: tuple[int, int] | None = None  # rows, columns when the layout is a grid
    end: int | None = None  # the token after which a sequence is over, when samples have lengths of their own

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> TokenSpec:
        """From what `dataclasses.asdict` gave, as JSON keeps it."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return cls(**values)

    @property
    def codes(self) -> int:
        """G"""
        return len(self.codebook_sizes)

    @property
    def length(self) -> int:
        """L, tokens per sample"""
        return self.positions * self.codes

    @property
    def vocabulary(self) -> int:
        """V: every token is an integer in [0, V)"""
        return max(self.codebook_sizes)


@dataclass(frozen=True)
class LatentSpec:
    """What a continuous tokenizer's latents look like: [B, positions, dim] float, about standard normal."""

    dim: int  # D
    positions: int  # N
    grid: tuple[int, int] | None = None


Modality = Literal["image", "text", "audio", "array"]
MODALITIES: tuple[Modality, ...] = ("image", "text", "audio", "array")


@dataclass(frozen=True)
class Sample:
    """One sample as a source yields it: encoded bytes as they came. At least one modality is there."""

    key: str  # where it came from, unique within the source
    image: bytes | None = None  # an encoded picture (PNG, JPEG, ...)
    label: str | None = None
    caption: str | None = None
    text: str | None = None
    audio: bytes | None = None  # an encoded sound (WAV, FLAC, OGG)
    array: bytes | None = None  # a numeric array in NumPy's .npy format (motion, actions, other signals)


@dataclass(frozen=True)
class Broken:
    """A sample that a source could not read: counted, named and quarantined, never dropped in silence."""

    key: str
    reason: str


@dataclass
class Quantized:
    """What a quantizer returns: `latents` [B, N, D] after quantization (straight-through gradient), `codes` [B, N, G]
    int64, and the named auxiliary losses (scalars, already weighted)."""

    latents: Tensor
    codes: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------ handed in


class Monitor(Protocol):
    """Where a long computation reports to; given by the stage, silent in tests (`Silent`)."""

    def progress(self, done: int, total: int, note: str = "") -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...


class Silent:
    """A monitor that says nothing."""

    def progress(self, done: int, total: int, note: str = "") -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...


class Map(Protocol):
    """Order-preserving parallel map over independent work."""

    def __call__(self, function: Callable[[A], B], items: Sequence[A]) -> list[B]: ...


class Stored(Protocol):
    """An object as a sink has it: its path in the data set, the MD5 of its bytes (their name in the store), its size."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def size(self) -> int: ...


class Sink(Protocol):
    """Where shards are put, by name; picklable, so that each worker writes for itself. Putting the same again changes
    nothing."""

    def put(self, name: str, data: bytes) -> Stored: ...


class Files(Protocol):
    """A committed output wherever its bytes are: a folder here, or a tree in a store that is read through a cache."""

    def names(self) -> Sequence[str]:
        """Relative paths with '/', sorted."""
        ...

    def path(self, name: str) -> Path:
        """A local file with this content, fetched and checked if need be. Raises FileNotFoundError."""
        ...


class Batches(Protocol):
    """Training data by position: the batch of a step is a pure function of the step (and of the seed it was made
    with), so that resuming needs nothing but the step number."""

    def batch(self, step: int) -> dict[str, Tensor]: ...


# ------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Part:
    """An independent piece of a source: these files, or the rows [start, stop) of them (`stop` None: to the end).
    Without files it is a piece of whatever the source generates."""

    files: tuple[str, ...] = ()
    start: int = 0
    stop: int | None = None


class Source(ABC):
    """Yields samples in a fixed order. Constructor: `(*, config)`.

    A source that reads more than fits one worker divides itself into parts, by what there is and never by how many
    workers there are: parts are read apart from each other, by whoever is free, and the result is the same."""

    family: ClassVar[str] = "components.data.sources"
    modalities: Sequence[Modality] = ("image",)  # what its samples may hold; a column of the data set for each

    def parts(self) -> Sequence[Part]:
        """The pieces in order; by default one, the whole. May list a folder or read an index, never the data."""
        return (Part(),)

    @abstractmethod
    def read(self, part: Part) -> Iterator[Sample | Broken]:
        """The samples of one part. What cannot be read is yielded as `Broken`; only a source that cannot be used at all
        (no such folder, no credentials) raises."""

    def samples(self) -> Iterator[Sample | Broken]:
        """All parts, one after another."""
        for part in self.parts():
            yield from self.read(part)


class Transform(ABC):
    """A training-time change of images [B, C, H, W] float in [-1, 1]; the same generator gives the same change."""

    family: ClassVar[str] = "components.data.transforms"

    @abstractmethod
    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class MixtureData:
    """What a mixture method sees: the pool and the target it should serve, of one modality, either uint8 images
    [n, C, H, W] or texts. Labels (class names; None where there are none) are for reporting, and for weights that a person
    gives by label; no search reads them."""

    pool: np.ndarray | list[str]
    target: np.ndarray | list[str]
    pool_labels: Sequence[str | None]
    target_labels: Sequence[str | None]


@dataclass
class MixtureResult:
    """`sample_weights` [n_pool] float64, sum 1: the probability with which each pool sample is drawn. `summary` holds
    plain metrics, `tables` rows for report and artifacts (history, clusters), all JSON-able; `figures` are PNGs by name."""

    sample_weights: np.ndarray
    summary: dict[str, float]
    tables: dict[str, list[dict[str, Any]]]
    figures: dict[str, bytes] = field(default_factory=dict)


class Mixture(ABC):
    """Chooses weights over a pool. Constructor: `(*, config)`."""

    family: ClassVar[str] = "components.mixture"

    @abstractmethod
    def fit(self, data: MixtureData, *, seed: int, workdir: Path, map: Map, monitor: Monitor) -> MixtureResult:
        """`workdir` keeps finished proxies, so that an interrupted search continues where it stopped."""


# ------------------------------------------------------------------------------------------------ trainable


class Trainable(nn.Module):
    """Anything the one trainer trains: `forward(batch)` returns named scalar losses with the total under `loss`."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups; weight decay belongs to matrices, not to norms, biases and embeddings of one dimension."""
        decay = [p for p in self.parameters() if p.requires_grad and p.ndim >= 2]
        plain = [p for p in self.parameters() if p.requires_grad and p.ndim < 2]
        return [{"params": decay}, {"params": plain, "weight_decay": 0.0}]

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:  # pragma: no cover - interface
        raise NotImplementedError

    training_only: ClassVar[
        tuple[str, ...]
    ] = ()  # parts (names of attributes) that are not stored with what was trained

    def use(self, networks: Networks) -> None:
        """The recipe's networks that its configuration refers to, before training; frozen, and never part of it."""

    def before_step(self, step: int) -> None:
        """Called by the trainer before the forwards of a step; there are several where a batch is taken in parts."""

    def after_step(self, step: int) -> None:
        """Called by the trainer after each optimizer step (codebook revival, target networks); not after one that was left
        out."""


class FeatureExtractor(Trainable):
    """Classifies images and gives features, for rewards and metrics. Constructor: `(image, classes, *, config)`.

    Trained in the run on batches {"images": [B, C, H, W], "labels": [B]}; frozen for everything that uses it."""

    family: ClassVar[str] = "components.networks"
    transforms: Sequence[Transform] = ()  # changes of its training images, applied by whoever makes its batches

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, F]"""

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, K]"""

    def maps(self, images: Tensor) -> list[Tensor]:
        """[B, C, H, W] -> feature maps [B, channels, h, w] of several layers, for perceptual distances"""
        raise ValueError(
            f"{type(self).__name__} gives no feature maps; a perceptual distance needs a network that does"
        )


Networks = Mapping[str, FeatureExtractor]  # the recipe's `networks`, trained and frozen; `@judge` is networks["judge"]


class Quantizer(nn.Module, ABC):
    """Latents [B, N, D] <-> codes [B, N, G]. Constructor: `(dim, *, config)`.

    `forward` only looks; what follows from it (moving averages, revival, counts) happens in `after_step`, so that a step
    that is left out leaves no trace. Everything seen between `before_step` and `after_step` counts."""

    family: ClassVar[str] = "components.quantizers"
    codebook_sizes: tuple[int, ...]  # one entry per code of a latent (length G)

    @abstractmethod
    def forward(self, latents: Tensor) -> Quantized: ...

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """[B, N, G] int64 in range -> [B, N, D]; equals `forward(...).latents` for the codes it returned."""

    @abstractmethod
    def statistics(self) -> dict[str, float]:
        """How the codebooks were used in recent training: `usage` (share of codes in use, mean over codebooks),
        `perplexity` (mean over codebooks) and `dead_codes` (of all codebooks)."""

    def before_step(self, step: int) -> None:
        """Forgets what an unfinished step has left."""

    def after_step(self, step: int) -> None:
        """Called once an optimizer step."""


class Codebook(nn.Module, ABC):
    """K codes of D numbers, and how they learn. Constructor: `(size, dim, *, config)`."""

    family: ClassVar[str] = "components.quantizers.codebooks"
    decay: float = 0.99  # of the moving counts of use

    @abstractmethod
    def table(self) -> Tensor:
        """The codes that are in force, [K, D], with gradient where they have one"""

    def losses(self, latents: Tensor, quantized: Tensor) -> dict[str, Tensor]:
        """What pulls codes to latents, both [M, D], where that is a loss"""
        return {}

    @abstractmethod
    def fill(self, latents: Tensor) -> None:
        """Looks at the latents [M, D] of a training batch before they are assigned, to start from them"""

    @abstractmethod
    def update(self, latents: Tensor, codes: Tensor, counts: Tensor) -> None:
        """After a step: this process's latents [M, D] and codes [M], and the moving counts of use of all, [K]"""

    @abstractmethod
    def replace(self, which: Tensor, latents: Tensor, count: Tensor) -> None:
        """The codes that `which` [K] marks take the place of these latents [n, D], as if each had been used `count` times"""


class Initialization(ABC):
    """The first codes. Constructor: `(*, config)`."""

    family: ClassVar[str] = "components.quantizers.initializations"
    waits: ClassVar[bool]  # for the first batch of latents

    @abstractmethod
    def __call__(self, size: int, dim: int, latents: Tensor | None) -> Tensor:
        """[K, D]; the same on all processes"""


class Assignment(ABC):
    """Which code a latent gets. Constructor: `(*, config)`."""

    family: ClassVar[str] = "components.quantizers.assignments"

    @abstractmethod
    def prepare(self, vectors: Tensor) -> Tensor:
        """Latents or codes [..., D] -> as they are compared, with gradient"""

    @abstractmethod
    def nearest(self, latents: Tensor, table: Tensor) -> Tensor:
        """Prepared latents [M, D] and codes [K, D] -> [M] int64"""

    @abstractmethod
    def logits(self, latents: Tensor, table: Tensor) -> Tensor:
        """The same -> how near each code is, [M, K], with gradient"""


class GradientEstimator(ABC):
    """How a gradient comes through the choice of a code. Constructor: `(*, config)`."""

    family: ClassVar[str] = "components.quantizers.gradients"

    @abstractmethod
    def __call__(self, latents: Tensor, table: Tensor, assignment: Assignment, training: bool) -> tuple[Tensor, Tensor]:
        """Prepared latents [M, D] and codes [K, D] -> (codes [M], the vectors that go on, [M, D], equal to the table's rows
        to the last bit)"""


class Regularizer(ABC):
    """A loss that shapes latents or codes. Constructor: `(*, config)`; its name in the losses is its file's."""

    family: ClassVar[str] = "components.quantizers.regularizers"

    @abstractmethod
    def __call__(self, latents: Tensor, quantized: Tensor, table: Tensor, assignment: Assignment) -> Tensor:
        """Latents and their codes' vectors [M, D], the table [K, D], all prepared -> a scalar, weighted"""


class Revival(ABC):
    """Which codes are given up. Constructor: `(*, config)`."""

    family: ClassVar[str] = "components.quantizers.revivals"

    @abstractmethod
    def dead(self, counts: Tensor) -> Tensor:
        """Moving counts of use [K] -> bool [K]"""


class ReconstructionLoss(ABC):
    """How far drawn images are from those they should be. Constructor: `(*, config)`; its name in the losses is its file's."""

    family: ClassVar[str] = "components.tokenizers.losses"

    @abstractmethod
    def __call__(self, drawn: Tensor, images: Tensor) -> Tensor:
        """[B, C, H, W] twice -> a scalar, weighted"""

    def use(self, networks: Networks) -> None:  # noqa: B027 - most need none
        """As `Trainable.use`"""


class Adversary(nn.Module, ABC):
    """Tells drawn images from real ones, and learns to. Constructor: `(image, *, config)`.

    Its parameters are a player of their own; `judge` is computed with them held constant."""

    family: ClassVar[str] = "components.tokenizers.adversaries"

    @abstractmethod
    def judge(self, drawn: Tensor, reconstruction: Tensor, last: Tensor, step: int) -> Tensor:
        """Drawn images [B, C, H, W] with their gradient, the reconstruction loss and the decoder's last weights -> what the
        tokenizer is to lower, weighted; zero before the adversary takes part"""

    @abstractmethod
    def learn(self, drawn: Tensor, images: Tensor) -> Tensor:
        """Drawn images, detached, and real ones [B, C, H, W] -> what the adversary is to lower"""

    def before_step(self, step: int) -> None:
        """As `Quantizer.before_step`"""

    def after_step(self, step: int) -> None:
        """As `Quantizer.after_step`: what averages, averages here"""


class LatentChange(ABC):
    """A training-time change of quantized latents, between quantizer and decoder. Constructor: `(*, config)`."""

    family: ClassVar[str] = "components.tokenizers.changes"
    shortens: ClassVar[bool] = False  # leaves fewer latents than came in

    @abstractmethod
    def __call__(self, latents: Tensor, quantized: Quantized, quantizer: Quantizer, step: int) -> Tensor:
        """`latents` [B, N, D] as the encoder gave them and what the quantizer made of them -> what the decoder gets"""


class Tokenizer(Trainable):
    """Sample <-> tokens [B, L] int64 in [0, spec.vocabulary). Constructor: `(image, *, config)`.

    Trained on batches {"images": [B, C, H, W]}."""

    family: ClassVar[str] = "components.tokenizers"
    spec: TokenSpec
    image: ImageFormat

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, L]"""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, C, H, W] in [-1, 1]"""


class TextTokenizer(ABC):
    """Text <-> tokens [T] int64 in [0, vocabulary), T its own for every text. Constructor: `(*, config)`.

    No text is lost: `decode(encode(texts))` are the texts. What is encoded never has `end` in it, whatever a text says;
    whoever joins texts puts it between them."""

    family: ClassVar[str] = "components.text_tokenizers"
    vocabulary: int  # V
    end: int  # the token after which a text is over

    @abstractmethod
    def fit(self, texts: Iterable[str]) -> None:
        """Learns the vocabulary, which follows from the texts, whatever their order. Raises ComponentError when they do not
        give as many tokens as are asked for, ValueError for half of a surrogate pair."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """n texts -> n x [T] int64; ValueError for half of a surrogate pair"""

    @abstractmethod
    def decode(self, tokens: Sequence[Tensor]) -> list[str]:
        """n x [T] int64 -> n texts, each up to its first `end`; what is no UTF-8 becomes U+FFFD. Raises ValueError for
        tokens of another vocabulary."""

    @abstractmethod
    def dump(self) -> str:
        """What was learnt, as the `tokenizer.json` of Hugging Face's tokenizers; always the same for the same."""

    @abstractmethod
    def restore(self, stored: str) -> None:
        """Takes what `dump` gave; ValueError for what is not that."""

    def spec(self, length: int) -> TokenSpec:
        """Of sequences of `length` tokens."""
        return TokenSpec((self.vocabulary,), length, "sequence", end=self.end)


class Autoencoder(Trainable):
    """Sample <-> continuous latents [B, N, D], about standard normal. Constructor: `(image, *, config)`.

    Trained on batches {"images": [B, C, H, W]}; what tokens are made of after training, or what a flow generates."""

    family: ClassVar[str] = "components.autoencoders"
    spec: LatentSpec
    image: ImageFormat

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, N, D], the same each time"""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """[B, N, D] -> [B, C, H, W] in [-1, 1]"""


class Visible(Enum):
    """Which positions a position of a backbone sees, where no mask says it one by one."""

    CAUSAL = "itself and what came before, those in the cache included"
    ALL = "every position"


#: bool [T, all positions] or [B, T, all positions], True where the query sees the key; or the same as FlexAttention has it
Mask = Visible | Tensor | BlockMask


class Cache(Protocol):
    """What a backbone remembers of the positions it has seen: static memory, filled up to `position`."""

    position: int

    def rewind(self, position: int) -> None:
        """Forgets everything from `position` on; ValueError when that lies ahead."""
        ...


@dataclass(frozen=True)
class SequenceShape:
    """The sequence a backbone is built for: `prefix` positions of conditions, then `positions` of the sample, which lie on
    a grid of rows and columns or in a row."""

    positions: int
    prefix: int = 0
    grid: tuple[int, int] | None = None

    @property
    def length(self) -> int:
        return self.prefix + self.positions


class Backbone(nn.Module, ABC):
    """Sequence model with a cache. Constructor: `(shape, *, config)`, the SequenceShape it is for."""

    family: ClassVar[str] = "components.backbones"
    width: int  # W
    condition_width: int | None = None  # of the condition that `forward` takes, None where it takes none

    @abstractmethod
    def forward(
        self,
        hidden: Tensor,
        cache: Any | None = None,
        *,
        mask: Mask = Visible.CAUSAL,
        positions: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """[B, T, W] -> [B, T, W]. With a cache the T positions follow those already in it.

        `positions` [T] int64 is where in the sequence they stand (default: one after another from the cache's position);
        `condition` [B, W] or [B, T, W] modulates every layer, of backbones that have a `condition_width`."""

    @abstractmethod
    def new_cache(self, batch: int, device: torch.device, dtype: torch.dtype) -> Any:
        """A static `Cache` for the whole sequence, empty."""


class Conditioner(nn.Module, ABC):
    """What is asked for -> vectors that stand before the sample. Constructor: `(classes, *, config)`.

    A condition is a tensor whose rows are samples: labels [B], caption bytes [B, T], images [B, C, H, W]. How many vectors
    it makes is known at once, how wide they are only when the backbone is there: then `attach` makes the layers."""

    family: ClassVar[str] = "components.conditioners"
    key: ClassVar[str]  # its name in a batch
    length: int  # how many vectors

    @abstractmethod
    def attach(self, width: int) -> None:
        """Makes the layers for vectors of this width."""

    @abstractmethod
    def initialize(self) -> None:
        """Draws the initial weights."""

    @abstractmethod
    def forward(self, condition: Tensor) -> Tensor:
        """[B, ...] -> [B, length, W]"""

    @abstractmethod
    def null(self, condition: Tensor) -> Tensor:
        """The condition that asks for nothing, for as many rows: what guidance leads away from."""

    @abstractmethod
    def check(self, condition: Tensor) -> None:
        """Raises ValueError when this is no condition of this kind."""

    def dropped(self, condition: Tensor, probability: float) -> Tensor:
        """Each row replaced by the null condition with this probability, from torch's global random numbers."""
        rows = torch.rand(len(condition), device=condition.device) < probability
        return torch.where(rows.view(-1, *[1] * (condition.ndim - 1)), self.null(condition), condition)


class Draw(Protocol):
    """How the sampling engine draws; handed to a head. Guidance, rules and random numbers are its own business."""

    def __call__(self, logits: Tensor) -> Tensor:
        """[R, V] -> tokens [R] int64"""
        ...

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal noise [R, ...], for continuous heads; the same for a row and its unconditional twin"""
        ...

    def guided(self, values: Tensor) -> Tensor:
        """[R, ...] -> the same shape, moved by guidance where guidance acts on values instead of logits"""
        ...


class Head(nn.Module, ABC):
    """Hidden state of a position -> distribution over what stands there. Constructor: `(width, spec, *, config)`."""

    family: ClassVar[str] = "components.heads"
    continuous: ClassVar[bool] = False  # what stands there is a latent [D] instead of codes [G]

    @abstractmethod
    def loss(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """hidden [..., W], codes [..., G] -> negative log-likelihood in nats [..., G], each code given those before it
        in the position; of a continuous head latents [..., D] -> a loss [..., 1]"""

    @abstractmethod
    def sample(self, hidden: Tensor, draw: Draw) -> Tensor:
        """hidden [R, W] -> codes [R, G] (or latents [R, D])"""


class Generator(Trainable):
    """Training objective and order over backbone and head. Constructor: `(spec, classes, *, config)`.

    Trained on batches {"tokens": [B, L], conditioner.key: [B, ...]}; label `classes` (= K) is the null class of guidance.
    Which of the kinds below it is says how it can be sampled."""

    family: ClassVar[str] = "components.generators"
    spec: TokenSpec
    classes: int
    conditioner: Conditioner
    condition_dropout: float = 0.0  # share of conditions that training replaces by none, for guidance
    head: Head

    def condition_of(self, batch: dict[str, Tensor]) -> Tensor:
        """The batch's condition, in training some of them dropped; torch's global random numbers, whose state follows from
        the step."""
        condition = batch[self.conditioner.key]
        if self.training and self.condition_dropout:
            return self.conditioner.dropped(condition, self.condition_dropout)
        return condition


class Autoregressive(Generator):
    """Position after position. `order` below is that of generation."""

    @abstractmethod
    def log_probs(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """log p(token | earlier, condition), [B, L] in nats, with gradient (post-training needs it)."""

    @abstractmethod
    def begin(self, condition: Tensor, prefix: Tensor | None = None) -> tuple[Tensor, Any]:
        """Starts sampling after `prefix` [B, P, G] (default: nothing): (hidden state of the next position [B, W], state).
        `state.rewind(n)` goes back to n positions; `state.repeat(n)` is a state with every row n times in a row."""

    @abstractmethod
    def extend(self, codes: Tensor, state: Any) -> Tensor:
        """Codes just settled [B, T, G] -> hidden states of what comes after each of them [B, T, W]; the state moves on."""

    def arrange(self, codes: Tensor, state: Any) -> Tensor:
        """Codes [B, N, G] in the order of generation -> in the order of the tokenizer; by default the same."""
        return codes


class Parallel(Generator):
    """Any positions at once, given any others."""

    @abstractmethod
    def predict(self, codes: Tensor, known: Tensor, condition: Tensor) -> Tensor:
        """codes [B, N, G], known [B, N] bool (the others' codes are not looked at) -> hidden states [B, N, W]"""


class Sampler(ABC):
    """Draws tokens from a generator. Constructor: `(*, config)`."""

    family: ClassVar[str] = "components.sampling"

    @abstractmethod
    def sample(self, generator: Generator, condition: Tensor, rng: torch.Generator) -> Tensor:
        """condition [B, ...] -> tokens [B, L] (or latents [B, N, D]); no gradient."""


# ------------------------------------------------------------------------------------------------ improve, judge


class Reward(ABC):
    """Scores samples. Constructor: `(networks, *, config)`."""

    family: ClassVar[str] = "components.rewards"

    @abstractmethod
    def score(self, images: Tensor, labels: Tensor) -> Tensor:
        """images [B, C, H, W], the labels they were asked for [B] -> [B], higher is better"""


class PostTraining(Trainable):
    """Improves a trained generator. Constructor: `(generator, tokenizer, networks, *, config)`.

    It is trained by the one trainer; `batches` makes its data from the policy itself."""

    family: ClassVar[str] = "components.posttraining"
    generator: Autoregressive

    @abstractmethod
    def batches(self, labels: Sequence[int], batch_size: int, seed: int) -> Batches:
        """Rollouts for each step; `labels` are the classes that are asked for."""


@dataclass
class EvaluationBatch:
    """One batch of what is measured. Reconstruction metrics read the first four, sample metrics the next two.

    `heldout` and `heldout_labels` are real images that training never saw. `numbers` says which of all held-out images (or
    samples) each row is: what a metric draws at random follows from it, never from who measures which part."""

    heldout: Tensor | None = None  # [B, C, H, W]
    heldout_labels: Tensor | None = None  # [B]
    reconstructions: Tensor | None = None  # [B, C, H, W]
    tokens: Tensor | None = None  # [B, L]
    samples: Tensor | None = None  # [B, C, H, W]
    sample_labels: Tensor | None = None  # [B]
    numbers: Tensor | None = None  # [B] int64


class Metric(ABC):
    """Measures, streaming. Constructor: `(networks, spec, *, config)`."""

    family: ClassVar[str] = "components.evaluation"
    better: ClassVar[Literal["higher", "lower"]]

    def use(self, tokenizer: Tokenizer, generator: Generator | None) -> None:  # noqa: B027 - most need only batches
        """The models that are measured, before the first batch: for what only they can tell (likelihoods, decoding)."""

    @abstractmethod
    def update(self, batch: EvaluationBatch) -> None: ...

    @abstractmethod
    def merge(self, other: Metric) -> None:
        """Takes in what another of the same configuration has seen: workers measure parts, the result is that of all."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """name -> value; the first name is the metric's own; `<name>.low` and `<name>.high` are the ends of its 95 %
        interval, where it has one."""


KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Source, Transform, Mixture, FeatureExtractor, Quantizer, Codebook, Initialization, Assignment,
        GradientEstimator, Regularizer, Revival, ReconstructionLoss, Adversary, LatentChange, Tokenizer,
        TextTokenizer, Autoencoder, Backbone, Conditioner, Head, Generator, Sampler, PostTraining, Reward, Metric,
    )
}  # fmt: skip

__all__ = [
    "KINDS", "MODALITIES", "Adversary", "Assignment", "Autoencoder", "Autoregressive", "Backbone", "Batches",
    "Broken", "Cache", "Codebook", "Conditioner", "Draw", "EvaluationBatch", "FeatureExtractor", "Files",
    "Generator", "GradientEstimator", "Head", "ImageFormat", "Initialization", "LatentChange", "LatentSpec", "Map",
    "Mask", "Metric", "Mixture", "MixtureData", "MixtureResult", "Modality", "Monitor", "Networks", "Parallel",
    "Part", "PostTraining", "Quantized", "Quantizer", "ReconstructionLoss", "Regularizer", "Revival", "Reward",
    "Sample", "Sampler", "SequenceShape", "Silent", "Sink", "Source", "Stored", "TextTokenizer", "TokenSpec", "Tokenizer",
    "Trainable", "Transform", "Visible",
]  # fmt: skip
