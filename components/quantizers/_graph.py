"""Graphs of typed edges: anchors among their nodes, hop distances from anchors, relation types at a node.

Paths go along edges in either direction. Nothing here depends on how nodes are numbered, except which of several nodes
of equal score becomes an anchor (the first).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_CELLS = 1 << 24  # distances held at once


@dataclass(frozen=True)
class Graph:
    """`nodes` nodes and E edges from `heads` [E] to `tails` [E] int64, of types `relations` [E] int64 (default: all 0).

    Raises ValueError for edges that lead to no node."""

    nodes: int
    heads: Tensor
    tails: Tensor
    relations: Tensor | None = None

    def __post_init__(self) -> None:
        for name, ends in (("heads", self.heads), ("tails", self.tails)):
            if ends.shape != self.heads.shape or ends.ndim != 1:
                raise ValueError(f"{name}: expected one node an edge, {list(self.heads.shape)}, got {list(ends.shape)}")
            if len(ends) and not (int(ends.min()) >= 0 and int(ends.max()) < self.nodes):
                raise ValueError(f"{name}: nodes are 0 to {self.nodes - 1}, got {int(ends.min())} to {int(ends.max())}")
        if self.relations is not None and self.relations.shape != self.heads.shape:
            raise ValueError(
                f"relations: expected one type an edge, {list(self.heads.shape)}, got {list(self.relations.shape)}"
            )

    def types(self) -> Tensor:
        """[E] int64"""
        return torch.zeros_like(self.heads) if self.relations is None else self.relations

    def neighbours(self) -> csr_array:
        """[nodes, nodes], how many edges there are between two nodes in either direction"""
        from scipy.sparse import coo_array

        ends = torch.cat([self.heads, self.tails]).numpy(), torch.cat([self.tails, self.heads]).numpy()
        ones = np.ones(len(ends[0]), dtype=np.float64)
        return coo_array((ones, ends), shape=(self.nodes, self.nodes)).tocsr()


def degree(graph: Graph) -> Tensor:
    """How many edges end at each node, [nodes] float64; a loop counts twice"""
    return torch.bincount(torch.cat([graph.heads, graph.tails]), minlength=graph.nodes).double()


def pagerank(graph: Graph, damping: float = 0.85, tolerance: float = 1e-12) -> Tensor:
    """The stationary share of a walk along edges in either direction that starts anew at any node with probability
    1 - damping, and from a node without edges always: [nodes] float64, sum 1 (Page et al. 1999)"""
    matrix = graph.neighbours()
    degrees = matrix.sum(1)
    onward = np.divide(1.0, degrees, out=np.zeros_like(degrees), where=degrees > 0)
    shares = np.full(graph.nodes, 1 / graph.nodes)
    for _ in range(1000):
        lost = shares[degrees == 0].sum()
        moved = damping * (matrix.T @ (shares * onward) + lost / graph.nodes) + (1 - damping) / graph.nodes
        change, shares = np.abs(moved - shares).sum(), moved
        if change < tolerance:
            break
    return torch.from_numpy(shares)


def chance(graph: Graph) -> Tensor:
    """Uniform scores from torch's global random numbers, [nodes] float64"""
    return torch.rand(graph.nodes, dtype=torch.float64)


#: how anchors are chosen: the nodes of the highest scores
STRATEGIES: dict[str, Callable[[Graph], Tensor]] = {"degree": degree, "pagerank": pagerank, "random": chance}


def hops(graph: Graph, sources: Tensor, reach: int) -> Tensor:
    """Edges on the shortest way from each source [A] to each node, [A, nodes] int64; -1 where it is more than `reach`."""
    from scipy.sparse.csgraph import dijkstra

    found = dijkstra(graph.neighbours(), unweighted=True, indices=sources.numpy(), limit=reach)
    return torch.from_numpy(np.where(np.isfinite(found), found, -1).astype(np.int64))


def nearest_anchors(graph: Graph, anchors: Tensor, count: int, reach: int) -> tuple[Tensor, Tensor]:
    """Of each node the `count` anchors [A] that are nearest, by number in [0, A), and their hops, each [nodes, count] int64.

    Nearest first, the lower number among equals; A and `reach` + 1 where no further anchor is within `reach` hops. Anchors are
    taken some at a time, so that their distances to all nodes are never there as a whole."""
    size, none = len(anchors), (reach + 1) * len(anchors) + len(anchors)
    best = torch.full((graph.nodes, count), none)  # hops * A + number: sorted, the nearest come first
    step = max(1, _CELLS // max(1, graph.nodes))
    for start in range(0, size, step):
        part = hops(graph, anchors[start : start + step], reach)  # [some, nodes]
        numbers = torch.arange(start, start + len(part))[:, None]
        keys = torch.where(part < 0, none, part * size + numbers)
        best = torch.cat([best, keys.T], 1).sort(1).values[:, :count]
    missing = best == none
    return torch.where(missing, size, best % size), torch.where(missing, reach + 1, best // size)


def incident(graph: Graph, relations: int, count: int) -> Tensor:
    """The `count` types of edges that are most frequent at each node, [nodes, count] int64: r in [0, relations) where it is
    the head, relations + r where it is the tail; the lower number among equals; 2 relations where there are no more."""
    types = graph.types()
    ends = torch.cat([graph.heads, graph.tails])
    keys = ends * (2 * relations) + torch.cat([types, types + relations])
    kinds, times = keys.unique(return_counts=True)  # ascending: by node, then by type
    nodes, types = kinds // (2 * relations), kinds % (2 * relations)
    order = torch.argsort(nodes * (int(times.max()) + 1 if len(times) else 1) - times, stable=True)
    nodes, types = nodes[order], types[order]
    place = torch.arange(len(nodes)) - torch.searchsorted(nodes, nodes)  # within the node
    kept = place < count
    found = torch.full((graph.nodes, count), 2 * relations)
    found[nodes[kept], place[kept]] = types[kept]
    return found
