"""Linear layers for decoding on a CPU: their weights laid out once as oneDNN's kernels read them.

1. A step of decoding multiplies few rows by every weight of the network. The general matrix product reads the weights at a
   tenth of the memory's speed there; oneDNN's, with weights in its own blocked layout, several times as fast.
2. `Packed.of(module)` lays out the weights of every `nn.Linear` in float32 on a CPU, once, and again when training has
   changed them; `with packed:` lets these layers use them for a moment.
3. Fewer than four rows are filled up to four: its kernel for four is faster than that for one.

Results differ from the plain product by rounding. Where oneDNN is not built in, nothing is packed and nothing changes.
Deliberately absent: half precision (it would be another model), packing on a GPU (its kernels need none).
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

_LEAST = 4  # rows
_KEPT: weakref.WeakKeyDictionary[nn.Module, Packed] = weakref.WeakKeyDictionary()


class _Linear:
    """The forward of one layer, without autograd."""

    def __init__(self, layer: nn.Linear) -> None:
        self.version = _version(layer)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _LEAST)
        self.bias = None if layer.bias is None else layer.bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if 0 < rows < _LEAST:
            flat = x.reshape(rows, -1)
            filled = flat.expand(_LEAST, -1) if rows == 1 else torch.cat([flat, flat, flat])[:_LEAST]
            return self._product(filled)[:rows].view(*x.shape[:-1], -1)
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class Packed:
    """Use as a context manager: within it the packed layers stand in for the plain ones."""

    def __init__(self) -> None:
        self.layers: dict[nn.Linear, _Linear] = {}

    @classmethod
    def of(cls, module: nn.Module) -> Packed:
        """The packed layers of a module, kept as long as the module and renewed where weights have changed."""
        packed = _KEPT.setdefault(module, cls())
        layers = (layer for layer in module.modules() if isinstance(layer, nn.Linear))
        wanted = [layer for layer in layers if _suits(layer)] if _available() else []
        packed.layers = {
            layer: found
            if (found := packed.layers.get(layer)) is not None and found.version == _version(layer)
            else _Linear(layer)
            for layer in wanted
        }
        return packed

    def __enter__(self) -> None:
        for layer, stand_in in self.layers.items():
            layer.__dict__["forward"] = stand_in

    def __exit__(self, *error: Any) -> None:
        for layer in self.layers:
            layer.__dict__.pop("forward", None)


def _suits(layer: nn.Linear) -> bool:
    weight = layer.weight
    plain = type(layer) is nn.Linear and weight.device.type == "cpu" and weight.dtype == torch.float32
    return plain and weight.numel() > 0 and not torch.is_autocast_enabled("cpu")


def _version(layer: nn.Linear) -> tuple[int, ...]:
    """Changes with every change of the weights in place, and when others take their place."""
    return (layer.weight.data_ptr(), layer.weight._version)


def _available() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
