"""Encoder and decoder of VQGAN as it was published, with the tensor names its descendants share.

Residual blocks (group norm, SiLU, 3x3 convolution, twice), attention over positions at chosen resolutions, halving by a strided
convolution with padding to the right and below, doubling by nearest neighbours and a convolution. Source: Esser et al. 2021,
https://arxiv.org/abs/2012.09841, and its code.

A block is given its norm, a function of the channels, and hands to it whatever it is called with beside its input:
MoVQ's norms see the quantized latents, those of VQGAN nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(32, channels, eps=1e-6)


Norm = Callable[[int], nn.Module]


class Residual(nn.Module):
    def __init__(self, channels: int, out: int, norm: Norm = group_norm) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        if channels != out:
            self.nin_shortcut = nn.Conv2d(channels, out, 1)
        self.same = channels == out

    def forward(self, x: Tensor, *guide: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x, *guide), inplace=not x.requires_grad and not self.training))
        hidden = self.conv2(F.silu(self.norm2(hidden, *guide), inplace=not hidden.requires_grad and not self.training))
        return (x if self.same else self.nin_shortcut(x)) + hidden


class Attention(nn.Module):
    """One head over all positions, as wide as the channels."""

    def __init__(self, channels: int, norm: Norm = group_norm) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor, *guide: Tensor) -> Tensor:
        normed = self.norm(x, *guide)
        q, k, v = (part(normed).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return x + self.proj_out(mixed.unflatten(2, x.shape[2:]))


class Middle(nn.Module):
    def __init__(self, channels: int, norm: Norm = group_norm) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            Residual(channels, channels, norm),
            Attention(channels, norm),
            Residual(channels, channels, norm),
        )

    def forward(self, x: Tensor, *guide: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, *guide), *guide), *guide)


class Halve(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Blocks of one resolution, each followed by attention where that is asked for, then a change of resolution or none."""

    def __init__(self, channels: int, out: int, blocks: int, attention: bool, norm: Norm = group_norm) -> None:
        super().__init__()
        self.block = nn.ModuleList(Residual(channels if i == 0 else out, out, norm) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(out, norm) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor, *guide: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x, *guide)
            if len(self.attn):
                x = self.attn[index](x, *guide)
        for change in ("downsample", "upsample"):
            if hasattr(self, change):
                x = getattr(self, change)(x)
        return x


class Encoder(nn.Module):
    """Images [B, C, H, W] -> [B, latent channels, H / 2^n, W / 2^n], n one less than there are multipliers."""

    def __init__(
        self, channels: int, base: int, multipliers: Sequence[int], blocks: int, attention: Sequence[int], latent: int
    ) -> None:
        """`attention`: the levels with attention, 0 at full resolution"""
        super().__init__()
        self.conv_in = nn.Conv2d(channels, base, 3, padding=1)
        widths = [base, *(base * m for m in multipliers)]
        self.down = nn.ModuleList()
        for level in range(len(multipliers)):
            made = Level(widths[level], widths[level + 1], blocks, level in attention)
            if level + 1 < len(multipliers):
                made.downsample = Halve(widths[level + 1])
            self.down.append(made)
        self.mid, self.norm_out = Middle(widths[-1]), group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], latent, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.conv_in(images)
        for level in self.down:
            hidden = level(hidden)
        return self.conv_out(F.silu(self.norm_out(self.mid(hidden))))


class Decoder(nn.Module):
    """[B, latent channels, h, w] -> images [B, C, h * 2^n, w * 2^n]; `up` begins at the lowest resolution."""

    def __init__(
        self,
        channels: int,
        base: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        latent: int,
        norm: Norm = group_norm,
    ) -> None:
        super().__init__()
        widths = [base * m for m in multipliers]
        self.conv_in, self.mid = nn.Conv2d(latent, widths[-1], 3, padding=1), Middle(widths[-1], norm)
        self.up = nn.ModuleList()
        inward = widths[-1]
        for level in reversed(range(len(multipliers))):
            made = Level(inward, widths[level], blocks + 1, level in attention, norm)
            if level:
                made.upsample = Double(widths[level])
            self.up.append(made)
            inward = widths[level]
        self.norm_out, self.conv_out = norm(inward), nn.Conv2d(inward, channels, 3, padding=1)

    def forward(self, latents: Tensor, *guide: Tensor) -> Tensor:
        hidden = self.mid(self.conv_in(latents), *guide)
        for level in self.up:
            hidden = level(hidden, *guide)
        return self.conv_out(F.silu(self.norm_out(hidden, *guide)))
