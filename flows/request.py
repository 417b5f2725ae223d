"""What a person asks for: the form of every flow in the UI, and what the command line fills in.

The recipe and scale choices are read from the project when this module is imported, so the form offers exactly what is
there; `tessera deploy` and `tessera up` publish it anew when `recipes/` has changed.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from flows import recipes, runs

if TYPE_CHECKING:  # the members are only known at run time
    Recipe = str
    Scale = str
    Stage = str
else:
    _PROJECT = runs.project_root()
    Recipe = Enum("Recipe", {name: name for name in recipes.list_recipes(_PROJECT)}, type=str)
    Scale = Enum("Scale", {name: name for name in recipes.list_scales(_PROJECT)}, type=str)
    Stage = Enum("Stage", {name: name for name in runs.stage_names(_PROJECT)}, type=str)


class Request(BaseModel):
    """Which recipe to run, at which size, with which changes."""

    model_config = ConfigDict(use_enum_values=True, extra="forbid")

    recipe: Recipe = Field(description="the recipe: a file in recipes/")
    scale: Scale = Field(
        default="tiny", description="tiny: CPU, minutes; small: one GPU, about an hour; paper: as published"
    )
    overrides: list[str] = Field(
        default=[], description="changes to the recipe, each a.b=c, e.g. generator.train.steps=2000"
    )
    name: str = Field(default="", description="name of the run; empty: made from recipe and overrides")
    until: Stage = Field(default="registration", description="the last stage to run")
    force: list[Stage] = Field(default=[], description="stages to run even when they are up to date")
    keep: list[Stage] = Field(
        default=[], description="stages whose present output is accepted although something changed"
    )
    workers: int = Field(default=1, ge=1, description="training processes; more than one trains data-parallel")
