"""A latent vector instead of a code: a small network carries noise to it, told by the hidden state where to.

1. x_t = (1 - t) * latent + t * noise; the network predicts the velocity noise - latent from x_t, t and the hidden state.
2. It is a residual MLP whose norms are modulated by the hidden state plus an embedding of t (adaLN-Zero).
3. The loss is the squared error of the velocity, averaged over the latent's channels, t uniform, drawn once a call.
4. Sampling takes `steps` Euler steps from noise at t = 1 to t = 0.

Deliberately absent: a learned variance, other interpolations than the straight one. Sources: the per-token diffusion
head, Li et al. 2024, MAR, https://arxiv.org/abs/2406.11838, section 3.2; rectified flow, Liu et al. 2022,
https://arxiv.org/abs/2209.03003.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from components.interfaces import Draw, Head, LatentSpec


class TimeEmbedding(nn.Module):
    """Times [...] in [0, 1] -> [..., W], by sines of 128 frequencies and two linear layers."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.register_buffer("frequencies", torch.exp(-math.log(10_000) * torch.arange(128) / 128), persistent=False)

    def forward(self, times: Tensor) -> Tensor:
        angles = 1000 * times[..., None] * self.frequencies
        return self.layers(torch.cat([angles.cos(), angles.sin()], -1))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition).chunk(3, -1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class FlowMatching(Head):
    """
    >>> head = FlowMatching(32, LatentSpec(dim=4, positions=16), depth=1, inner_width=32)
    >>> head.loss(torch.zeros(2, 16, 32), torch.zeros(2, 16, 4)).shape
    torch.Size([2, 16, 1])
    """

    continuous: ClassVar[bool] = True

    def __init__(
        self,
        width: int,
        spec: LatentSpec,
        *,
        depth: Annotated[int, Field(ge=1)] = 3,
        inner_width: Annotated[int, Field(ge=8)] = 512,
        steps: Annotated[int, Field(ge=1, description="Euler steps of sampling")] = 25,
    ) -> None:
        super().__init__()
        self.dim, self.steps = spec.dim, steps
        self.lift = nn.Linear(spec.dim, inner_width)
        self.time, self.condition = TimeEmbedding(inner_width), nn.Linear(width, inner_width)
        self.blocks = nn.ModuleList(_Block(inner_width) for _ in range(depth))
        self.norm = nn.LayerNorm(inner_width, elementwise_affine=False, eps=1e-6)
        self.project = nn.Linear(inner_width, spec.dim)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def velocity(self, x: Tensor, times: Tensor, hidden: Tensor) -> Tensor:
        """x [..., D] at times [...] given hidden [..., W] -> [..., D]"""
        condition = F.silu(self.time(times) + self.condition(hidden))
        x = self.lift(x)
        for block in self.blocks:
            x = block(x, condition)
        return self.project(self.norm(x))

    def loss(self, hidden: Tensor, codes: Tensor) -> Tensor:
        times, noise = torch.rand(codes.shape[:-1], device=codes.device), torch.randn_like(codes)
        x = torch.lerp(codes, noise, times[..., None])
        error = self.velocity(x, times, hidden) - (noise - codes)
        return error.float().square().mean(-1, keepdim=True)

    def sample(self, hidden: Tensor, draw: Draw) -> Tensor:
        x = draw.normal((len(hidden), self.dim)).to(hidden.dtype)
        for step in range(self.steps, 0, -1):
            times = torch.full((len(hidden),), step / self.steps, device=hidden.device)
            x = x - draw.guided(self.velocity(x, times, hidden)) / self.steps
        return x
