"""Next-X prediction: entities of continuous latents one after another, each by flow matching, in noisy context (xAR).

1. The grid of latents is cut into entities (single positions, cells of neighbours, coarse pictures, the whole image).
2. In training every entity gets noise of its own strength: t_i = sigmoid(n), n standard normal, x_i = (1 - t_i) * latents +
   t_i * noise. All noisy entities enter at once; entity i sees entities up to i, in their noisy form.
3. The network predicts the velocity, noise - latents, of every entity in the same pass; its norms are modulated by the time
   of a position's own entity and the condition (adaLN).
4. Sampling goes entity by entity, noise to latents in some steps; a finished one is fed once more, clean at t = 0, and what
   that left in the cache is the context of the next.
5. `context: clean` is the teacher-forced variant for comparison: earlier entities enter clean, at t = 0, and one random
   entity a sample is predicted.

Deliberately absent: scales as entities (they need latents of several resolutions), two halves of the network. Source: Ren et
al. 2025, xAR, https://arxiv.org/abs/2502.20388, sections 3.2 and 3.3.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from components.backbones import _masks
from components.generators._entities import ENTITIES, Entity
from components.generators.next_token import CLASS_LABEL
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
    order: Tensor  # [N] the positions, entity after entity
    entity: Tensor  # [N] the entity of each of them
    mask: Tensor  # [N, N]

    def __init__(
        self,
        spec: LatentSpec,
        classes: int,
        *,
        backbone: Spec[Backbone],
        conditioner: Spec[Conditioner] = CLASS_LABEL,
        condition_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        entity: Entity = "cell",
        size: Annotated[int, Field(ge=1, description="positions along a side of a cell")] = 2,
        context: Literal["noisy", "clean"] = "noisy",
    ) -> None:
        super().__init__()
        if spec.grid is None:
            raise ComponentError("entities are cut from a grid of latents; these stand in a row", ("entity",))
        self.spec, self.classes, self.condition_dropout, self.context = spec, classes, condition_dropout, context  # type: ignore[assignment]
        groups = ENTITIES[entity](*spec.grid, size)
        self.entities, self.inside = groups.shape
        self.backbone = backbone.build(SequenceShape(spec.positions, grid=spec.grid))
        width = self.backbone.width
        if self.backbone.condition_width != width:
            raise ComponentError(
                "noise levels modulate every layer: choose 'modulated_transformer'", ("backbone", "type")
            )
        self.conditioner = conditioner.build(classes)
        self.conditioner.attach(width)
        self.lift, self.positions = nn.Linear(spec.dim, width), nn.Parameter(0.02 * torch.randn(spec.positions, width))
        self.time, self.project = TimeEmbedding(width), nn.Linear(width, spec.dim)
        self.conditioner.initialize()
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.register_buffer("order", groups.flatten(), persistent=False)
        self.register_buffer("entity", torch.arange(self.entities).repeat_interleave(self.inside), persistent=False)
        self.register_buffer("mask", _masks.block(self.entity), persistent=False)

    def split(self, latents: Tensor) -> Tensor:
        """[B, N, D] -> entities [B, E, positions of one, D]"""
        return latents[:, self.order].unflatten(1, (self.entities, self.inside))

    def join(self, entities: Tensor) -> Tensor:
        """The inverse of `split`"""
        return torch.empty_like(entities.flatten(1, 2)).index_copy_(1, self.order, entities.flatten(1, 2))

    def velocity(
        self, noisy: Tensor, times: Tensor, condition: Tensor, first: int = 0, cache: Any | None = None
    ) -> Tensor:
        """Entities from the `first` on [B, E, n, D] at times [B, E] -> their velocities. With a cache, the earlier ones are in
        it, and these are added to it."""
        count = noisy.shape[1]
        here = slice(first * self.inside, (first + count) * self.inside)
        hidden = self.lift(noisy.flatten(1, 2)) + self.positions[self.order[here]]
        modulation = self.time(times)[:, :, None] + self.conditioner(condition).mean(1)[:, None, None]
        modulation = modulation.expand(-1, -1, self.inside, -1).flatten(1, 2)  # [B, E n, W]
        seen = self.mask[here, : here.stop]
        found = self.backbone(hidden, cache, mask=seen, positions=self.order[here], condition=modulation)
        return self.project(found).unflatten(1, (count, self.inside))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        condition = batch[self.conditioner.key]
        if self.training and self.condition_dropout:
            condition = self.conditioner.dropped(condition, self.condition_dropout)
        clean = self.split(batch["latents"])
        rows, device = len(clean), clean.device
        times, noise = torch.randn(rows, self.entities, device=device).sigmoid(), torch.randn_like(clean)
        counted = torch.ones_like(times, dtype=torch.bool)
        if self.context == "clean":
            chosen = torch.randint(self.entities, (rows, 1), device=device)
            counted = torch.arange(self.entities, device=device) == chosen
            times = times * counted
        noisy = torch.lerp(clean, noise, times[:, :, None, None])
        error = (self.velocity(noisy, times, condition) - (noise - clean)).float().square().mean((2, 3))  # [B, E]
        return {"loss": (error * counted).sum() / counted.sum()}
