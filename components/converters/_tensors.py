"""Tensors of one model under the names of another: nothing missing, nothing left over."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class ConversionError(ValueError):
    """A model that the other format cannot hold; says what it was and what is expected."""

    user_error = True


def load(module: nn.Module, tensors: Mapping[str, Tensor], left_out: tuple[str, ...] = ()) -> None:
    """Into the module, whose tensors that begin with `left_out` stay; ConversionError names the tensor that does not fit."""
    compare({n: t for n, t in module.state_dict().items() if not n.startswith(left_out)}, tensors)
    module.load_state_dict(dict(tensors), strict=False)


def compare(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raises ConversionError naming the first tensor that is missing, left over or of another shape."""
    for name in sorted({*expected, *tensors}):
        wanted = tuple(expected[name].shape) if name in expected else "nothing"
        found = tuple(tensors[name].shape) if name in tensors else "nothing"
        if wanted != found:
            raise ConversionError(f"tensor '{name}': expected {wanted}, found {found}")


def refuse_to_draw(tokens: Tensor) -> Tensor:
    """In place of `decode`, where weights have no decoder."""
    raise ConversionError("these weights have no decoder: tokens can be made from pictures, and not be drawn")
