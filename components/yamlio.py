"""The one YAML dialect: 1.2, as DVC reads it (`1e-4` is a number, `no` is a word)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

__all__ = ["YAMLError", "dump", "load", "parse"]


def load(path: Path) -> Any:
    """The content of a YAML file; raises YAMLError with line and column."""
    with open(path, encoding="utf-8") as file:
        return YAML(typ="safe").load(file)


def parse(text: str) -> Any:
    return YAML(typ="safe").load(text)


def dump(value: Any) -> str:
    """Block style, keys in the order given."""
    writer = YAML()
    writer.default_flow_style = False
    writer.width = 120
    text = io.StringIO()
    writer.dump(value, text)
    return text.getvalue()
