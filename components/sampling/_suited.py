"""A sampler and a generator that do not go together are refused by name."""

from __future__ import annotations

from typing import TypeVar

from components.interfaces import Generator, Sampler

G = TypeVar("G", bound=Generator)


def suited(sampler: Sampler, generator: Generator, kind: type[G]) -> G:
    """`generator`, when it is of the kind the sampler draws from; raises ValueError otherwise."""
    if not isinstance(generator, kind):
        raise ValueError(
            f"the sampler '{type(sampler).__name__}' draws from {kind.__name__} generators, {type(generator).__name__} is "
            "another kind; choose another 'sampling.type'"
        )
    return generator
