"""FID: the Fréchet distance in the features of the Inception network of 2015, by its own weights and resizing.

1. Pictures as 8-bit values, resized to 299 as TensorFlow 1 does, through the network (`_inception.py`): 2,048 features.
2. The Fréchet distance between samples and held-out images (`fd.py`); its interval and its bias are described there.

`weights` is a safetensors file with the tensors of `pt_inception-2015-12-05`, the port of the TensorFlow graph that torch-fidelity
and pytorch-fid use, under the same names; `sha256`, where it is given, is that of this file. Without these weights there is no
FID: random ones or ImageNet's of torchvision give other numbers, and `fd` is the measure for networks of the run. Published values
are of 50,000 samples against the training set's statistics; here the other side is the held-out images.
Sources: Heusel et al. 2017, https://arxiv.org/abs/1706.08500; on resizing Parmar et al. 2022, https://arxiv.org/abs/2104.11222.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor

from components.evaluation._inception import Inception
from components.evaluation.fd import FrechetDistance
from components.interfaces import Networks, TokenSpec
from components.registry import ComponentError


def load(weights: Path, sha256: str | None) -> Inception:
    """The network with these weights, frozen; raises ComponentError when the file is none of its."""
    from safetensors import SafetensorError
    from safetensors.torch import load as read

    if not weights.is_file():
        raise ComponentError(
            f"there is no file '{weights}'; FID is defined by the Inception weights pt_inception-2015-12-05 (as safetensors); "
            "without them measure 'fd' on a network of the run",
            ("weights",),
        )
    data = weights.read_bytes()
    if sha256 is not None and (digest := hashlib.sha256(data).hexdigest()) != sha256:
        raise ComponentError(f"'{weights}' has {digest}, expected {sha256}", ("sha256",))
    try:
        tensors = read(data)
    except SafetensorError as error:
        raise ComponentError(f"'{weights}' is not a safetensors file: {error}", ("weights",)) from error
    network = Inception()
    counters = {name for name in network.state_dict() if name.endswith("num_batches_tracked")}  # of training only
    for name, wanted in sorted(network.state_dict().items()):
        shape = tuple(tensors[name].shape) if name in tensors else "nothing"
        if name not in counters and shape != tuple(wanted.shape):
            raise ComponentError(
                f"'{weights}' is not the Inception network of FID, tensor '{name}': expected {tuple(wanted.shape)}, found {shape}",
                ("weights",),
            )
    known = {name: tensor for name, tensor in tensors.items() if name in network.state_dict()}
    network.load_state_dict(known, strict=False)
    return network.eval().requires_grad_(False)


class _Loaded:
    """The network of a file, read when the first images come, where they are."""

    def __init__(self, weights: Path, sha256: str | None) -> None:
        self.weights, self.sha256 = weights, sha256
        self.network: Inception | None = None

    def features(self, images: Tensor) -> Tensor:
        if self.network is None:
            self.network = load(self.weights, self.sha256).to(images.device)
        return self.network(images)


class FID(FrechetDistance):
    """The file is read when the first images come."""

    def __init__(
        self,
        networks: Networks,
        spec: TokenSpec,
        *,
        weights: Annotated[str, Field(min_length=1, description="safetensors file of pt_inception-2015-12-05")],
        sha256: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$", description="of this file")] = None,
    ) -> None:
        self.keep("fid", _Loaded(Path(weights), sha256))
