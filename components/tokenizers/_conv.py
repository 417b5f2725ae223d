"""Convolutional encoder and decoder of the VQGAN family (Esser et al., 2021, arXiv:2012.09841), without attention."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """[B, W, H, W] -> the same: norm, SiLU, 3x3, twice, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


def widths(base: int, halvings: int) -> list[int]:
    """Channels at each resolution, from full size down; doubled at each halving, at most four times the base."""
    return [base * min(4, 2**i) for i in range(halvings + 1)]


class Encoder(nn.Module):
    """Images [B, C, H, W] -> latents [B, D, H / 2^halvings, W / 2^halvings]."""

    def __init__(self, channels: int, base: int, halvings: int, blocks: int, dim: int) -> None:
        super().__init__()
        wide = widths(base, halvings)
        layers: list[nn.Module] = [nn.Conv2d(channels, wide[0], 3, padding=1)]
        for level in range(halvings):
            layers += [
                *(Residual(wide[level]) for _ in range(blocks)),
                nn.Conv2d(wide[level], wide[level + 1], 4, 2, 1),
            ]
        layers += [
            *(Residual(wide[-1]) for _ in range(blocks)),
            nn.GroupNorm(8, wide[-1]),
            nn.SiLU(),
            nn.Conv2d(wide[-1], dim, 1),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Decoder(nn.Module):
    """Latents [B, D, h, w] -> images [B, C, h * 2^halvings, w * 2^halvings]."""

    def __init__(self, channels: int, base: int, halvings: int, blocks: int, dim: int) -> None:
        super().__init__()
        wide = widths(base, halvings)[::-1]
        layers: list[nn.Module] = [nn.Conv2d(dim, wide[0], 3, padding=1)]
        for level in range(halvings):
            layers += [
                *(Residual(wide[level]) for _ in range(blocks)),
                nn.ConvTranspose2d(wide[level], wide[level + 1], 4, 2, 1),
            ]
        layers += [*(Residual(wide[-1]) for _ in range(blocks)), nn.GroupNorm(8, wide[-1]), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(wide[-1], channels, 3, padding=1))

    @property
    def last(self) -> nn.Conv2d:
        layer = self.layers[-1]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)
