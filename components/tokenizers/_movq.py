"""What MoVQ and Emu3's video tokenizer add to VQGAN: norms that see the latents, and convolutions that see the past.

A picture is a video of equal frames. What comes before its first frame is zeros, and no layer looks ahead, so that the
first frame of everything that keeps the number of frames depends on one slice of each kernel. Sources: Zheng et al.
2022, https://arxiv.org/abs/2209.09002; Emu3, https://arxiv.org/abs/2409.18869, section 2.2."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.tokenizers._vqgan import group_norm

_PAST = 2  # frames of zeros before the first
_UNDO = 2.0  # SiLU has half the slope of the identity at zero


@torch.no_grad()
def _set(conv: nn.Conv2d | nn.Conv3d, bias: float) -> None:
    conv.weight.zero_()
    if conv.bias is not None:
        conv.bias.fill_(bias)


class SpatialNorm(nn.Module):
    """Group norm, scaled and shifted at each place by the latent that stands there. It begins as a plain norm."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.norm_layer = group_norm(channels)
        self.conv_y, self.conv_b = nn.Conv2d(dim, channels, 1), nn.Conv2d(dim, channels, 1)
        for conv, bias in ((self.conv_y, 1.0), (self.conv_b, 0.0)):
            _set(conv, bias)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """x [B, C, H, W], latents [B, D, h, w] -> [B, C, H, W]"""
        # One pixel at a time, so it is the same before as after the enlargement, and a fraction of the work.
        scale, shift = (
            F.interpolate(conv(latents), x.shape[2:], mode="nearest") for conv in (self.conv_y, self.conv_b)
        )
        return self.norm_layer(x) * scale + shift


class CausalConv(nn.Module):
    """Convolution over `frames` frames and `size` rows and columns. Rows and columns keep their number, frames are
    divided by `stride`."""

    def __init__(self, channels: int, frames: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.size = size
        self.conv = nn.Conv3d(channels, channels, (frames, size, size), (stride, 1, 1), (0, size // 2, size // 2))

    @torch.no_grad()
    def passing(self, gain: float) -> CausalConv:
        """Begins as `gain` times the last frame it sees: through many layers of few channels little else arrives."""
        _set(self.conv, 0.0)
        each, middle = torch.arange(self.conv.in_channels), self.size // 2
        self.conv.weight[each, each, -1, middle, middle] = gain
        return self

    def forward(self, frames: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T / stride, H, W]"""
        return self.conv(F.pad(frames, (0, 0, 0, 0, _PAST, 0)))

    def first(self, frame: Tensor) -> Tensor:
        """First frame [B, C, H, W] -> first frame of the result; for kernels of three frames and stride 1."""
        return F.conv2d(frame, self.conv.weight[:, :, _PAST], self.conv.bias, padding=self.size // 2)


class StoredNorm(nn.BatchNorm3d):
    """Batch norm with the statistics it was given, in training as well: a picture's result is its own."""

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class FrameResidual(nn.Module):
    """[B, C, H, W] -> the same, the first frame's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = StoredNorm(channels), CausalConv(channels, 3, 3)
        self.norm2, self.conv2 = StoredNorm(channels), CausalConv(channels, 3, 3)

    def forward(self, frame: Tensor) -> Tensor:
        hidden = self.conv1.first(F.silu(self.norm1(frame)))
        return frame + self.conv2.first(F.silu(self.norm2(hidden)))


class Fold(nn.Module):
    """A picture's latents [B, D, h, w], repeated 2^`halvings` times and halved as often, then residual blocks."""

    def __init__(self, dim: int, halvings: int, blocks: int) -> None:
        super().__init__()
        self.halvings = nn.ModuleList(CausalConv(dim, 4, 3, 2).passing(_UNDO) for _ in range(halvings))
        self.blocks = nn.ModuleList(FrameResidual(dim) for _ in range(blocks))

    def forward(self, latents: Tensor) -> Tensor:
        frames = latents[:, :, None].expand(-1, -1, 2 ** len(self.halvings), -1, -1)
        for halving in self.halvings:
            frames = F.silu(halving(frames))
        frame = frames.squeeze(2)
        for block in self.blocks:
            frame = block(frame)
        return frame


class Unfold(nn.Module):
    """Residual blocks, then `doublings` in time. First frame [B, D, h, w] -> first of 2^`doublings` frames."""

    def __init__(self, dim: int, doublings: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FrameResidual(dim) for _ in range(blocks))
        self.doublings = nn.ModuleList(CausalConv(dim, 3, 3).passing(_UNDO) for _ in range(doublings))

    def forward(self, frame: Tensor) -> Tensor:
        for block in self.blocks:
            frame = block(frame)
        for doubling in self.doublings:  # doubling repeats frames, and the first of them stays the first
            frame = F.silu(doubling.first(frame))  # type: ignore[operator]
        return frame
