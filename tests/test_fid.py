"""The network and resizing of FID: torch-fidelity's, where that is installed; TensorFlow 1's formula anywhere."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from components import registry
from components.evaluation._inception import Inception, resized
from components.evaluation.fd import Moments, frechet_distance
from components.interfaces import EvaluationBatch, Metric, TokenSpec
from components.registry import ComponentError

SPEC = TokenSpec((32,), 4, "grid", grid=(2, 2))


@pytest.fixture(scope="module")
def network() -> Inception:
    """Random weights whose activations neither vanish nor grow."""
    torch.manual_seed(0)
    made = Inception().eval()
    for name, tensor in made.state_dict().items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(tensor)
        elif name.endswith(("bn.weight", "running_var")):
            tensor.uniform_(0.8, 1.2)
        elif name.endswith(("bn.bias", "running_mean")):
            tensor.uniform_(-0.1, 0.1)
    return made


@pytest.fixture(scope="module")
def weights(network: Inception, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    fc = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    save_file({**network.state_dict(), **fc}, path)
    return path


def pictures(n: int, seed: int, size: int = 20, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("shape", [(5, 7), (299, 299), (16, 16), (320, 300)])
def test_resizing_is_tensorflow_1_s(shape: tuple[int, int]) -> None:
    """By hand at some places: lower = floor(i * in / out), upper = lower + 1 within the image."""
    image, size = torch.rand(1, 1, *shape), 299
    found = resized(image)[0, 0]
    for i, j in ((0, 0), (1, 2), (150, 77), (298, 298), (297, 3)):
        y, x = i * shape[0] / size, j * shape[1] / size
        top, left = int(y), int(x)
        low, right = min(top + 1, shape[0] - 1), min(left + 1, shape[1] - 1)
        dy, dx, p = y - top, x - left, image[0, 0]
        expected = (1 - dy) * ((1 - dx) * p[top, left] + dx * p[top, right])
        expected += dy * ((1 - dx) * p[low, left] + dx * p[low, right])
        assert float(found[i, j]) == pytest.approx(float(expected), abs=1e-4)


@torch.no_grad()
def test_the_distance_is_that_of_its_features(network: Inception, weights: Path) -> None:
    metric, other = (registry.build(Metric, {"type": "fid", "weights": str(weights)}, {}, SPEC) for _ in range(2))
    real, drawn = pictures(3, 1), pictures(4, 2)
    metric.update(EvaluationBatch(heldout=real[:2], samples=drawn[:2]))
    other.update(EvaluationBatch(heldout=real[2:], samples=drawn[2:]))
    metric.merge(other)
    sides = [Moments(), Moments()]
    for moments, images in zip(sides, (real, drawn), strict=True):
        moments.update(network(images))
    expected = frechet_distance(sides[0].mean, sides[0].covariance(), sides[1].mean, sides[1].covariance())
    assert metric.compute() == {"fid": pytest.approx(expected, rel=1e-3)}
    assert registry.build(Metric, {"type": "fid", "weights": str(weights)}, {}, SPEC).compute() == {}


@torch.no_grad()
def test_gray_is_three_equal_channels(network: Inception) -> None:
    gray = pictures(2, 3, channels=1)
    assert network(gray).shape == (2, 2048)
    torch.testing.assert_close(network(gray), network(gray.expand(-1, 3, -1, -1)))


def test_there_is_no_fid_without_its_weights(weights: Path, tmp_path: Path) -> None:
    def asked(**config: object) -> None:
        registry.build(Metric, {"type": "fid", **config}, {}, SPEC).update(EvaluationBatch(samples=pictures(1, 0)))

    with pytest.raises(ComponentError, match="is missing"):
        asked()
    with pytest.raises(ComponentError, match="there is no file"):
        asked(weights=str(tmp_path / "none.safetensors"))
    (tmp_path / "torn.safetensors").write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ComponentError, match="is not a safetensors file"):
        asked(weights=str(tmp_path / "torn.safetensors"))
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ComponentError, match=r"tensor 'Conv2d_1a_3x3.bn.bias': expected \(32,\), found nothing"):
        asked(weights=str(tmp_path / "other.safetensors"))
    with pytest.raises(ComponentError, match=r"has \w{64}, expected 0000"):
        asked(weights=str(weights), sha256="0" * 64)
    asked(weights=str(weights), sha256=hashlib.sha256(weights.read_bytes()).hexdigest())


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed")
@torch.no_grad()
def test_features_are_those_of_torch_fidelity(network: Inception, tmp_path: Path) -> None:
    """The same random weights in its extractor. Only that module is imported: the package wants torchvision's operators."""
    spec = importlib.util.find_spec("torch_fidelity")
    assert spec is not None
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations or [])
    sys.modules.setdefault("torch_fidelity", package)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    fc = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save({**network.state_dict(), **fc}, tmp_path / "weights.pth")
    theirs = FeatureExtractorInceptionV3("inception", ["2048"], str(tmp_path / "weights.pth")).eval()
    for size in (32, 299, 310):
        images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
        expected = theirs(images)[0]
        found = network(images.float() / 127.5 - 1)
        assert expected.std() > 0.01
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
