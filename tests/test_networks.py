"""The classifier, and references to networks."""

from __future__ import annotations

import pytest
import torch

from components import artifact, registry
from components.interfaces import FeatureExtractor, ImageFormat
from components.networks import refer
from components.networks.classifier import Classifier
from flows.networks import derived_seed


@pytest.mark.parametrize("name", registry.names(FeatureExtractor))
@pytest.mark.parametrize("image", [ImageFormat(8, 1), ImageFormat(16, 1), ImageFormat(28, 1), ImageFormat(64, 3)])
class TestContract:
    def test_shapes_gradients_and_determinism(self, name: str, image: ImageFormat) -> None:
        network = registry.build(FeatureExtractor, {"type": name}, image, 7)
        images = torch.randn(3, image.channels, image.size, image.size)
        assert network.logits(images).shape == (3, 7)
        assert network.features(images).shape[0] == 3
        losses = network({"images": images, "labels": torch.tensor([0, 3, 6])})
        losses["loss"].backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
        torch.testing.assert_close(
            network.eval().logits(images)[1:2], network.logits(images[1:2]), atol=1e-4, rtol=1e-4
        )

    def test_saved_and_loaded_it_is_the_same(self, name: str, image: ImageFormat, tmp_path) -> None:
        spec = registry.resolve(FeatureExtractor, {"type": name})
        network = spec.build(image, 7).eval()
        artifact.save(tmp_path, FeatureExtractor, spec.dump(), (image, 7), network)
        loaded = artifact.load(tmp_path, FeatureExtractor)
        images = torch.randn(2, image.channels, image.size, image.size)
        assert torch.equal(loaded.logits(images), network.logits(images))


def test_the_score_of_a_sample_does_not_depend_on_its_batch() -> None:
    network = Classifier(ImageFormat(16, 1), 5)
    images = torch.randn(8, 1, 16, 16)
    alone = torch.cat([network.logits(image[None]) for image in images])
    torch.testing.assert_close(network.logits(images), alone, atol=1e-5, rtol=1e-4)


def test_a_reference_names_what_there_is() -> None:
    networks = {"judge": Classifier(ImageFormat(8, 1), 2)}
    assert refer(networks, "@judge") is networks["judge"]
    for wrong, hint in (("judge", "@judge"), ("@judg", "did you mean 'judge'"), ("@x", "there are: @judge")):
        with pytest.raises(registry.ComponentError, match=hint):
            refer(networks, wrong)
    with pytest.raises(registry.ComponentError, match="'networks' is empty"):
        refer({}, "@judge")


def test_seeds_of_parts_differ_and_are_fixed() -> None:
    seeds = {derived_seed(seed, name) for seed in range(20) for name in ("networks.judge", "networks.reward")}
    assert len(seeds) == 40
    assert derived_seed(0, "networks.judge") == derived_seed(0, "networks.judge")


@pytest.mark.slow
def test_it_learns_digits() -> None:
    """Held-out accuracy on scikit-learn's digits, at their own 8x8 pixels."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    data = load_digits()
    images = torch.tensor(data.images / 8 - 1, dtype=torch.float32)[:, None]
    labels = torch.tensor(data.target)
    order = torch.randperm(len(images))
    train, heldout = order[360:], order[:360]
    network = Classifier(ImageFormat(8, 1), 10, width=16)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(150):
        rows = train[torch.randint(len(train), (128,))]
        loss = network({"images": images[rows], "labels": labels[rows]})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = (network.logits(images[heldout]).argmax(-1) == labels[heldout]).float().mean()
    assert float(accuracy) >= 0.95
