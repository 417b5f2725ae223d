"""Where a trained section of a recipe starts from: published weights instead of random ones.

    init: {from: "hf:org/name@revision"}      a repository of the Hugging Face hub, at a tag or commit
    init: {from: ../runs/other/outputs/tokenizer}   a folder, relative to the project

When a run is prepared the weights are found (and fetched, where they are not in the local cache), and the hash of their
files is written into the resolved recipe: it is part of the stage key and of the lineage. A hash that stands in the recipe is
checked. The stage checks it again before it reads them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.storage import write_json_atomic

if TYPE_CHECKING:
    from torch import nn

    from flows.context import StageContext

SECTIONS = ("tokenizer", "generator")
_HUB = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>[\w./-]+)")


class InitError(ValueError):
    """Weights that are not there, or are others; the message says what was expected and where."""

    user_error = True


def component(section: dict[str, Any]) -> dict[str, Any]:
    """A trained section without what is not its component's."""
    return {name: value for name, value in section.items() if name not in ("train", "transforms", "init")}


def start(ctx: StageContext, module: nn.Module, section: dict[str, Any], kind: type) -> None:
    """Loads what the section's `init` names, if it names something. Raises InitError and ConversionError."""
    if not section.get("init"):
        return
    from components.initial import start_from

    source, wanted = section["init"]["from"], section["init"]["sha256"]
    folder = locate(source, ctx.run.parents[1])
    if (found := digest(folder)) != wanted:
        raise InitError(f"init.from: {source} is not what the run was prepared with: expected {wanted}, found {found}")
    ctx.progress(0, section["train"]["steps"], f"weights of {source}")
    start_from(module, component(section), kind, folder)


def with_weights(recipe: dict[str, Any], project: Path) -> dict[str, Any]:
    """The recipe with the hashes of the weights that its sections start from. Raises InitError."""
    found = dict(recipe)
    for path, section in trained(recipe):
        init = section.get("init")
        if init is None:
            continue
        where = ".".join((*path, "init"))
        try:
            sha256 = digest(locate(init["from"], project), project / ".tessera" / "cache" / "weights.json")
        except InitError as error:
            raise InitError(f"{where}.from: {error}") from error
        if init["sha256"] not in (None, sha256):
            raise InitError(f"{where}.sha256: {init['from']} has {sha256}, the recipe asks for {init['sha256']}")
        filled = section | {"init": init | {"sha256": sha256}}
        found[path[0]] = found[path[0]] | {path[1]: filled} if len(path) > 1 else filled
    return found


def inputs(recipe: dict[str, Any], stage: str) -> dict[str, str]:
    """{where from: SHA-256} of the published weights that a stage starts from, for its lineage."""
    sections = [section for path, section in trained(recipe) if path[0] == stage and section.get("init")]
    return {section["init"]["from"]: section["init"]["sha256"] for section in sections}


def trained(recipe: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The sections that can start from weights, with their paths."""
    for name in SECTIONS:
        if recipe.get(name):
            yield (name,), recipe[name]
    for name, section in (recipe.get("networks") or {}).items():
        yield ("networks", name), section


def locate(source: str, project: Path) -> Path:
    """The folder of some weights, here; fetched from the hub where that is where they are. Raises InitError."""
    if not source.startswith("hf:"):
        folder = project / Path(source).expanduser()
        if not folder.is_dir():
            raise InitError(f"there is no folder {folder}")
        return folder
    match = _HUB.fullmatch(source)
    if match is None:
        raise InitError(f"expected hf:organisation/name@revision or a folder, got '{source}'")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        files = ["config.json", "*.safetensors"]
        return Path(snapshot_download(match["name"], revision=match["revision"], allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InitError(f"'{source}' is not in the local cache and could not be fetched: {reason}") from error


def digest(folder: Path, kept: Path | None = None) -> str:
    """SHA-256 of the weights in a folder and of its `config.json`: that of what `sha256sum *.safetensors config.json` prints,
    names sorted. Hashes of single files are kept by size and time of change in `kept`."""
    from components.initial import weight_files

    known = _known(kept)
    lines = []
    for path in sorted([*weight_files(folder), folder / "config.json"]):
        status = path.stat()
        mark = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
        if mark not in known:
            with open(path, "rb") as file:
                known[mark] = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{known[mark]}  {path.name}\n")
    if kept is not None and known != _known(kept):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(kept, known)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _known(kept: Path | None) -> dict[str, str]:
    try:
        return json.loads(kept.read_text()) if kept else {}
    except (OSError, json.JSONDecodeError):
        return {}
