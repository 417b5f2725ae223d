"""Nodes as anchors, hops and relations: against shortest paths, brute force and networkx; and what a vocabulary must stand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from components.quantizers import _graph
from components.quantizers._anchors import AnchorRelations
from components.quantizers._graph import Graph, degree, hops, incident, nearest_anchors, pagerank

RELATIONS = 3


def random_graph(nodes: int, edges: int, seed: int = 0) -> Graph:
    rng = torch.Generator().manual_seed(seed)
    heads, tails = torch.randint(nodes, (2, edges), generator=rng)
    return Graph(nodes, heads, tails, torch.randint(RELATIONS, (edges,), generator=rng))


def shortest(graph: Graph) -> list[list[float]]:
    """All pairs, Floyd and Warshall"""
    n = graph.nodes
    found = [[0.0 if i == j else float("inf") for j in range(n)] for i in range(n)]
    for a, b in zip(graph.heads.tolist(), graph.tails.tolist(), strict=True):
        found[a][b] = found[b][a] = min(found[a][b], 1.0)
    for via in range(n):
        for i in range(n):
            for j in range(n):
                found[i][j] = min(found[i][j], found[i][via] + found[via][j])
    return found


def digits(nodes: int = 200) -> Graph:
    """The 5 nearest neighbours of each of scikit-learn's digits; by rank there are 5 relations"""
    from sklearn.datasets import load_digits
    from sklearn.neighbors import NearestNeighbors

    data = load_digits().data[:nodes]
    near = torch.from_numpy(NearestNeighbors(n_neighbors=6).fit(data).kneighbors(data)[1][:, 1:].copy())
    heads = torch.arange(nodes).repeat_interleave(5)
    return Graph(nodes, heads, near.flatten(), torch.arange(5).repeat(nodes))


def build(graph: Graph, relations: int = RELATIONS, chosen: Tensor | None = None, **config: Any) -> AnchorRelations:
    torch.manual_seed(0)
    tokenizer = AnchorRelations(8, relations, **{"anchors": 6, "nearest": 3, "reach": 5, "incident": 3, **config})
    tokenizer.fit(graph, chosen)
    return tokenizer


def renamed(graph: Graph, names: Tensor) -> Graph:
    """Node i is now `names[i]`, and the edges are told in another order"""
    order = torch.randperm(len(graph.heads), generator=torch.Generator().manual_seed(5))
    return Graph(graph.nodes, names[graph.heads][order], names[graph.tails][order], graph.types()[order])


@pytest.mark.parametrize(("nodes", "edges"), [(1, 0), (12, 5), (40, 45), (40, 90), (25, 300)])
@pytest.mark.parametrize("reach", [1, 3, 40])
def test_hops_are_shortest_paths(nodes: int, edges: int, reach: int) -> None:
    graph = random_graph(nodes, edges)
    expected = torch.tensor(shortest(graph))
    expected = torch.where(expected > reach, -1, expected).long()
    assert torch.equal(hops(graph, torch.arange(nodes), reach), expected)


def test_hops_are_those_of_networkx_on_digits() -> None:
    networkx = pytest.importorskip("networkx")
    graph, sources = digits(), [3, 77, 150]
    peer = networkx.Graph(zip(graph.heads.tolist(), graph.tails.tolist(), strict=True))
    found = hops(graph, torch.tensor(sources), 1000)
    for row, source in zip(found.tolist(), sources, strict=True):
        lengths = networkx.single_source_shortest_path_length(peer, source)
        assert row == [lengths.get(node, -1) for node in range(graph.nodes)]


@pytest.mark.parametrize("cells", [1, 100, 1 << 24])
def test_the_nearest_anchors_are_those_of_brute_force(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_graph, "_CELLS", cells)  # one, two and all anchors at a time
    graph, anchors, count, reach = random_graph(40, 45), torch.tensor([7, 3, 30, 11, 25]), 4, 3
    numbers, distances = nearest_anchors(graph, anchors, count, reach)
    paths = shortest(graph)
    for node in range(40):
        near = sorted((paths[anchor][node], number) for number, anchor in enumerate(anchors.tolist()))
        near = [(hop, number) for hop, number in near if hop <= reach][:count]
        near += [(reach + 1, len(anchors))] * (count - len(near))
        assert list(zip(distances[node].tolist(), numbers[node].tolist(), strict=True)) == near


def test_relations_are_those_counted_one_by_one() -> None:
    graph, count = random_graph(30, 90), 4
    found = incident(graph, RELATIONS, count)
    for node in range(30):
        seen: Counter[int] = Counter()
        for head, tail, kind in zip(graph.heads.tolist(), graph.tails.tolist(), graph.types().tolist(), strict=True):
            seen[kind] += head == node
            seen[kind + RELATIONS] += tail == node
        ranked = sorted((kind for kind in seen if seen[kind]), key=lambda kind: (-seen[kind], kind))[:count]
        assert found[node].tolist() == ranked + [2 * RELATIONS] * (count - len(ranked))


@pytest.mark.parametrize(
    "graph", [random_graph(40, 45), random_graph(30, 200, 2), digits(100)], ids=["sparse", "dense", "digits"]
)
def test_pagerank_is_that_of_networkx(graph: Graph) -> None:
    networkx = pytest.importorskip("networkx")
    peer = networkx.MultiDiGraph()
    peer.add_nodes_from(range(graph.nodes))
    for a, b in zip(graph.heads.tolist(), graph.tails.tolist(), strict=True):
        peer.add_edges_from([(a, b), (b, a)])
    expected = networkx.pagerank(peer, alpha=0.85, tol=1e-13, max_iter=1000)
    found = pagerank(graph)
    assert found.sum() == pytest.approx(1)
    assert found.tolist() == pytest.approx([expected[node] for node in range(graph.nodes)], abs=1e-9)


def test_degrees_choose_the_nodes_with_most_edges() -> None:
    graph = digits()
    ends = Counter([*graph.heads.tolist(), *graph.tails.tolist()])
    chosen = build(graph, 5, strategy="degree").chosen.tolist()
    assert degree(graph).tolist() == [ends[node] for node in range(graph.nodes)]
    assert min(ends[node] for node in chosen) >= max(ends[node] for node in range(200) if node not in chosen)


def test_chance_chooses_by_the_seed() -> None:
    graph = digits()
    tokenizer = AnchorRelations(8, 5, anchors=20, strategy="random")
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        tokenizer.fit(graph)
        found.append(tokenizer.chosen.tolist())
        assert len(set(found[-1])) == 20
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("seed", range(5))
def test_renaming_nodes_permutes_tokens_only(seed: int) -> None:
    graph = random_graph(60, 100, seed)
    names = torch.randperm(60, generator=torch.Generator().manual_seed(100 + seed))
    tokenizer = build(graph)
    codes, vectors = tokenizer.encode(graph), tokenizer(graph).latents
    tokenizer.fit(renamed(graph, names), names[tokenizer.chosen])
    again = tokenizer(renamed(graph, names))
    assert torch.equal(again.codes[:, names], codes)
    torch.testing.assert_close(again.latents[:, names], vectors)


@pytest.mark.parametrize("strategy", ["degree", "pagerank"])
def test_renaming_nodes_chooses_the_same_anchors(strategy: str) -> None:
    """Where no two nodes have the same score: a star of stars, its hubs of 40, 37, ... leaves."""
    hubs = torch.cat([torch.full((40 - 3 * hub,), hub) for hub in range(8)])
    leaves = torch.arange(8, 8 + len(hubs))
    graph = Graph(8 + len(hubs), torch.cat([hubs, torch.arange(7)]), torch.cat([leaves, torch.arange(1, 8)]))
    names = torch.randperm(graph.nodes, generator=torch.Generator().manual_seed(3))
    first = build(graph, 1, strategy=strategy)
    second = build(renamed(graph, names), 1, strategy=strategy)
    assert torch.equal(names[first.chosen], second.chosen)
    assert torch.equal(second.encode(renamed(graph, names))[:, names], first.encode(graph))


def test_a_graph_that_grows_needs_no_new_codes() -> None:
    graph = random_graph(60, 100)
    tokenizer = build(graph)
    sizes, weights = tokenizer.codebook_sizes, sum(p.numel() for p in tokenizer.parameters())
    rng = torch.Generator().manual_seed(9)
    heads, tails = torch.randint(2000, (2, 4000), generator=rng)
    larger = Graph(
        2000,
        torch.cat([graph.heads, heads]),
        torch.cat([graph.tails, tails]),
        torch.cat([graph.types(), torch.randint(RELATIONS, (4000,), generator=rng)]),
    )
    codes = tokenizer.encode(larger)
    assert codes.shape == (1, 2000, 9)
    assert tokenizer.codebook_sizes == sizes
    assert (codes < torch.tensor(sizes)).all()
    assert (codes >= 0).all()
    assert sum(p.numel() for p in tokenizer.parameters()) == weights
    assert tokenizer.decode(codes).isfinite().all()


def test_a_far_away_addition_changes_no_old_code() -> None:
    graph = random_graph(60, 100)
    tokenizer = build(graph)
    apart = Graph(62, torch.cat([graph.heads, torch.tensor([60])]), torch.cat([graph.tails, torch.tensor([61])]),
                  torch.cat([graph.types(), torch.tensor([2])]))  # fmt: skip
    codes = tokenizer.encode(apart)
    assert torch.equal(codes[:, :60], tokenizer.encode(graph))
    assert codes[0, 60].tolist() == [6, 6, 6, 6, 6, 6, 2, 6, 6]  # no anchor, nowhere, head of a 2
    assert codes[0, 61].tolist() == [6, 6, 6, 6, 6, 6, 5, 6, 6]  # tail of a 2


def test_decode_gives_the_latents_of_forward_and_the_gradient_reaches_every_part() -> None:
    graph = digits()
    tokenizer = build(graph, 5)
    result = tokenizer(graph)
    assert torch.equal(tokenizer.decode(result.codes), result.latents)
    assert result.latents.shape == (1, 200, 8)
    result.latents.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tokenizer.parameters())


def test_nodes_learn_what_is_near_them() -> None:
    """The composed vectors tell a digit's class on nodes whose class was not told: twice as often as the commonest class."""
    from sklearn.datasets import load_digits

    graph, labels = digits(600), torch.from_numpy(load_digits().target[:600])
    tokenizer = build(graph, 5, anchors=40, nearest=6, reach=8)
    head, codes, told = nn.Linear(8, 10), tokenizer.encode(graph), torch.arange(600) < 400
    optimizer = torch.optim.Adam([*tokenizer.parameters(), *head.parameters()], 0.01)
    for _ in range(100):
        logits = head(tokenizer.decode(codes)[0])
        loss = nn.functional.cross_entropy(logits[told], labels[told])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = (head(tokenizer.decode(codes)[0]).argmax(-1) == labels)[~told].float().mean()
    assert right > 2 * labels[~told].bincount().max() / 200


def test_statistics_count_what_was_used() -> None:
    graph = digits()
    tokenizer = build(graph, 5).train()
    for step in range(300):
        tokenizer.before_step(step)
        tokenizer(graph)
        tokenizer.after_step(step)
    codes, found = tokenizer.encode(graph)[0], tokenizer.statistics()
    dead = sum(size - len(group.unique()) for size, group in zip(tokenizer.codebook_sizes, codes.T, strict=True))
    assert found["dead_codes"] >= dead  # rare ones count as dead as well
    assert 0 < found["usage"] < 1
    entropies = [torch.distributions.Categorical(group.bincount().float()).entropy() for group in codes.T]
    assert found["perplexity"] == pytest.approx(float(torch.stack(entropies).exp().mean()), rel=0.05)


def test_weights_and_anchors_are_stored() -> None:
    graph = digits()
    first, second = build(graph, 5), AnchorRelations(8, 5, anchors=6, nearest=3, reach=5, incident=3)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(graph).codes, second(graph).codes)
    assert torch.equal(first(graph).latents, second(graph).latents)


class TestMistakesAreNamed:
    def test_edges_to_nowhere(self) -> None:
        with pytest.raises(ValueError, match="tails: nodes are 0 to 4, got 1 to 5"):
            Graph(5, torch.tensor([0, 1]), torch.tensor([1, 5]))
        with pytest.raises(ValueError, match="one node an edge"):
            Graph(5, torch.tensor([0, 1]), torch.tensor([1]))
        with pytest.raises(ValueError, match="one type an edge"):
            Graph(5, torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([0]))

    def test_no_anchors_yet(self) -> None:
        with pytest.raises(ValueError, match="call fit"):
            AnchorRelations(4, 1).encode(digits())

    def test_too_few_nodes_or_anchors_twice(self) -> None:
        with pytest.raises(ValueError, match="6 anchors are to be chosen of a graph of 4 nodes"):
            build(random_graph(4, 6))
        with pytest.raises(ValueError, match="6 different nodes"):
            build(random_graph(40, 45), chosen=torch.tensor([1, 1, 2, 3, 4, 5]))

    def test_other_relations_or_a_smaller_graph(self) -> None:
        tokenizer = build(random_graph(40, 45))
        with pytest.raises(ValueError, match="types are 0 to 2, got 0 to 4"):
            tokenizer.encode(digits())
        tokenizer.chosen[0] = 70
        with pytest.raises(ValueError, match="anchor 70 is no node of a graph of 40"):
            tokenizer.encode(random_graph(40, 45))
