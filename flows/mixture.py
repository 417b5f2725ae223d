"""The mixture stage: how much of which part of the pool serves the target."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prefect import flow

from flows.context import StageContext, StageFailed
from flows.pipeline import label, walk
from flows.request import Request

if TYPE_CHECKING:
    from components.interfaces import Files, MixtureData


def body(ctx: StageContext) -> dict[str, float]:
    """Fits the recipe's mixture on the splits `train` (the pool) and `target`; writes the weight of every pool sample.

    sample_weights.npy [n_train] float64, sum 1, in the row order of split train; mixture.json {summary, target_share};
    tables/ (clusters, history of every proxy, baselines, fits of the predictor) and figures/."""
    from components import registry
    from components.interfaces import Mixture

    section = dict(ctx.section("mixture"))
    target_share = float(section.pop("target_share", 0.0))
    if ctx.recipe["dataset"].get("target") is None:
        raise StageFailed(
            "recipe.yaml: mixture: a mixture is searched for a target, but dataset.target is null; name a source there "
            "(dataset.target: {type: ...}), or set mixture: null to train on the whole source"
        )
    data = _data(ctx.files("dataset"))
    # proxies of an earlier version of the code are not to be found again
    workdir = ctx.work / "proxies" / str((ctx.recipe.get("code") or {}).get("mixture", "unversioned"))[:16]
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        mixture = registry.build(Mixture, section)
        result = mixture.fit(data, seed=ctx.seed, workdir=workdir, map=ctx.map, monitor=ctx)
    except ValueError as error:
        if str(error).startswith("mixture."):
            raise StageFailed(f"recipe.yaml: {error}") from error
        raise
    _write(ctx, "sample_weights.npy", lambda path: _save_array(path, result.sample_weights))
    about = {"type": section["type"], "summary": result.summary, "target_share": target_share}
    _write(ctx, "mixture.json", lambda path: _save_text(path, json.dumps(about, indent=1) + "\n"))
    for name, rows in result.tables.items():
        ctx.table(name, rows)
    for name, png in result.figures.items():
        ctx.figure(name, png)
    return result.summary


def _data(files: Files) -> MixtureData:
    """The pool and the target in memory: as pictures where the data set has any, else as texts."""
    from components.data.shards import Texts, describe, load_split, load_texts
    from components.interfaces import MixtureData

    about = describe(files)
    is_text = "text" in about["modalities"] and "image" not in about["modalities"]
    load = load_texts if is_text else load_split
    pool, target = load(files, "train"), load(files, "target")
    classes = [*about["classes"], None]  # a sample without a label has the number after the last class
    pool_values, target_values = (part.texts if isinstance(part, Texts) else part.images for part in (pool, target))
    labels = ([classes[number] for number in part.labels] for part in (pool, target))
    return MixtureData(pool_values, target_values, *labels)


def _write(ctx: StageContext, name: str, save: Callable[[str], None]) -> None:
    temporary = ctx.output / f".{name}.{os.getpid()}"
    save(str(temporary))
    os.replace(temporary, ctx.output / name)


def _save_array(path: str, array: Any) -> None:
    import numpy as np

    with open(path, "wb") as file:
        np.save(file, array)


def _save_text(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


@flow(name="mixture", flow_run_name=label)
def mixture(request: Request) -> dict[str, dict[str, float]]:
    """Search the mixture of a recipe over its data set."""
    return walk(request, until="mixture")
