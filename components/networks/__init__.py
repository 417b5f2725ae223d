"""Networks that classify images: for rewards and metrics, trained in the run (section `networks` of a recipe)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.interfaces import FeatureExtractor, Networks
from components.registry import ComponentError, nearest

#: the name of one of the recipe's networks, with the sign that tells it from a component
Reference = Annotated[str, Field(pattern="^@", description="a network of the recipe, e.g. @judge")]


def refer(networks: Networks, reference: str) -> FeatureExtractor:
    """The network that a recipe calls `@name`; raises ComponentError with the names there are."""
    if not reference.startswith("@"):
        raise ComponentError(f"expected a reference such as '@judge', got '{reference}'", ("network",))
    name = reference.removeprefix("@")
    if name not in networks:
        known = ", ".join(f"@{n}" for n in sorted(networks)) or "none: the section 'networks' is empty"
        raise ComponentError(
            f"no network is called '{reference}'{nearest(name, sorted(networks))} (there are: {known})", ("network",)
        )
    return networks[name]
