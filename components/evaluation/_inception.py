"""The Inception network of the Fréchet inception distance: features of width 2,048 from images of any size.

1. Pixels are rounded to 0..255, brought to 299 x 299 by the bilinear resizing of TensorFlow 1 (a pixel's place is its number
   times the ratio of sizes, no half pixels, no smoothing), then (x - 128) / 128.
2. Inception-v3 as it was published for the distance (weights of 2015-12-05): average pooling leaves the border out of its
   mean, the last block pools by maximum, normalization with epsilon 0.001.
3. The features are the means over places of the last block. The layer for classes is not there.

The names of the tensors are those of torch-fidelity's converted weights. Sources: Szegedy et al. 2015,
https://arxiv.org/abs/1512.00567; Heusel et al. 2017, https://arxiv.org/abs/1706.08500; Parmar et al. 2021 on resizing,
https://arxiv.org/abs/2104.11222.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 299
_mean = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_largest = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
_halved = partial(F.max_pool2d, kernel_size=3, stride=2)
Pair = tuple[int, int]


def resized(images: Tensor, size: int = SIZE) -> Tensor:
    """[B, C, H, W] -> [B, C, size, size], bilinear as TensorFlow 1 did it"""
    rows, columns = (_weights(length, size, images) for length in images.shape[-2:])
    return rows @ images @ columns.T


def _weights(length: int, size: int, like: Tensor) -> Tensor:
    """[size, length]: how much of each old place a new one has"""
    places = torch.arange(size, device=like.device, dtype=torch.float32) * (length / size)
    lower = places.floor().long().clamp(max=length - 1)
    share = places - lower
    found = torch.zeros(size, length, device=like.device)
    index = torch.arange(size, device=like.device)
    found[index, lower] += 1 - share
    found[index, (lower + 1).clamp(max=length - 1)] += share
    return found.to(like.dtype)


class _Conv(nn.Module):
    """Convolution, normalization, ReLU"""

    def __init__(self, into: int, out: int, kernel: int | Pair, stride: int = 1, padding: int | Pair = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _A(nn.Module):
    def __init__(self, into: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(into, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = _Conv(into, 48, 1), _Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(into, 64, 1), _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, padding=1)
        self.branch_pool = _Conv(into, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat(
            [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_mean(x))], 1
        )


class _B(nn.Module):
    def __init__(self, into: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(into, 384, 3, 2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(into, 64, 1), _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, _halved(x)], 1)


class _C(nn.Module):
    def __init__(self, into: int, inner: int) -> None:
        super().__init__()
        wide, tall = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
        self.branch1x1 = _Conv(into, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = _Conv(into, inner, 1), _Conv(inner, inner, *wide)
        self.branch7x7_3 = _Conv(inner, 192, *tall)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = _Conv(into, inner, 1), _Conv(inner, inner, *tall)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = _Conv(inner, inner, *wide), _Conv(inner, inner, *tall)
        self.branch7x7dbl_5 = _Conv(inner, 192, *wide)
        self.branch_pool = _Conv(into, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_mean(x))], 1)


class _D(nn.Module):
    def __init__(self, into: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = _Conv(into, 192, 1), _Conv(192, 320, 3, 2)
        self.branch7x7x3_1, self.branch7x7x3_2 = _Conv(into, 192, 1), _Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3, self.branch7x7x3_4 = _Conv(192, 192, (7, 1), padding=(3, 0)), _Conv(192, 192, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        large = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), large, _halved(x)], 1)


class _E(nn.Module):
    def __init__(self, into: int, last: bool) -> None:
        super().__init__()
        wide, tall = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
        self.pool = _largest if last else _mean
        self.branch1x1 = _Conv(into, 320, 1)
        self.branch3x3_1 = _Conv(into, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = _Conv(384, 384, *wide), _Conv(384, 384, *tall)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(into, 448, 1), _Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = _Conv(384, 384, *wide), _Conv(384, 384, *tall)
        self.branch_pool = _Conv(into, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return torch.cat(
            [
                self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single), self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double), self.branch_pool(self.pool(x)),
            ],
            1,
        )  # fmt: skip


class Inception(nn.Module):
    """Images [B, 1 or 3, H, W] in [-1, 1] -> features [B, 2048]; gray ones as three equal channels."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = _Conv(3, 32, 3, 2), _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = _Conv(64, 80, 1), _Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _A(192, 32), _A(256, 64), _A(288, 64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (_C(768, inner) for inner in (128, 160, 160, 192))
        self.Mixed_7a = _D(768)
        self.Mixed_7b, self.Mixed_7c = _E(1280, last=False), _E(2048, last=True)

    def forward(self, images: Tensor) -> Tensor:
        pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).expand(-1, 3, -1, -1)
        x = (resized(pixels) - 128) / 128
        x = _halved(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = _halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))
