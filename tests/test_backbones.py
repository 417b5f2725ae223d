"""Backbones: caches change nothing, a position sees what its mask says and nothing else, positions are relative."""

from __future__ import annotations

import itertools

import pytest
import torch

from components import registry
from components.backbones import _masks, _rope
from components.backbones._sequence import coordinates
from components.backbones.transformer import Transformer
from components.interfaces import Backbone, SequenceShape, Visible

SIZES = [{"depth": 2, "width": 32, "heads": 4}, {"depth": 2, "width": 32, "heads": 4, "kv_heads": 2}]
SMALL = {"transformer": SIZES, "modulated_transformer": SIZES}
CASES = [(name, config) for name in registry.names(Backbone) for config in SMALL[name]]


def build(name: str, config: dict, length: int = 12) -> Backbone:
    torch.manual_seed(0)
    backbone = registry.build(Backbone, {"type": name, **config}, SequenceShape(length)).eval()
    for parameter in backbone.parameters():  # small initial weights would hide mistakes
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return backbone


@pytest.mark.parametrize(("name", "config"), CASES)
class TestBackboneContract:
    @pytest.mark.parametrize("kind", ["new_cache", "fixed_cache"])
    @pytest.mark.parametrize("parts", [[1] * 12, [5, 4, 3], [1, 11], [12]])
    @torch.no_grad()
    def test_with_the_cache_is_as_without(self, name: str, config: dict, parts: list[int], kind: str) -> None:
        backbone = build(name, config)
        hidden = torch.randn(3, 12, backbone.width)
        cache = getattr(backbone, kind)(3, hidden.device, hidden.dtype)
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
    def test_a_rewound_cache_has_forgotten(self, name: str, config: dict) -> None:
        backbone = build(name, config)
        hidden = torch.randn(2, 12, backbone.width)
        for kind in (backbone.new_cache, backbone.fixed_cache):
            cache = kind(2, hidden.device, hidden.dtype)
            backbone(hidden[:, :5], cache)
            backbone(torch.randn(2, 4, backbone.width), cache)  # a draft that is thrown away
            cache.rewind(5)
            rest = backbone(hidden[:, 5:], cache)
            torch.testing.assert_close(rest, backbone(hidden)[:, 5:], atol=1e-5, rtol=1e-5)
            with pytest.raises(ValueError, match="holds 12 positions"):
                cache.rewind(13)

    @torch.no_grad()
    def test_one_prefix_is_continued_many_times(self, name: str, config: dict) -> None:
        backbone = build(name, config)
        prefix, rest = torch.randn(2, 5, backbone.width), torch.randn(6, 7, backbone.width)
        cache = backbone.new_cache(2, prefix.device, prefix.dtype)
        backbone(prefix, cache)
        whole = backbone(torch.cat([prefix.repeat_interleave(3, 0), rest], 1))
        torch.testing.assert_close(backbone(rest, cache.repeat(3)), whole[:, 5:], atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_a_position_sees_what_the_mask_says(self, name: str, config: dict) -> None:
        """Changing one position changes exactly the positions that see it, with one layer."""
        backbone = build(name, config | {"depth": 1})
        entities = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3])
        parents = [-1, 0, 0, 1, 2, 2, 5, 5, 3, 3, 9, 9]
        hidden = torch.randn(1, 12, backbone.width)
        for mask in (_masks.causal(12), _masks.prefix(12, 4), _masks.block(entities), _masks.tree(parents, 0)):
            before = backbone(hidden, mask=mask)
            for key in range(12):
                changed = hidden.clone()
                changed[:, key] += torch.randn(backbone.width)
                moved = (backbone(changed, mask=mask) - before).abs().amax(-1)[0] > 1e-6
                assert torch.equal(moved, mask[:, key])

    @torch.no_grad()
    def test_masks_by_word_are_masks_one_by_one(self, name: str, config: dict) -> None:
        backbone = build(name, config)
        hidden = torch.randn(2, 12, backbone.width)
        ones = torch.ones(12, 12, dtype=torch.bool)
        for word, mask in ((Visible.CAUSAL, ones.tril()), (Visible.ALL, ones), (Visible.ALL, ones.expand(2, -1, -1))):
            torch.testing.assert_close(backbone(hidden, mask=word), backbone(hidden, mask=mask), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_masks_of_blocks_are_masks(self, name: str, config: dict) -> None:
        backbone = build(name, config)
        hidden = torch.randn(2, 12, backbone.width)
        mask = _masks.block(torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3]))
        blocks = backbone(hidden, mask=_masks.flexible(mask))
        torch.testing.assert_close(blocks, backbone(hidden, mask=mask), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_a_tree_of_drafts_is_each_of_its_paths(self, name: str, config: dict) -> None:
        """Many continuations verified in one forward: every node's output is that of its own path alone."""
        backbone = build(name, config)
        past, parents = torch.randn(1, 4, backbone.width), [-1, 0, 0, 1, -1, 4]
        nodes = torch.randn(1, len(parents), backbone.width)
        for kind in (backbone.new_cache, backbone.fixed_cache):
            cache = kind(1, past.device, past.dtype)
            backbone(past, cache)
            found = backbone(nodes, cache, mask=_masks.tree(parents, 4), positions=4 + _masks.depths(parents))
            for node in range(len(parents)):
                path, at = [], node
                while at >= 0:
                    path.insert(0, at)
                    at = parents[at]
                alone = backbone(torch.cat([past, nodes[:, path]], 1))[:, -1]
                torch.testing.assert_close(found[:, node], alone, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_the_past_matters(self, name: str, config: dict) -> None:
        backbone = build(name, config)
        hidden = torch.randn(1, 12, backbone.width)
        changed = hidden.clone()
        changed[:, 0] += 1
        assert (backbone(hidden) - backbone(changed)).abs().amax(-1).min() > 1e-4

    def test_every_parameter_gets_a_gradient(self, name: str, config: dict) -> None:
        backbone = build(name, config).train()
        condition = torch.randn(2, backbone.condition_width) if backbone.condition_width else None
        backbone(torch.randn(2, 12, backbone.width), condition=condition).square().sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in backbone.parameters())

    def test_more_positions_than_it_was_built_for_are_refused(self, name: str, config: dict) -> None:
        backbone = build(name, config)
        cache = backbone.new_cache(1, torch.device("cpu"), torch.float32)
        backbone(torch.zeros(1, 12, backbone.width), cache)
        with pytest.raises(ValueError, match="12 positions"):
            backbone(torch.zeros(1, 1, backbone.width), cache)


def test_rotary_products_depend_on_the_distance_only() -> None:
    cos, sin = _rope.table(torch.arange(32)[:, None], 16, 100.0)
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
    backbone = Transformer(SequenceShape(8), depth=1, width=16, heads=2, dropout=0.5)
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
        registry.build(Backbone, {"type": "transformer", **config}, SequenceShape(8))
    assert error.value.path == path


def test_a_tree_whose_child_comes_first_is_refused() -> None:
    with pytest.raises(ValueError, match="node 1 must come after its parent"):
        _masks.tree([-1, 2, 0], 0)


class TestGridPositions:
    SHAPE = SequenceShape(12, prefix=2, grid=(3, 4))

    def test_products_depend_on_rows_and_columns_apart(self) -> None:
        where = coordinates(SequenceShape(12, grid=(3, 4)), 2)
        cos, sin = _rope.table(where, 16, 100.0)
        q, k = torch.randn(16), torch.randn(16)
        products = _rope.rotate(q, cos, sin) @ _rope.rotate(k, cos, sin).T
        found: dict[tuple[int, int], float] = {}
        for i, j in itertools.product(range(12), repeat=2):
            difference = tuple((where[i] - where[j]).tolist())
            assert float(products[i, j]) == pytest.approx(found.setdefault(difference, float(products[i, j])), abs=1e-4)
        assert abs(found[0, 1] - found[1, 0]) > 1e-3

    def test_conditions_stand_at_the_origin(self) -> None:
        where = coordinates(self.SHAPE, 2)
        assert where[:2].tolist() == [[0, 0], [0, 0]]
        assert where[2:].tolist() == [[r, c] for r in (1, 2, 3) for c in (1, 2, 3, 4)]

    @pytest.mark.parametrize("name", ["transformer", "modulated_transformer"])
    def test_a_sequence_has_no_second_axis(self, name: str) -> None:
        with pytest.raises(registry.ComponentError, match="stand in a row") as error:
            registry.build(Backbone, {"type": name, "width": 32, "heads": 2, "axes": 2}, SequenceShape(12))
        assert error.value.path == ("axes",)
        assert registry.build(Backbone, {"type": name, "width": 32, "heads": 2, "axes": 2}, self.SHAPE).width == 32


class TestModulation:
    def build(self) -> Backbone:
        return build("modulated_transformer", {"depth": 2, "width": 32, "heads": 4})

    @torch.no_grad()
    def test_the_condition_of_a_position_moves_it_alone_where_nothing_is_shared(self) -> None:
        backbone, hidden, condition = self.build(), torch.randn(2, 12, 32), torch.randn(2, 12, 32)
        changed = condition.clone()
        changed[:, 7] += 1
        before, after = (backbone(hidden, condition=c) for c in (condition, changed))
        assert torch.equal(before[:, :7], after[:, :7])
        assert (before[:, 7] - after[:, 7]).abs().max() > 1e-4

    @torch.no_grad()
    def test_one_vector_is_the_same_vector_everywhere(self) -> None:
        backbone, hidden, condition = self.build(), torch.randn(2, 12, 32), torch.randn(2, 32)
        everywhere = condition[:, None].expand(-1, 12, -1)
        torch.testing.assert_close(backbone(hidden, condition=condition), backbone(hidden, condition=everywhere))

    def test_it_starts_as_the_identity_up_to_the_last_norm(self) -> None:
        backbone = registry.build(
            Backbone, {"type": "modulated_transformer", "depth": 2, "width": 32, "heads": 4}, SequenceShape(12)
        )
        hidden = torch.randn(2, 12, 32)
        for block in backbone.blocks:  # type: ignore[union-attr]
            assert torch.equal(
                block(hidden, torch.randn(2, 1, 32), backbone.cos, backbone.sin, None, True, None, 0), hidden
            )

    def test_a_plain_transformer_takes_no_vector(self) -> None:
        backbone = build("transformer", {"depth": 1, "width": 32, "heads": 4})
        with pytest.raises(ValueError, match="modulated_transformer"):
            backbone(torch.zeros(1, 3, 32), condition=torch.zeros(1, 32))
