"""Backbones and heads: the cache changes nothing, the future is not seen, positions are relative."""

from __future__ import annotations

import pytest
import torch

from components import registry
from components.backbones import _rope
from components.backbones.transformer import Transformer
from components.interfaces import Backbone, Head, TokenSpec

SMALL = {"transformer": [{"depth": 2, "width": 32, "heads": 4}, {"depth": 2, "width": 32, "heads": 4, "kv_heads": 2}]}
CASES = [(name, config) for name in registry.names(Backbone) for config in SMALL[name]]


def build(name: str, config: dict, length: int = 12) -> Backbone:
    torch.manual_seed(0)
    backbone = registry.build(Backbone, {"type": name, **config}, length).eval()
    for parameter in backbone.parameters():  # small initial weights would hide mistakes
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return backbone


@pytest.mark.parametrize(("name", "config"), CASES)
class TestBackboneContract:
    @pytest.mark.parametrize("parts", [[1] * 12, [5, 4, 3], [1, 11], [12]])
    @torch.no_grad()
    def test_with_the_cache_is_as_without(self, name: str, config: dict, parts: list[int]) -> None:
        backbone = build(name, config)
        hidden = torch.randn(3, 12, backbone.width)
        cache = backbone.new_cache(3, hidden.device, hidden.dtype)
        stepwise = torch.cat([backbone(part, cache) for part in hidden.split(parts, 1)], 1)
        torch.testing.assert_close(stepwise, backbone(hidden), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_the_future_does_not_change_the_past(self, name: str, config: dict) -> None:
        backbone = build(name, config)
        hidden = torch.randn(2, 12, backbone.width)
        changed = hidden.clone()
        changed[:, 7:] = torch.randn(2, 5, backbone.width)
        before, after = backbone(hidden), backbone(changed)
        assert torch.equal(before[:, :7], after[:, :7])
        assert (before[:, 7:] != after[:, 7:]).any(-1).all()

    @torch.no_grad()
    def test_the_past_matters(self, name: str, config: dict) -> None:
        backbone = build(name, config)
        hidden = torch.randn(1, 12, backbone.width)
        changed = hidden.clone()
        changed[:, 0] += 1
        assert (backbone(hidden) - backbone(changed)).abs().amax(-1).min() > 1e-4

    def test_every_parameter_gets_a_gradient(self, name: str, config: dict) -> None:
        backbone = build(name, config).train()
        backbone(torch.randn(2, 12, backbone.width)).square().sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in backbone.parameters())

    def test_more_positions_than_it_was_built_for_are_refused(self, name: str, config: dict) -> None:
        backbone = build(name, config)
        cache = backbone.new_cache(1, torch.device("cpu"), torch.float32)
        backbone(torch.zeros(1, 12, backbone.width), cache)
        with pytest.raises(ValueError, match="12 positions"):
            backbone(torch.zeros(1, 1, backbone.width), cache)


def test_rotary_products_depend_on_the_distance_only() -> None:
    cos, sin = _rope.table(32, 16, 100.0)
    q, k = torch.randn(16), torch.randn(16)
    turned_q, turned_k = _rope.rotate(q, cos, sin), _rope.rotate(k, cos, sin)  # at all positions, [32, 16]
    products = turned_q @ turned_k.T
    for distance in (0, 1, 5, 20):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-4, rtol=1e-4)
    assert (products[0, 1:] - products[0, 0]).abs().max() > 0.1
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(32))


def test_a_transformer_sees_the_order_of_what_came_before() -> None:
    backbone = build("transformer", {"depth": 1, "width": 32, "heads": 4})
    hidden = torch.randn(1, 12, 32)
    swapped = hidden[:, [1, 0, *range(2, 12)]]
    assert (backbone(hidden)[:, -1] - backbone(swapped)[:, -1]).abs().max() > 1e-3


def test_dropout_acts_in_training_only() -> None:
    backbone = Transformer(8, depth=1, width=16, heads=2, dropout=0.5)
    hidden = torch.randn(1, 8, 16)
    assert not torch.equal(backbone(hidden), backbone(hidden))
    backbone.eval()
    assert torch.equal(backbone(hidden), backbone(hidden))


@pytest.mark.parametrize(
    ("config", "path", "message"),
    [
        ({"width": 30, "heads": 4}, ("width",), "multiple of"),
        ({"width": 32, "heads": 4, "kv_heads": 3}, ("kv_heads",), "divide"),
    ],
)
def test_sizes_that_do_not_fit_are_named(config: dict, path: tuple, message: str) -> None:
    with pytest.raises(registry.ComponentError, match=message) as error:
        registry.build(Backbone, {"type": "transformer", **config}, 8)
    assert error.value.path == path


@pytest.mark.parametrize("name", registry.names(Head))
class TestHeadContract:
    def test_the_loss_is_the_negative_log_softmax_of_the_logits(self, name: str) -> None:
        head = registry.build(Head, {"type": name}, 24, TokenSpec(50, 6, "sequence"))
        hidden, tokens = torch.randn(3, 6, 24) * 5, torch.randint(50, (3, 6))
        logits = head(hidden)
        assert logits.shape == (3, 6, 50)
        by_hand = -logits.double().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        torch.testing.assert_close(head.loss(hidden, tokens).double(), by_hand, atol=1e-5, rtol=1e-5)
