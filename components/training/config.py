"""How something is trained: the `train` section that tokenizer, generator, post-training and networks share."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Train(BaseModel):
    """Batch sizes are global: one process or eight train the same thing."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(ge=0, description="optimizer steps; 0 only for a section that starts from published weights")
    batch_size: int = Field(default=128, ge=1, description="samples a step, over all processes")
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate of AdamW")
    warmup: int = Field(default=20, ge=0, description="steps of linear warm-up")
    schedule: Literal["cosine", "constant", "wsd"] = Field(
        default="cosine", description="after warm-up; wsd: stable, then linear decay over the last fifth"
    )
    final_lr: float = Field(default=0.05, ge=0, le=1, description="learning rate at the end, as a share of lr")
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="decay of the weight average that is kept at the end"
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every: int = Field(default=200, ge=1, description="steps between checkpoints")
    log_every: int = Field(default=10, ge=1, description="steps between reported metrics")
    memory_mb: int = Field(
        default=2048, ge=0, description="training data that are larger than this when decoded are read as a stream"
    )
    window_mb: int = Field(default=512, ge=1, description="of a stream: stored data that are shuffled together")
