"""Published weights as the start of a component, in place of random ones.

1. A folder holds `config.json` and safetensors files. Which model it is stands in `config.json`: one of Tessera's own format
   (`format`, `kind`), or one of the Transformers architectures that `components/converters` knows (`model_type`).
2. Files are opened and only what the component needs is read: the tokenizer of a large model costs its own size.
3. Every tensor of the component must be there, of its shape; what fits no tensor is named. A setting that changes no shape
   and is another one there is named, too.

Deliberately absent: pickled checkpoints, in whatever file; layers that are left out because they do not fit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from components import upgrades
from components.artifact import FORMAT, left_out
from components.converters._tensors import ConversionError, load

Reader = Callable[[nn.Module, Mapping[str, Any], Mapping[str, Any], "Weights"], None]


class Weights(Mapping[str, Tensor]):
    """The tensors of a folder's safetensors files by name, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Path] = {}
        for path in weight_files(folder):
            for name in self._opened(path, lambda file: list(file.keys())):
                self.files[name] = path

    def __getitem__(self, name: str) -> Tensor:
        return self._opened(self.files[name], lambda file: file.get_tensor(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Those whose names begin so, without the beginning."""
        return {name.removeprefix(prefix): self[name] for name in self if name.startswith(prefix)}

    def _opened(self, path: Path, read: Any) -> Any:
        try:
            with safe_open(path, framework="pt") as file:
                return read(file)
        except SafetensorError as error:
            raise ConversionError(f"{path}: not a readable safetensors file ({error})") from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, sorted. Raises ConversionError where there is no model in it."""
    found = sorted(folder.glob("*.safetensors"))
    if found and (folder / "config.json").is_file():
        return found
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickled = [name for name in there if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))]
    hint = (
        f"; {pickled[0]} is a pickle, which is never read: convert it to safetensors" if pickled and not found else ""
    )
    listing = f"it has {', '.join(there[:6])}" if there else "there is nothing"
    raise ConversionError(f"{folder}: expected config.json and *.safetensors, {listing}{hint}")


def start_from(module: nn.Module, section: Mapping[str, Any], kind: type, folder: Path) -> None:
    """Loads the weights of a folder into a component of this kind that was built from `section`.

    Raises ConversionError for a folder without a model, a model of another kind or settings, a damaged file, and the first
    tensor that is missing, left over or of another shape."""
    weights = Weights(folder)
    config = _config(folder)
    try:
        if "format" in config:
            _own(module, section, kind, config, weights)
        else:
            _of_transformers(module, section, kind, config, weights)
    except ConversionError as error:
        raise ConversionError(f"{folder}: {error}") from error


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise ConversionError(f"{folder / 'config.json'}: not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise ConversionError(f"{folder / 'config.json'}: expected a mapping")
    return config


def _own(module: nn.Module, section: Mapping[str, Any], kind: type, config: dict[str, Any], weights: Weights) -> None:
    if not isinstance(config["format"], int) or not 1 <= config["format"] <= FORMAT:
        raise ConversionError(f"format {config['format']}; this version reads 1 to {FORMAT}")
    if config.get("kind") != kind.__name__:
        raise ConversionError(f"expected a {kind.__name__}, it is a {config.get('kind')}")
    config, tensors = upgrades.upgrade(config, dict(weights))
    if config["spec"]["type"] != section["type"]:
        raise ConversionError(f"expected weights of '{section['type']}', they are of '{config['spec']['type']}'")
    load(module, tensors, left_out(module))


def _of_transformers(
    module: nn.Module, section: Mapping[str, Any], kind: type, config: dict[str, Any], weights: Weights
) -> None:
    from components.converters import decoder, emu3, glm_image, vqgan

    readers: dict[str, dict[str, Reader]] = {
        "Tokenizer": {
            **dict.fromkeys(("janus", "janus_vqgan", "chameleon", "chameleon_vqgan"), vqgan.start),
            **dict.fromkeys(("emu3", "emu3_vqgan"), emu3.start),
            "glm_image": glm_image.start,
        },
        "Generator": {"qwen3": decoder.start},
    }
    model, of_kind = str(config.get("model_type")), readers.get(kind.__name__, {})
    reader = of_kind.get(model)
    if reader is None:
        known = sorted(of_kind)
        raise ConversionError(
            f"no {kind.__name__} can be made of a '{model}'; "
            + (f"known: Tessera's own, {', '.join(known)}" if known else "only Tessera's own can be read")
        )
    reader(module, section, config, weights)
