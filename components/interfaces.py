"""The vocabulary: every kind of component, with the shapes that go in and come out.

Letters in shapes: B batch, C channels, H W pixels, N latents per sample, D latent width, G codes per latent,
L tokens per sample, V tokens in the vocabulary, W width of hidden states, K classes.

A component's constructor is its schema: keyword-only arguments are configuration (they stand in the recipe),
positional ones are wired by whoever builds it. `kind.family` is the package whose files hold the built-ins:
the name of a built-in is the name of its file, and the file defines one class of that kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

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
    """What a tokenizer's tokens look like; handed to generator, head and sampler so that no size is said twice."""

    vocabulary: int  # V: tokens are integers in [0, V)
    length: int  # L: tokens per sample
    layout: Literal["grid", "sequence"]
    grid: tuple[int, int] | None = None  # rows, columns when the layout is a grid


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

    def after_step(self, step: int) -> None:
        """Called by the trainer after each optimizer step (codebook revival, target networks)."""


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


class Quantizer(nn.Module, ABC):
    """Latents [B, N, D] <-> codes [B, N, G]. Constructor: `(dim, *, config)`."""

    family: ClassVar[str] = "components.quantizers"
    codebook_sizes: tuple[int, ...]  # one entry per code of a latent (length G)

    @abstractmethod
    def forward(self, latents: Tensor) -> Quantized: ...

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """[B, N, G] int64 -> [B, N, D]; equals `forward(...).latents` for the codes it returned."""

    def after_step(self, step: int) -> None:
        """Revival of dead codes and the like; called once an optimizer step."""


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


class Backbone(nn.Module, ABC):
    """Sequence model with a cache. Constructor: `(length, *, config)`; `length` is the longest sequence it sees."""

    family: ClassVar[str] = "components.backbones"
    width: int  # W

    @abstractmethod
    def forward(self, hidden: Tensor, cache: Any | None = None) -> Tensor:
        """[B, T, W] -> [B, T, W], causal. With a cache the T positions follow those already in it."""

    @abstractmethod
    def new_cache(self, batch: int, device: torch.device, dtype: torch.dtype) -> Any:
        """A static cache for `length` positions, empty."""


class Head(nn.Module, ABC):
    """Hidden state -> distribution over the next token. Constructor: `(width, spec, *, config)`."""

    family: ClassVar[str] = "components.heads"

    @abstractmethod
    def forward(self, hidden: Tensor) -> Tensor:
        """[..., W] -> logits [..., V]"""

    @abstractmethod
    def loss(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """hidden [B, L, W], tokens [B, L] -> negative log-likelihood in nats [B, L]"""


class Generator(Trainable):
    """Training objective and order over backbone and head. Constructor: `(spec, classes, *, config)`.

    Trained on batches {"tokens": [B, L], "labels": [B]}; label `classes` (= K) is the null class of guidance."""

    family: ClassVar[str] = "components.generators"
    spec: TokenSpec
    classes: int

    @abstractmethod
    def log_probs(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """log p(token | earlier, label), [B, L] in nats, with gradient (post-training needs it)."""

    @abstractmethod
    def begin(self, labels: Tensor) -> tuple[Tensor, Any]:
        """Starts sampling: labels [B] -> (logits of the first token [B, V], cache)."""

    @abstractmethod
    def advance(self, tokens: Tensor, cache: Any) -> Tensor:
        """The tokens just drawn [B] -> logits of the next ones [B, V]; the cache moves on by one."""


class Sampler(ABC):
    """Draws tokens from a generator. Constructor: `(*, config)`."""

    family: ClassVar[str] = "components.sampling"

    @abstractmethod
    def sample(self, generator: Generator, labels: Tensor, rng: torch.Generator) -> Tensor:
        """labels [B] -> tokens [B, L]; no gradient."""


# ------------------------------------------------------------------------------------------------ improve, judge

Networks = Mapping[str, FeatureExtractor]  # the recipe's `networks`, trained and frozen; `@judge` is networks["judge"]


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
    generator: Generator

    @abstractmethod
    def batches(self, labels: Sequence[int], batch_size: int, seed: int) -> Batches:
        """Rollouts for each step; `labels` are the classes that are asked for."""


@dataclass
class EvaluationBatch:
    """One batch of what is measured. Reconstruction metrics read the first four, sample metrics the last three.

    `heldout` and `heldout_labels` are real images that training never saw."""

    heldout: Tensor | None = None  # [B, C, H, W]
    heldout_labels: Tensor | None = None  # [B]
    reconstructions: Tensor | None = None  # [B, C, H, W]
    tokens: Tensor | None = None  # [B, L]
    samples: Tensor | None = None  # [B, C, H, W]
    sample_labels: Tensor | None = None  # [B]


class Metric(ABC):
    """Measures, streaming. Constructor: `(networks, spec, *, config)`."""

    family: ClassVar[str] = "components.evaluation"
    better: ClassVar[Literal["higher", "lower"]]

    @abstractmethod
    def update(self, batch: EvaluationBatch) -> None: ...

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """name -> value; the first name is the metric's own."""


KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Source, Transform, Mixture, FeatureExtractor, Quantizer, Tokenizer, Backbone, Head, Generator, Sampler,
        PostTraining, Reward, Metric,
    )
}  # fmt: skip

__all__ = [
    "KINDS", "MODALITIES", "Backbone", "Batches", "Broken", "EvaluationBatch", "FeatureExtractor", "Files", "Generator",
    "Head", "ImageFormat", "Map", "Metric", "Mixture", "MixtureData", "MixtureResult", "Modality", "Monitor", "Networks",
    "Part", "PostTraining", "Quantized", "Quantizer", "Reward", "Sample", "Sampler", "Silent", "Sink", "Source", "Stored",
    "TokenSpec", "Tokenizer", "Trainable", "Transform",
]  # fmt: skip
