"""One self-contained model version: tokenizer, generator, recipe, metrics and a card, loadable alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from prefect import flow

from flows import serving
from flows.context import StageContext
from flows.pipeline import label, walk
from flows.request import Request


def body(ctx: StageContext) -> dict[str, float]:
    """Writes the bundle into `outputs/registration`. The generator is the post-trained one where there is one."""
    from components.data import shards
    from components.interfaces import ImageFormat
    from infra.storage import write_bytes_atomic

    about = shards.describe(ctx.files("dataset"))
    last = next((stage for stage in ("posttraining", "generator") if ctx.has(stage)), None)
    serving.save_bundle(
        ctx.output,
        ctx.input("tokenizer"),
        ctx.input(last) if last else None,
        ctx.recipe,
        about["classes"],
        ImageFormat(**about["image"]),
        target_classes=about["target_classes"],
    )
    measured: dict[str, float] = {}
    if ctx.has("evaluation"):
        shutil.copyfile(ctx.input("evaluation") / "metrics.json", ctx.output / "metrics.json")
        measured = json.loads((ctx.output / "metrics.json").read_text())
    parameters = {name: _parameters(ctx.output / name) for name in ("tokenizer", "generator")}
    write_bytes_atomic(ctx.output / "README.md", card(ctx.recipe, about, measured, parameters).encode())
    serving.load_folder(ctx.output)  # what cannot be loaded is not registered
    return {
        "parameters": sum(parameters.values()),
        "bundle_bytes": sum(path.stat().st_size for path in ctx.output.rglob("*") if path.is_file()),
    }


def card(recipe: dict[str, Any], dataset: dict[str, Any], metrics: dict[str, float], parameters: dict[str, int]) -> str:
    """The model card, in Markdown: what it is, what it was trained on, how well it does, how to use it, the licence."""
    system, image = recipe["system"], dataset["image"]
    sources = [recipe["dataset"][name]["type"] for name in ("source", "target") if recipe["dataset"].get(name)]
    parts = [
        f"- {name}: `{recipe[name]['type']}`" + (f", {parameters[name]:,} parameters" if parameters.get(name) else "")
        for name in ("tokenizer", "generator", "posttraining", "sampling")
        if recipe.get(name)
    ]
    splits = [f"- {name}: {split['rows']:,} pictures" for name, split in dataset["splits"].items()]
    classes = ", ".join(dataset["target_classes"]) or "none"
    shown = {name: value for name, value in sorted(metrics.items()) if not name.endswith((".low", ".high"))}
    rows = [f"| {name} | {value:.4g} |" for name, value in shown.items()]
    lines = [
        f"# {system}",
        "",
        "Written by the stage `registration`.",
        "",
        "## What",
        "",
        f"A discrete-token model of pictures: {image['size']} x {image['size']} pixels, channels: {image['channels']}.",
        "",
        *parts,
        "",
        "## Data",
        "",
        f"Sources: {', '.join(f'`{name}`' for name in sources)}. Classes it is meant for: {classes}.",
        "",
        *splits,
        "",
        *(["## Metrics", "", "| metric | value |", "|---|---|", *rows, ""] if rows else []),
        "## Use",
        "",
        "```python",
        "import tessera",
        "",
        f'model = tessera.load("models:/{system}@champion")',
        *(["images = model.sample(16)"] if recipe.get("generator") else ["codes = model.encode(images)"]),
        "```",
        "",
        "## Licence",
        "",
        "The code that made it is under Apache-2.0. Weights come under the terms of the data named above.",
        "",
    ]
    return "\n".join(lines)


def _parameters(folder: Path) -> int:
    """Numbers in a safetensors file, read from its header."""
    from math import prod

    path = folder / "model.safetensors"
    if not path.is_file():
        return 0
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


@flow(name="registration", flow_run_name=label)
def registration(request: Request) -> dict[str, dict[str, float]]:
    """Register the model of a recipe, and make what it needs."""
    return walk(request, until="registration")
