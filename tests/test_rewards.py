"""Rewards: every registered one keeps the contract, and the class probability is what it says."""

from __future__ import annotations

import pytest
import torch

from components import registry
from components.interfaces import ImageFormat, Reward
from components.networks.classifier import Classifier

torch.manual_seed(0)
NETWORKS = {"reward": Classifier(ImageFormat(16, 1), 4, width=8).eval()}


@pytest.mark.parametrize("name", registry.names(Reward))
def test_one_finite_score_a_sample_whatever_the_batch(name: str) -> None:
    reward = registry.build(Reward, {"type": name}, NETWORKS)
    images, labels = torch.randn(6, 1, 16, 16), torch.tensor([0, 1, 2, 3, 0, 1])
    scores = reward.score(images, labels)
    assert scores.shape == (6,)
    assert torch.isfinite(scores).all()
    assert not scores.requires_grad
    torch.testing.assert_close(scores[2:3], reward.score(images[2:3], labels[2:3]))


def test_it_is_the_probability_and_saturates() -> None:
    images, labels = torch.randn(6, 1, 16, 16) * 3, torch.tensor([0, 1, 2, 3, 0, 1])
    expected = NETWORKS["reward"].logits(images).softmax(-1)[torch.arange(6), labels]
    plain = registry.build(Reward, {"type": "class_probability", "saturation": 1.0}, NETWORKS)
    torch.testing.assert_close(plain.score(images, labels), expected.detach())
    bound = float(expected.detach().median())
    saturating = registry.build(Reward, {"type": "class_probability", "saturation": bound}, NETWORKS)
    torch.testing.assert_close(saturating.score(images, labels), expected.detach().clamp(max=bound))


def test_a_class_that_the_network_does_not_know_is_refused() -> None:
    reward = registry.build(Reward, {"type": "class_probability"}, NETWORKS)
    with pytest.raises(ValueError, match="class 4 was asked for"):
        reward.score(torch.randn(1, 1, 16, 16), torch.tensor([4]))
