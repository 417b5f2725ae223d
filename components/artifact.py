"""A trained component on disk: `config.json` (kind, type, configuration, wired sizes, format number) and
`model.safetensors`. Nothing is pickled; loading builds the component through the registry and checks every tensor."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file, save_file
from torch import nn

from components import interfaces, registry, upgrades

M = TypeVar("M", bound=nn.Module)

FORMAT = 2
_VALUES = {cls.__name__: cls for cls in (interfaces.ImageFormat, interfaces.TokenSpec, interfaces.LatentSpec)}


class ArtifactError(ValueError):
    """A folder that does not hold what it should; the message names file, tensor, expected and actual."""


def save(folder: Path, kind: type, spec: dict[str, Any], wired: tuple[Any, ...], module: nn.Module) -> None:
    """Writes a component built as `registry.build(kind, spec, *wired)`; `wired` are numbers, ImageFormat, TokenSpec,
    LatentSpec."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [
        {"value": type(w).__name__, **asdict(w)} if is_dataclass(w) and not isinstance(w, type) else w for w in wired
    ]
    config = {"format": FORMAT, "kind": kind.__name__, "spec": spec, "wired": sizes}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    without = left_out(module)
    state = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in module.state_dict().items()
        if not name.startswith(without)
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path, kind: type[M]) -> M:
    """The component in `folder`, in eval mode; raises ArtifactError when it is something else, damaged or too new."""
    path = folder / "config.json"
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no trained {kind.__name__}: {path.name} is missing")
    config = json.loads(path.read_text())
    if config["format"] > FORMAT:
        raise ArtifactError(f"{path}: format {config['format']} is newer than this version reads ({FORMAT}); upgrade")
    if config["kind"] != kind.__name__:
        raise ArtifactError(f"{path}: expected a {kind.__name__}, found a {config['kind']}")
    try:
        state = load_file(folder / "model.safetensors")
    except Exception as error:
        raise ArtifactError(f"{folder / 'model.safetensors'}: not a readable safetensors file ({error})") from error
    config, state = upgrades.upgrade(config, state)
    module = registry.build(kind, config["spec"], *[_value(w) for w in config["wired"]])
    without = left_out(module)
    expected = {name: tuple(t.shape) for name, t in module.state_dict().items() if not name.startswith(without)}
    for name in sorted({*expected, *state}):
        actual = tuple(state[name].shape) if name in state else "nothing"
        if expected.get(name, "nothing") != actual:
            raise ArtifactError(f"{folder}: tensor '{name}': expected {expected.get(name, 'nothing')}, found {actual}")
    module.load_state_dict(state, strict=False)  # what is left out starts anew, should it be trained again
    return module.eval()


def left_out(module: nn.Module) -> tuple[str, ...]:
    """How the names of tensors begin that are for training only."""
    return tuple(f"{name}." for name in getattr(module, "training_only", ()))


def _value(stored: Any) -> Any:
    if not isinstance(stored, dict):
        return stored
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items() if k != "value"}
    return _VALUES[stored["value"]](**fields)
