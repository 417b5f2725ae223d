"""A node of a graph as its nearest anchors and the relations at it: anchor-relation composition (NodePiece).

1. `fit` chooses `anchors` nodes of a graph once, by degree, PageRank or at random: the vocabulary.
2. `encode`: a node is its `nearest` nearest anchors, their hop distances, and the `incident` most frequent relation types
   of its edges, either direction; a code of its own says that there are no more of them.
3. `decode`: anchors' and distances' embeddings are added, relations' put beside them; two layers compose the vector.
4. The vocabulary holds anchors, distances and relations: a graph that grows needs no new codes, and nodes never seen
   have vectors at once.

It has the methods of a `Quantizer` but is none, and so no `type:` of a recipe: what it encodes is a node by its place in
a graph, and no vector [D] says which place that is, so that `forward` takes the graph and not latents.
Deliberately absent: mixtures of strategies, relations drawn at random. Source: Galkin et al. 2021, NodePiece,
https://arxiv.org/abs/2106.12144.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from components.interfaces import Quantized
from components.quantizers._graph import STRATEGIES, Graph, incident, nearest_anchors
from components.quantizers._several import Uses


class AnchorRelations(Uses):
    """G = 2 `nearest` + `incident` codes a node: anchors, then distances, then relations.

    `relations` is how many types of edges there are; distances are 0 to `reach`, an anchor farther away is none.

    >>> ring = Graph(9, torch.arange(9), (torch.arange(9) + 1) % 9)
    >>> tokenizer = AnchorRelations(4, 1, anchors=3, nearest=2, reach=4, incident=2)
    >>> tokenizer.fit(ring, torch.tensor([0, 3, 6]))
    >>> tokenizer.encode(ring)[0, 1]
    tensor([0, 1, 1, 2, 0, 1])
    >>> tokenizer(ring).latents.shape, tokenizer.codebook_sizes
    (torch.Size([1, 9, 4]), (4, 4, 6, 6, 3, 3))
    """

    chosen: Tensor  # [A] the anchors' nodes; -1 before `fit`

    def __init__(
        self,
        dim: int,
        relations: int,
        *,
        anchors: Annotated[int, Field(ge=1)] = 32,
        nearest: Annotated[int, Field(ge=1)] = 4,
        reach: Annotated[int, Field(ge=1, description="hops; an anchor farther away is none")] = 8,
        incident: Annotated[int, Field(ge=0)] = 4,
        strategy: Literal["degree", "pagerank", "random"] = "degree",
        width: Annotated[int, Field(ge=1, description="of embeddings and of the hidden layer")] = 64,
    ) -> None:
        super().__init__()
        self.count([anchors + 1] * nearest + [reach + 2] * nearest + [2 * relations + 1] * incident)
        self.relations, self.nearest, self.incident = relations, nearest, incident
        self.reach, self.strategy = reach, strategy
        self.register_buffer("chosen", torch.full((anchors,), -1))
        self.anchors, self.distances = nn.Embedding(anchors + 1, width), nn.Embedding(reach + 2, width)
        self.types = nn.Embedding(2 * relations + 1, width)
        self.compose = nn.Sequential(nn.Linear((nearest + incident) * width, width), nn.ReLU(), nn.Linear(width, dim))

    @torch.no_grad()
    def fit(self, graph: Graph, anchors: Tensor | None = None) -> None:
        """Chooses the anchors in this graph, or takes these nodes [A]. ValueError when there are too few."""
        if graph.nodes < len(self.chosen):
            raise ValueError(f"{len(self.chosen)} anchors are to be chosen of a graph of {graph.nodes} nodes")
        if anchors is None:
            anchors = STRATEGIES[self.strategy](graph).sort(descending=True, stable=True).indices[: len(self.chosen)]
        if anchors.shape != self.chosen.shape or len(anchors.unique()) != len(anchors):
            raise ValueError(f"expected {len(self.chosen)} different nodes as anchors, got {anchors.tolist()}")
        self.chosen.copy_(anchors)

    @torch.no_grad()
    def encode(self, graph: Graph) -> Tensor:
        """-> codes [1, N, G] int64, the same each time. ValueError when the graph lacks anchors or has other relations."""
        if bool((self.chosen < 0).any()):
            raise ValueError("no anchors are chosen yet; call fit(graph) first")
        if int(self.chosen.max()) >= graph.nodes:
            raise ValueError(f"anchor {int(self.chosen.max())} is no node of a graph of {graph.nodes} nodes")
        types = graph.types()
        if len(types) and not (int(types.min()) >= 0 and int(types.max()) < self.relations):
            raise ValueError(
                f"relations: types are 0 to {self.relations - 1}, got {int(types.min())} to {int(types.max())}"
            )
        numbers, distances = nearest_anchors(graph, self.chosen.cpu(), self.nearest, self.reach)
        codes = torch.cat([numbers, distances, incident(graph, self.relations, self.incident)], 1)
        return codes[None].to(self.chosen.device)

    def decode(self, codes: Tensor) -> Tensor:
        """[B, N, G] in range -> [B, N, D], with gradient for embeddings and layers"""
        numbers, distances, types = codes.split([self.nearest, self.nearest, self.incident], -1)
        parts = torch.cat([self.anchors(numbers) + self.distances(distances), self.types(types)], -2)
        return self.compose(parts.flatten(-2))

    def forward(self, graph: Graph) -> Quantized:
        """The nodes' codes and vectors, without losses of its own; the codes of a graph that stays can be kept and decoded."""
        codes = self.encode(graph)
        if self.training:
            for use, group in zip(self.uses, codes.unbind(-1), strict=True):
                use.see(group)
        return Quantized(self.decode(codes), codes)
