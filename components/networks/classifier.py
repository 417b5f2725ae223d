"""A small convolutional classifier, for rewards and metrics where no pretrained network can be had.

1. A 3x3 convolution lifts the image to `width` channels; pictures of 16 pixels and more are halved by it at once.
2. Residual blocks (two 3x3 convolutions, group norm, SiLU), each followed by a halving, until 4 pixels a side are left;
   the width doubles at each halving up to four times `width`.
3. Global average pooling and a linear layer give the features, a second linear layer the logits.
4. The loss is cross-entropy with label smoothing, which keeps log-probabilities bounded: a reward that saturates.

Deliberately absent: batch norm (its running averages would tie a sample's score to the batches it was trained in) and
dropout (a reward must be a function of the image). Source: pre-activation residual blocks, He et al. 2016,
https://arxiv.org/abs/1603.05027; label smoothing, Szegedy et al. 2016, https://arxiv.org/abs/1512.00567.
"""

from __future__ import annotations

from typing import Annotated

import torch  # noqa: F401 - the docstring example uses it
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from components.interfaces import FeatureExtractor, ImageFormat, Transform
from components.registry import Spec


class _Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(F.silu(self.first_norm(x)))
        return x + self.second(F.silu(self.second_norm(hidden)))


class Classifier(FeatureExtractor):
    """`features` is the width of what metrics see. Images [B, C, H, W] in [-1, 1], any size from 8 pixels.

    >>> from components.interfaces import ImageFormat
    >>> network = Classifier(ImageFormat(16, 1), 10, width=8)
    >>> network.logits(torch.zeros(2, 1, 16, 16)).shape, network.features(torch.zeros(2, 1, 16, 16)).shape
    (torch.Size([2, 10]), torch.Size([2, 64]))
    """

    def __init__(
        self,
        image: ImageFormat,
        classes: int,
        *,
        width: Annotated[int, Field(ge=8, multiple_of=8)] = 32,
        features: Annotated[int, Field(ge=2)] = 64,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.05,
        transforms: list[Spec[Transform]] = [],  # noqa: B006 - a constructor is a schema, the list is never changed
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.transforms = [spec.build() for spec in transforms]
        size, channels = image.size, width
        self.stem = nn.Conv2d(image.channels, width, 3, padding=1, stride=2 if size >= 16 else 1)
        size = (size + 1) // 2 if size >= 16 else size
        layers: list[nn.Module] = []
        while size > 4:
            wider = min(2 * channels, 4 * width)
            layers += [_Block(channels), nn.Conv2d(channels, wider, 3, padding=1, stride=2)]
            channels, size = wider, (size + 1) // 2
        self.trunk = nn.Sequential(*layers, _Block(channels), nn.GroupNorm(8, channels), nn.SiLU())
        self.embedding = nn.Linear(channels, features)
        self.classify = nn.Linear(features, classes)

    def features(self, images: Tensor) -> Tensor:
        pooled = self.trunk(self.stem(images)).mean(dim=(2, 3))  # [B, channels]
        return F.silu(self.embedding(pooled))

    def maps(self, images: Tensor) -> list[Tensor]:
        hidden, found = self.stem(images), []
        for layer in self.trunk:
            hidden = layer(hidden)
            if isinstance(layer, _Block):
                found.append(hidden)
        return found

    def logits(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits, labels = self.logits(batch["images"]), batch["labels"]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return {"loss": loss, "accuracy": (logits.argmax(-1) == labels).float().mean().detach()}
