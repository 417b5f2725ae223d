"""What stands in for layers while the engine decodes on a CPU.

1. A step of decoding multiplies few rows by every weight of the network. The general matrix product reads the weights at a
   tenth of the memory's speed there; oneDNN's, with weights in its own blocked layout, several times as fast.
2. `Packed.of(module)` lays out the weights of every `nn.Linear` in float32 on a CPU, once, and again when training has
   changed them; `with packed:` lets the layers use them for a moment.
3. Fewer than four rows are filled up to four: oneDNN's kernel for four is faster than that for one.
4. A block that says how it is decoded (`for_decoding`) is replaced as a whole.

Results differ from the plain layers by rounding. Where oneDNN is not built in, nothing is replaced and nothing changes.
Deliberately absent: half precision (it would be another model), packing on a GPU (its kernels need none).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_LEAST = 4  # rows
_KEPT: weakref.WeakKeyDictionary[nn.Module, Packed] = weakref.WeakKeyDictionary()


class _Linear:
    """The forward of one layer, without autograd."""

    def __init__(self, layer: nn.Linear) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _LEAST)
        self.bias = None if layer.bias is None else layer.bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if 0 < rows < _LEAST:
            return self._product(_filled(x.reshape(rows, -1)))[:rows].view(*x.shape[:-1], -1)
        return self._product(x)

    def added(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual [R, W] + layer(x [R, ...])"""
        rows = len(x)
        if rows < _LEAST:
            x, residual = _filled(x), _filled(residual)
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")[:rows]

    def _product(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, "none", [], "")


class Packed:
    """Use as a context manager: within it the stand-ins take the place of layers and blocks."""

    def __init__(self) -> None:
        self.layers: dict[nn.Linear, _Linear] = {}
        self.blocks: dict[nn.Module, Callable[..., Tensor]] = {}
        self.version: tuple[int, ...] = ()

    @classmethod
    def of(cls, module: nn.Module) -> Packed:
        """The stand-ins of a module's layers, kept as long as the module and renewed where weights have changed."""
        packed: Packed = _KEPT.setdefault(module, cls())
        version = _version(module)
        if version != packed.version and _available():
            packed.version = version
            layers = (layer for layer in module.modules() if isinstance(layer, nn.Linear))
            packed.layers = {layer: _Linear(layer) for layer in layers if _suits(layer)}
            packed.blocks = {block: of(packed.layers.__getitem__) for block, of in packed._replaceable(module)}
        return packed

    def _replaceable(self, module: nn.Module) -> Iterator[tuple[nn.Module, Callable[..., Callable[..., Tensor]]]]:
        """The blocks that say how they are decoded and whose layers are all packed."""
        for block in module.modules():
            of = getattr(block, "for_decoding", None)
            if of is not None and all(
                layer in self.layers for layer in block.modules() if isinstance(layer, nn.Linear)
            ):
                yield block, of

    def __enter__(self) -> None:
        if torch.is_autocast_enabled("cpu"):  # then the plain layers compute in half precision
            return
        for stand_ins in (self.layers, self.blocks):
            for module, stand_in in stand_ins.items():
                # What stands there already is another's: of a training that recomputes, or the same in another thread.
                module.__dict__.setdefault("forward", stand_in)

    def __exit__(self, *error: Any) -> None:
        for stand_ins in (self.layers, self.blocks):
            for module, stand_in in stand_ins.items():
                if module.__dict__.get("forward") is stand_in:
                    module.__dict__.pop("forward", None)


def _filled(x: Tensor) -> Tensor:
    """[1 to 3, W] -> [4, W]; what is in the added rows does not matter."""
    return x.expand(_LEAST, -1) if len(x) == 1 else torch.cat([x, x, x])[:_LEAST]


def _suits(layer: nn.Linear) -> bool:
    weight = layer.weight
    plain = type(layer) is nn.Linear and weight.device.type == "cpu" and weight.dtype == torch.float32
    return plain and weight.numel() > 0


def _version(module: nn.Module) -> tuple[int, ...]:
    """Changes with every change of the weights in place, and when others take their place."""
    return tuple(number for p in module.parameters() for number in (p.data_ptr(), p._version))


def _available() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
