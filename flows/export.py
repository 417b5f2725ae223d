"""`tessera export`: a registered model, or one trained component, as a folder for others, with a model card.

The card says what is recorded: the recipe with every setting (also where its data lay), the metrics, and of a run or a
registered version the commit and the hash of the data. Nothing is sent anywhere.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components import publishing, yamlio
from components.publishing import WEIGHTS, Card
from flows.terminal import console
from infra.settings import Settings

if TYPE_CHECKING:
    from flows.serving import Model

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_TERMS = "Weights come under the terms of the data they were made from, whatever else is said here."


class ExportError(ValueError):
    """A model that cannot be exported so; the message says why and what can be done."""

    user_error = True


def export(settings: Settings, ref: str, folder: Path, form: Literal["tessera", "transformers"], license: str) -> None:
    """Writes `folder`, which must be new or empty."""
    if not _LICENSE.fullmatch(license):
        raise ExportError(
            f"'{license}' is not how the hub calls a license; expected something like apache-2.0 or other"
        )
    found, made = _locate(settings, ref)
    if (found / "bundle.json").is_file():
        _bundle(found, ref, folder, form, license, made)
    else:
        _component(found, ref, folder, form, license, made)
    console.print(f"wrote {ref} to {folder}", soft_wrap=True)


def _locate(settings: Settings, ref: str) -> tuple[Path, dict[str, str]]:
    """The folder of a bundle or a component, and what is known about how it came to be."""
    from components.registry import nearest
    from flows import runs

    if ref.startswith("models:/"):
        from infra import registry

        name, version = registry.resolve(ref, settings)
        evidence = registry.evidence(settings, name, version)
        return registry.download(ref, settings), {"version": f"{name} {version}"} | _known(evidence)
    places = (Path(ref), settings.project / ref, settings.runs / ref)
    folder = next((place.resolve() for place in places if place.is_dir()), None)
    if folder is None:
        hint = nearest(ref, [run.name for run in runs.all_runs(settings.project)])
        raise ExportError(
            f"there is no model at '{ref}'{hint}: expected runs/NAME, a folder with a trained model or models:/NAME@ALIAS"
        )
    if (folder / "recipe.yaml").is_file() and (folder / "outputs").is_dir():
        if not (folder / "outputs" / "registration" / "bundle.json").is_file():
            raise ExportError(
                f"run '{folder.name}' has registered no model; finish it, or export one of its parts, such as "
                f"runs/{folder.name}/outputs/tokenizer"
            )
        folder = folder / "outputs" / "registration"
    if not any((folder / name).is_file() for name in ("bundle.json", "config.json")):
        raise ExportError(f"{ref} holds no model: neither a bundle (bundle.json) nor a trained component (config.json)")
    return folder, _of_run(folder)


def _of_run(folder: Path) -> dict[str, str]:
    """What the lineage of a run says about a stage's output; nothing for a folder that is no such output."""
    from infra import lineage

    run, stage = folder.parent.parent, folder.name
    if folder.parent.name != "outputs" or not (run / "recipe.yaml").is_file():
        return {}
    event = lineage.events(run).get(stage)
    if event is None:
        return {"run": run.name}
    facts = event["run"]["facets"]["tessera"]
    data = [item["name"] for item in event["inputs"] if item["facets"]["tessera"]["path"] == "outputs/dataset"]
    commit = facts.get("commit", "") + ("+" if facts.get("dirty") else "")
    return _known({"run": run.name, "commit": commit, "data": data[0] if data else ""})


def _known(facts: Mapping[str, str]) -> dict[str, str]:
    """As a card says it, without what is not known."""
    commit = facts.get("commit", "")
    said = {
        "run": facts.get("run", ""),
        "commit": f"{commit.removesuffix('+')}, with changes that were not committed"
        if commit.endswith("+")
        else commit,
        "hash of the data set": facts.get("data", ""),
    }
    return {name: value for name, value in said.items() if value}


# ------------------------------------------------------------------------------------------------------------ bundles


def _bundle(bundle: Path, ref: str, folder: Path, form: str, license: str, made: dict[str, str]) -> None:
    from flows import serving

    model = serving.load_folder(bundle, name=ref)  # what cannot be loaded is not published
    card = _card(bundle, model, license, made)
    if form == "transformers":
        if model.generator is None:
            raise ExportError(f"{ref} is a tokenizer only: there is no decoder that Transformers could have")
        publishing.save_transformers(bundle / "generator", folder, card, bundle / "tokenizer")
        return
    with publishing.new_folder(folder) as new:
        for name in ("bundle.json", "recipe.yaml", "metrics.json"):
            if (bundle / name).is_file():
                shutil.copyfile(bundle / name, new / name)
        for part in ("tokenizer", "generator"):
            if (bundle / part).is_dir():
                (new / part).mkdir()
                for name in WEIGHTS:
                    shutil.copyfile(bundle / part / name, new / part / name)
        use = "images = model.sample(16)" if model.generator else "codes = model.encode(images)"
        loading = f'import tessera\n\nmodel = tessera.load(".")  # the folder with this file\n{use}'
        (new / "README.md").write_text(publishing.readme(card, "tessera", loading), encoding="utf-8")


def _card(bundle: Path, model: Model, license: str, made: dict[str, str]) -> Card:
    about, recipe = json.loads((bundle / "bundle.json").read_text()), yamlio.load(bundle / "recipe.yaml")
    metrics = bundle / "metrics.json"
    parts = {"tokenizer": model.tokenizer, "generator": model.generator}
    said = [
        f"- {name}: `{recipe[name]['type']}`, {sum(t.numel() for t in part.state_dict().values()):,} parameters"
        for name, part in parts.items()
        if part is not None and recipe.get(name)
    ]
    image = about["image"]
    what = (
        f"A discrete-token model of pictures: {image['size']} x {image['size']} pixels, channels: {image['channels']}."
    )
    return Card(
        title=about["system"],
        what="\n".join([what, "", *said]),
        system=about["system"],
        license=license,
        tags=[recipe[name]["type"] for name in parts if recipe.get(name)],
        made=made,
        recipe=yamlio.dump(recipe),
        data=[
            *_sources(recipe),
            f"Classes, numbered from 0: {', '.join(about['classes']) or 'none'}.",
            "",
            f"Classes it is meant for: {', '.join(about['target_classes']) or 'none'}.",
            "",
            _TERMS,
        ],
        metrics=json.loads(metrics.read_text()) if metrics.is_file() else {},
    )


def _sources(recipe: Mapping[str, Any]) -> list[str]:
    dataset = recipe.get("dataset") or {}
    names = [f"`{dataset[part]['type']}`" for part in ("source", "target") if dataset.get(part)]
    return [f"Sources: {', '.join(names)}.", ""] if names else []


# --------------------------------------------------------------------------------------------------------- components


def _component(folder: Path, ref: str, target: Path, form: str, license: str, made: dict[str, str]) -> None:
    kind, _ = publishing.check(folder)
    spec = json.loads((folder / "config.json").read_text())["spec"]
    run = folder.parent.parent if made else None  # only outputs of runs have a history
    recipe = yamlio.load(run / "recipe.yaml") if run else {}
    system = recipe.get("system", "")
    card = Card(
        title=f"{system} {folder.name}".strip(),
        what=f"A trained {kind}: `{spec['type']}`.",
        system=system,
        license=license,
        tags=[kind.lower(), spec["type"]],
        made=made,
        recipe=yamlio.dump({folder.name: recipe[folder.name]} if folder.name in recipe else spec),
        data=[*_sources(recipe), _TERMS],
        metrics=_measured(run, folder.name),
    )
    if form == "transformers":
        if kind != "Generator":
            raise ExportError(f"{ref} is a {kind}; only a next-token decoder has a form in Transformers")
        publishing.save_transformers(folder, target, card)
    else:
        publishing.save_pretrained(folder, target, card)


def _measured(run: Path | None, stage: str) -> dict[str, float]:
    """What the stage itself reported."""
    from flows import runs

    return runs.metrics(run, stage) if run else {}
