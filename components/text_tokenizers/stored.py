"""A text tokenizer on disk: `config.json` (format, kind, type and settings) and `tokenizer.json`, the vocabulary in the
format of Hugging Face's `tokenizers`, for whoever reads that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components import registry
from components.artifact import ArtifactError
from components.interfaces import TextTokenizer

FORMAT = 1
FILES = ("config.json", "tokenizer.json")


def save(folder: Path, spec: dict[str, Any], tokenizer: TextTokenizer) -> None:
    """Writes a tokenizer built as `registry.build(TextTokenizer, spec)` and fitted."""
    vocabulary = tokenizer.dump()
    folder.mkdir(parents=True, exist_ok=True)
    config = {"format": FORMAT, "kind": TextTokenizer.__name__, "spec": spec}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "tokenizer.json").write_text(vocabulary, encoding="utf-8", newline="")


def load(folder: Path) -> TextTokenizer:
    """The tokenizer in `folder`; raises ArtifactError when it is something else, damaged or too new."""
    for name in FILES:
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder} holds no {TextTokenizer.__name__}: {name} is missing")
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        kind, number, spec = config["kind"], config["format"], config["spec"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not the configuration of a component ({error})") from error
    if kind != TextTokenizer.__name__:
        raise ArtifactError(f"{path}: expected a {TextTokenizer.__name__}, found a {kind}")
    if number > FORMAT:
        raise ArtifactError(f"{path}: format {number} is newer than this version reads ({FORMAT}); upgrade")
    tokenizer = registry.build(TextTokenizer, spec)
    try:
        tokenizer.restore((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{folder / 'tokenizer.json'}: {error}") from error
    return tokenizer
