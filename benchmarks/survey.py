"""All families of quantizers on patches of digits: what a bit buys, which codes are used, what a probe reads.

    python -m benchmarks.survey [--seeds 0 1 2] [--steps 1000] [--plot survey.png]

Scikit-learn's digits in four patches of 4 x 4 pixels, mean 0 and variance 1 over all; 1,347 pictures to learn from, 450 to
measure. A patch is the latent (D = 16): no encoder helps, so that the quantizers are compared and nothing else; what has
weights of its own learns from the squared error and its own losses. The anchors describe the patches of both parts by their
5 nearest neighbours, and learn from the vectors of the first part. Prints, as Markdown, means over the seeds:

distortion   mean squared error of unseen patches, as a share of the variance (after +-: half the range over the seeds)
bits         sum of log2 of the codebooks' sizes
usage        share of codes that occur in the first part, and perplexity, both mean over codebooks
probe        accuracy of a linear classifier (ridge) on a picture's four quantized patches, unseen pictures
cosine       between the gradient that reaches the latents and the one that the identity would pass

and whether the survey's claims hold, seed by seed.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from components import registry
from components.interfaces import Quantizer
from components.quantizers._anchors import AnchorRelations
from components.quantizers._codebook import usage
from components.quantizers._graph import Graph
from components.quantizers.dimension_wise import DimensionWise

TRAIN, DIM, BATCH, NEIGHBOURS = 1347, 16, 128, 5
LEARNED = {"type": "learned"}
Config = dict[str, Any]


def sizes(kind: str, count: str, books: tuple[tuple[int, int], ...]) -> list[Config]:
    return [{"type": kind, count: n, "codebook_size": size} for n, size in books]


def vq(size: int, **parts: Any) -> Config:
    return {"type": "vq", "codebook_size": size, **parts}


BOOKS = ((2, 16), (2, 64), (4, 16))  # 8, 12 and 16 bits
#: name -> (how the gradient reaches latents; how codes learn, configurations)
FAMILIES: dict[str, tuple[str, list[Config]]] = {
    "VQ": ("straight through; averages", [vq(size) for size in (16, 64, 256, 1024)]),
    "VQ, learned": ("straight through; loss", [vq(256, codebook=LEARNED)]),
    "VQ, rotation trick": ("turned; averages", [vq(256, gradient={"type": "rotation"})]),
    "VQ, Gumbel": ("relaxed draw; all codes", [vq(256, codebook=LEARNED, gradient={"type": "gumbel"}, revival=None)]),
    "IBQ": (
        "softmax; all codes",
        [vq(256, codebook=LEARNED, gradient={"type": "index_backpropagation"}, revival=None)],
    ),
    "SimVQ": ("straight through; one map of all", [vq(256, codebook={"type": "linear_map"}, revival=None)]),
    "FVQ": (
        "straight through; a network of all",
        [vq(256, codebook={"type": "bridge", "width": 64, "heads": 2}, revival=None)],
    ),
    "RVQ": ("straight through; averages", sizes("rvq", "stages", BOOKS)),
    "PQ": ("straight through; averages", sizes("product", "groups", BOOKS)),
    "OPQ": ("straight through; averages, Procrustes", sizes("rotated_product", "groups", BOOKS)),
    "AVQ": ("straight through; least squares", sizes("additive", "codebooks", BOOKS)),
    "FSQ": (
        "straight through, tanh; no codes",
        [{"type": "fsq", "levels": v} for v in ([8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5], [8, 8, 8, 5, 5, 5])],
    ),
    "LFQ": ("straight through; no codes", [{"type": "lfq", "bits": bits} for bits in (4, 8, 10)]),
    "LFQ, groups": (
        "straight through; no codes",
        [{"type": "grouped_lfq", "groups": groups, "bits": 4} for groups in (2, 3, 4)],
    ),
    "BSQ": (
        "straight through, sphere; no codes",
        [{"type": "bsq", "bits": bits, "per_code": 4} for bits in (8, 12, 16)],
    ),
    "dimension-wise": ("straight through; fitted once", [{"type": "dimension_wise", "bits": bits} for bits in (1, 2)]),
    "anchors": (
        "none: a node is no latent; embeddings",
        [
            {"type": "anchors", "anchors": 31, "nearest": n, "reach": 6, "incident": m}
            for n, m in ((1, 0), (1, 1), (2, 1))
        ],
    ),
}

#: title -> what is drawn together; the plain VQ in grey wherever it is not there
PANELS = {
    "One codebook": ("VQ", "VQ, learned", "VQ, rotation trick", "VQ, Gumbel", "IBQ", "SimVQ", "FVQ"),
    "Several codebooks": ("RVQ", "PQ", "OPQ", "AVQ"),
    "Implied codes; anchors": ("FSQ", "LFQ", "LFQ, groups", "BSQ", "dimension-wise", "anchors"),
}


@dataclass(frozen=True)
class Data:
    """`patches` [1797, 4, 16] and the digits that the pictures show [1797]; the first TRAIN are to learn from."""

    patches: Tensor
    labels: Tensor

    @classmethod
    def load(cls) -> Data:
        from sklearn.datasets import load_digits

        found = load_digits()
        images = torch.from_numpy(found.images).float()
        patches = images.unfold(1, 4, 4).unfold(2, 4, 4).reshape(len(images), 4, DIM)
        return cls((patches - patches.mean()) / patches.std(), torch.from_numpy(found.target))

    def graph(self) -> Graph:
        """Every patch to its nearest others; the type of an edge is which quarters of a picture it goes between"""
        from sklearn.neighbors import NearestNeighbors

        flat = self.patches.flatten(0, 1).numpy()
        near = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(flat).kneighbors(return_distance=False)
        heads, tails = torch.arange(len(flat)).repeat_interleave(NEIGHBOURS), torch.from_numpy(near.copy()).flatten()
        return Graph(len(flat), heads, tails, 4 * (heads % 4) + tails % 4)


@dataclass(frozen=True)
class Measured:
    bits: float
    distortion: float
    usage: float
    perplexity: float
    probe: float
    cosine: float
    used: int  # codes, of all codebooks


def trained(config: Config, data: Data, seed: int, steps: int) -> Quantizer:
    torch.manual_seed(seed)
    quantizer = registry.build(Quantizer, config, DIM).train()
    if isinstance(quantizer, DimensionWise):
        quantizer.fit(data.patches[:TRAIN])
        return quantizer.eval()
    move = mover(quantizer)
    for step in range(steps):
        batch = data.patches[torch.randint(TRAIN, (BATCH,))]
        quantizer.before_step(step)
        result = quantizer(batch)
        move(F.mse_loss(result.latents, batch) + sum(result.losses.values()))
        quantizer.after_step(step)
    return quantizer.eval()


def mover(module: torch.nn.Module, lr: float = 1e-2) -> Callable[[Tensor], None]:
    """One step of Adam down a loss, where there is something to move"""
    weights = list(module.parameters())
    optimizer = torch.optim.Adam(weights, lr) if weights else None

    def move(loss: Tensor) -> None:
        if optimizer is not None and loss.requires_grad:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return move


def measured(config: Config, data: Data, seed: int, steps: int) -> Measured:
    if config["type"] == "anchors":
        return of_nodes({k: v for k, v in config.items() if k != "type"}, data, seed, steps)
    quantizer = trained(config, data, seed, steps)
    with torch.no_grad():
        result = quantizer(data.patches)
    return judged(data, quantizer.codebook_sizes, result.codes, result.latents, cosine(quantizer, data))


def of_nodes(config: Config, data: Data, seed: int, steps: int) -> Measured:
    torch.manual_seed(seed)
    graph, tokenizer = data.graph(), AnchorRelations(DIM, 16, strategy="pagerank", **config)
    tokenizer.fit(graph)
    codes, move = tokenizer.encode(graph).view(len(data.patches), 4, -1), mover(tokenizer)
    for _ in range(steps):
        rows = torch.randint(TRAIN, (BATCH,))
        move(F.mse_loss(tokenizer.decode(codes[rows]), data.patches[rows]))
    with torch.no_grad():
        return judged(data, tokenizer.codebook_sizes, codes, tokenizer.decode(codes), math.nan)


def cosine(quantizer: Quantizer, data: Data) -> float:
    quantizer.train()
    given = data.patches[:BATCH].clone().requires_grad_()
    wanted = torch.randn(given.shape, generator=torch.Generator().manual_seed(0))
    (quantizer(given).latents * wanted).sum().backward()
    assert given.grad is not None
    return float(F.cosine_similarity(given.grad.flatten(), wanted.flatten(), 0))


def judged(data: Data, books: tuple[int, ...], codes: Tensor, latents: Tensor, angle: float) -> Measured:
    counts = [codes[:TRAIN, :, book].flatten().bincount(minlength=size) for book, size in enumerate(books)]
    shares, perplexities = zip(*(usage(count) for count in counts), strict=True)
    unseen = data.patches[TRAIN:]
    return Measured(
        bits=sum(math.log2(size) for size in books),
        distortion=float((latents[TRAIN:] - unseen).square().mean() / (unseen - unseen.mean()).square().mean()),
        usage=statistics.mean(shares),
        perplexity=statistics.mean(perplexities),
        probe=probed(data, latents),
        cosine=angle,
        used=sum(int((count > 0).sum()) for count in counts),
    )


def probed(data: Data, latents: Tensor) -> float:
    from sklearn.linear_model import RidgeClassifier

    rows, labels = latents.flatten(1).numpy(), data.labels.numpy()
    return float(RidgeClassifier().fit(rows[:TRAIN], labels[:TRAIN]).score(rows[TRAIN:], labels[TRAIN:]))


Found = dict[tuple[str, int], list[Measured]]  # family, number of the configuration -> one a seed


def table(found: Found) -> None:
    print("| family | settings | bits | distortion | usage | perplexity | probe | cosine | gradient; codes |")
    print("|---|---|--:|--:|--:|--:|--:|--:|---|")
    for (family, number), runs in found.items():
        path, configs = FAMILIES[family]
        shown = {
            k: v for k, v in configs[number].items() if k in ("codebook_size", "levels", "bits", "stages", "groups",
                                                              "codebooks", "nearest", "incident")
        }  # fmt: skip
        values = {name: [getattr(run, name) for run in runs] for name in ("distortion", "usage", "perplexity", "probe")}
        mean = {name: statistics.mean(v) for name, v in values.items()}
        spread = (max(values["distortion"]) - min(values["distortion"])) / 2
        angle = statistics.mean(run.cosine for run in runs)
        print(
            f"| {family} | {', '.join(f'{k} {v}' for k, v in shown.items())} | {runs[0].bits:.1f} "
            f"| {mean['distortion']:.4f} ± {spread:.4f} | {mean['usage']:.2f} | {mean['perplexity']:.1f} "
            f"| {mean['probe']:.3f} | {'-' if math.isnan(angle) else f'{angle:.2f}'} | {path} |"
        )


def claims(found: Found, data: Data, seeds: list[int], steps: int) -> None:
    for better, worse in (("OPQ", "PQ"), ("AVQ", "RVQ")):
        for number, (count, size) in enumerate(BOOKS):
            pairs = list(zip(found[better, number], found[worse, number], strict=True))
            said(
                f"{better} <= {worse}, distortion, {count} x {size}",
                [a.distortion <= b.distortion for a, b in pairs],
                [f"{a.distortion:.4f} : {b.distortion:.4f}" for a, b in pairs],
            )
    for name, codebook in (("averages", "moving_average"), ("learned", "learned")):
        parts = {"codebook": {"type": codebook, "initialization": {"type": "normal"}}}
        used = [
            [measured(vq(256, **parts, **revival), data, seed, steps).used for revival in ({}, {"revival": None})]
            for seed in seeds
        ]
        said(
            f"with restart >= 1.3 x codes used, {name}, K = 256",
            [a >= 1.3 * b for a, b in used],
            [f"{a} : {b}" for a, b in used],
        )


def said(claim: str, held: list[bool], values: list[str]) -> None:
    print(f"{claim:<52} {'holds' if all(held) else f'holds in {sum(held)} of {len(held)}':<14} {'   '.join(values)}")


def plot(found: Found, path: Path) -> None:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    def curve(axes: Axes, family: str, color: str, marker: str) -> None:
        runs = [runs for (name, _), runs in found.items() if name == family]
        means = [statistics.mean(m.distortion for m in run) for run in runs]
        axes.plot([run[0].bits for run in runs], means, label=family, color=color, marker=marker)

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (title, families) in zip(panels, PANELS.items(), strict=True):
        if "VQ" not in families:
            curve(axes, "VQ", color="lightgrey", marker="o")
        for position, family in enumerate(families):
            curve(axes, family, color=f"C{position}", marker="os^DvPX"[position])
        axes.set_title(title)
        axes.set_yscale("log")
        axes.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5], labels=["0.02", "0.05", "0.1", "0.2", "0.5"])
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("bits a patch")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
    panels[0].set_ylabel("distortion, share of the variance")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--plot", type=Path, help="where to draw distortion against bits, a PNG")
    chosen = parser.parse_args()
    data = Data.load()
    found: Found = {
        (family, number): [measured(config, data, seed, chosen.steps) for seed in chosen.seeds]
        for family, (_, configs) in FAMILIES.items()
        for number, config in enumerate(configs)
    }
    table(found)
    print(f"\nThe probe on the patches themselves: {probed(data, data.patches):.3f}\n")
    claims(found, data, chosen.seeds, chosen.steps)
    if chosen.plot:
        plot(found, chosen.plot)


if __name__ == "__main__":
    main()
