"""Next-X prediction: entities of continuous latents one after another, each by flow matching, in noisy context (xAR).

1. The grid of latents is cut into entities (positions, cells of neighbours, coarse pictures, scales, the whole image).
2. In training every entity gets noise of its own strength: t_i = sigmoid(n), n standard normal, x_i = (1 - t_i) * latents +
   t_i * noise. All noisy entities enter at once; entity i sees entities up to i, in their noisy form.
3. The network predicts the velocity, noise - latents, of every entity in the same pass; its norms are modulated by the time
   of a position's own entity and the condition (adaLN).
4. Sampling goes entity by entity, noise to latents in some steps; a finished one is fed once more, clean at t = 0, and what
   that left in the cache is the context of the next.

Deliberately absent: clean context in training (`next_x_teacher_forced`), two halves of the network. Source: Ren et al. 2025,
xAR, https://arxiv.org/abs/2502.20388, sections 3.2 and 3.3.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from components.backbones import _masks
from components.generators._entities import ENTITIES, Entity
from components.generators._of_tokens import CLASS_LABEL
from components.heads.flow_matching import TimeEmbedding
from components.interfaces import Backbone, Conditioner, Generator, LatentSpec, SequenceShape
from components.registry import ComponentError, Spec


class NextX(Generator):
    """Trained on batches {"latents": [B, N, D], the conditioner's key}.

    >>> from components import registry
    >>> small = {"type": "modulated_transformer", "depth": 1, "width": 32, "heads": 2}
    >>> model = registry.build(Generator, {"type": "next_x", "backbone": small}, LatentSpec(4, 16, (4, 4)), 10)
    >>> model({"latents": torch.zeros(2, 16, 4), "labels": torch.tensor([3, 10])})["loss"].shape
    torch.Size([])
    """

    continuous: ClassVar[bool] = True
    spec: LatentSpec  # type: ignore[assignment]
    mask: Tensor  # [M, M]

    def __init__(
        self,
        spec: LatentSpec,
        classes: int,
        *,
        backbone: Spec[Backbone],
        conditioner: Spec[Conditioner] = CLASS_LABEL,
        condition_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        entity: Entity = "cell",
        size: Annotated[int, Field(ge=1, description="positions along a side of a cell, or from scale to scale")] = 2,
    ) -> None:
        super().__init__()
        if spec.grid is None:
            raise ComponentError("entities are cut from a grid of latents; these stand in a row", ("entity",))
        self.spec, self.classes, self.condition_dropout = spec, classes, condition_dropout
        self.partition = ENTITIES[entity](*spec.grid, size)
        self.begins = [0, *accumulate(self.partition.sizes)]  # where in the sequence of M positions each entity begins
        length = self.begins[-1]
        # Scales are more positions than the grid has: the sequence has room for them before it.
        self.further = length - spec.positions
        self.backbone = backbone.build(SequenceShape(spec.positions, self.further, spec.grid))
        width = self.backbone.width
        if self.backbone.condition_width != width:
            raise ComponentError(
                "noise levels modulate every layer: choose 'modulated_transformer'", ("backbone", "type")
            )
        self.conditioner = conditioner.build(classes)
        self.conditioner.attach(width)
        self.lift, self.positions = nn.Linear(spec.dim, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.time, self.project = TimeEmbedding(width), nn.Linear(width, spec.dim)
        self.conditioner.initialize()
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.register_buffer("mask", _masks.block(self.partition.entity), persistent=False)

    @property
    def entities(self) -> int:
        """E"""
        return len(self.partition.sizes)

    def velocity(
        self, noisy: Tensor, times: Tensor, condition: Tensor, first: int = 0, cache: Any | None = None
    ) -> Tensor:
        """Whole entities from the `first` on, [B, T, D] at times [B, entities] -> their velocities [B, T, D]. With a cache,
        the earlier ones are in it, and these are added to it."""
        here = slice(self.begins[first], self.begins[first + times.shape[1]])
        modulation = self.time(times) + self.conditioner(condition).mean(1)[:, None]  # [B, entities, W]
        modulation = modulation[:, self.partition.entity[here] - first]
        found = self.backbone(
            self.lift(noisy) + self.positions[here],
            cache,
            mask=self.mask[here, : here.stop],
            positions=self.further + self.partition.place[here],
            condition=modulation,
        )
        return self.project(found)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        condition = self.condition_of(batch)
        clean = self.partition.split(batch["latents"])
        times, counted = self.noise_levels(len(clean), clean.device)
        noise, entity = torch.randn_like(clean), self.partition.entity
        noisy = torch.lerp(clean, noise, times[:, entity, None])
        error = (self.velocity(noisy, times, condition) - (noise - clean)).float().square().mean(2)  # [B, M]
        weights = counted[:, entity]
        return {"loss": (error * weights).sum() / weights.sum()}

    def noise_levels(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The time of each entity [rows, E] in training, and which of them the loss counts, bool [rows, E]."""
        times = torch.randn(rows, self.entities, device=device).sigmoid()
        return times, torch.ones_like(times, dtype=torch.bool)
