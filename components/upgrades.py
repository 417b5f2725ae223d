"""What older versions stored, as this one reads it: pure functions from one format to the next. They are never removed.

Format 1 -> 2: a grid's losses became a list; a VQ's codebook, regularizers and revival parts of their own; a TokenSpec counts
positions and the sizes of their codebooks; a generator's class embedding became its conditioner's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

Stored = tuple[dict[str, Any], dict[str, Tensor]]  # config.json, model.safetensors


def upgrade(config: dict[str, Any], tensors: dict[str, Tensor]) -> Stored:
    """From whatever format `config` has to the newest."""
    if config["format"] == 1:
        config, tensors = _from_1(config, tensors)
    return config, tensors


def _from_1(config: dict[str, Any], tensors: dict[str, Tensor]) -> Stored:
    spec = _spec_1(config["spec"])
    wired = [_wired_1(value) for value in config["wired"]]
    quantizer = config["spec"].get("quantizer", {})
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if quantizer.get("type") == "vq":
            name = _VQ_1.get(name, name)
        found[name.replace("class_embedding.", "conditioner.embedding.")] = tensor
    if quantizer.get("type") == "fsq":
        found["quantizer.use.counts"] = torch.ones(math.prod(quantizer["levels"]))
    return {**config, "format": 2, "spec": spec, "wired": wired}, found


_VQ_1 = {
    "quantizer.codebook": "quantizer.codebook.codes",
    "quantizer.average": "quantizer.codebook.sums",
    "quantizer.counts": "quantizer.use.counts",
    "quantizer.filled": "quantizer.codebook.filled",
}


def _spec_1(spec: dict[str, Any]) -> dict[str, Any]:
    spec = {key: _spec_1(value) if isinstance(value, dict) else value for key, value in spec.items()}
    if spec.get("type") == "vq":
        below = spec["revive_below"]
        return {
            "type": "vq",
            "codebook_size": spec["codebook_size"],
            "codebook": {"type": "moving_average", "decay": spec["decay"]},
            "regularizers": [{"type": "commitment", "weight": spec["commitment_weight"]}],
            "revival": {"type": "replace_unused", "below": below} if below else None,
        }
    if spec.get("type") == "grid":
        spec["losses"] = [{"type": name, "weight": spec.pop(f"{name}_weight")} for name in ("squared", "absolute")]
    if spec.get("type") == "next_token":
        spec["condition_dropout"] = spec.pop("label_dropout")
    return spec


def _wired_1(value: Any) -> Any:
    if isinstance(value, dict) and value.get("value") == "TokenSpec":
        sizes = {"codebook_sizes": [value["vocabulary"]], "positions": value["length"]}
        return {"value": "TokenSpec", "layout": value["layout"], "grid": value["grid"], **sizes}
    return value
