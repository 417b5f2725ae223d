"""Components by name, and their constructors as schemas.

`type:` in a recipe is a built-in's name (= its file name, so only that file is imported), an installed package's entry
point (group `tessera.components`, named `<kind>.<name>`), or `module:Class` of the project.

Keyword-only constructor arguments are the configuration; positional ones are wired by the builder:

    class VQ(Quantizer):
        def __init__(self, dim: int, *, codebook_size: int = 512) -> None: ...

    registry.build(Quantizer, {"type": "vq", "codebook_size": 64}, 8)     # -> VQ(8, codebook_size=64)

A component that contains another takes a `Spec[Kind]` and builds it itself, once it knows the sizes:

    def __init__(self, image: ImageFormat, *, quantizer: Spec[Quantizer], width: int = 64):
        self.quantizer = quantizer.build(width)
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points
from types import NoneType
from typing import Any, Generic, TypeVar, cast, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, create_model
from pydantic_core import core_schema

K = TypeVar("K")
_F = TypeVar("_F", bound=Callable[..., Any])


def _once(function: _F) -> _F:
    """`functools.cache` that keeps the signature."""
    return cast(_F, cache(function))


class ComponentError(ValueError):
    """A wrong `type`, key or value. `path` is where in the given mapping, e.g. ("quantizer", "bits")."""

    def __init__(self, message: str, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.message, self.path = message, path


class Spec(Generic[K]):
    """A validated choice of component, not built yet: `type` and its full configuration (defaults filled in).

    A plain class: of a generic dataclass pydantic takes the fields as schema and never asks for the one below."""

    def __init__(self, kind: type[K], type: str, config: dict[str, Any]) -> None:
        self.kind, self.type, self.config = kind, type, config

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and (self.kind, self.dump()) == (other.kind, other.dump())

    def __repr__(self) -> str:
        return f"Spec({self.kind.__name__}, {self.dump()!r})"

    def build(self, *wired: Any) -> K:
        cls = lookup(self.kind, self.type)
        return cls(*wired, **_arguments(cls, self.config))

    def dump(self) -> dict[str, Any]:
        """The plain mapping that stands in a resolved recipe."""
        return {"type": self.type, **self.config}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        (kind,) = get_args(source)

        def parse(value: Any) -> Spec[Any]:
            return value if isinstance(value, Spec) else resolve(kind, value)

        return core_schema.no_info_plain_validator_function(
            parse,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda spec: spec.dump()),
            metadata={"kind": kind.__name__},
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "object", "required": ["type"], "x-kind": schema["metadata"]["kind"]}


def nearest(name: str, choices: list[str]) -> str:
    """`, did you mean 'x'?` or an empty string."""
    found = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f", did you mean '{found[0]}'?" if found else ""


@_once
def names(kind: type) -> tuple[str, ...]:
    """The built-ins and installed entry points of a kind; imports none of them."""
    package = importlib.import_module(kind.family)  # type: ignore[attr-defined]
    found = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_") and not m.ispkg]
    built_in = [name for name in found if name not in getattr(package, "HELPERS", ())]
    prefix = f"{kind.__name__.lower()}."
    installed = [
        e.name.removeprefix(prefix) for e in entry_points(group="tessera.components") if e.name.startswith(prefix)
    ]
    return tuple(sorted({*built_in, *installed}))


@_once
def lookup(kind: type[K], name: str) -> type[K]:
    """The class behind a name; raises ComponentError with the nearest valid name."""
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        try:
            cls = getattr(importlib.import_module(module_name), attribute)
        except Exception as error:  # the project's code may fail in any way
            raise ComponentError(f"cannot import '{name}': {type(error).__name__}: {error}", ("type",)) from error
        if not (inspect.isclass(cls) and issubclass(cls, kind)):
            raise ComponentError(f"'{name}' is not a {kind.__name__}", ("type",))
        return cls
    choices = list(names(kind))
    if name not in choices:
        raise ComponentError(
            f"no {kind.__name__} is called '{name}'{nearest(name, choices)} (there are: {', '.join(choices)})",
            ("type",),
        )
    for entry in entry_points(group="tessera.components"):
        if entry.name == f"{kind.__name__.lower()}.{name}":
            return entry.load()
    module = importlib.import_module(f"{kind.family}.{name}")  # type: ignore[attr-defined]
    classes = [
        c for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, kind) and c.__module__ == module.__name__ and not c.__name__.startswith("_")
    ]  # fmt: skip
    if len(classes) != 1:
        raise ComponentError(f"{module.__name__} must define exactly one public {kind.__name__}, it has {len(classes)}")
    return classes[0]


@_once
def config_model(cls: type) -> type[BaseModel]:
    """The pydantic model of a constructor's keyword-only arguments: unknown keys are refused."""
    hints = get_type_hints(cls.__init__, include_extras=True)  # type: ignore[misc]
    fields: dict[str, Any] = {
        p.name: (hints[p.name], ... if p.default is p.empty else p.default)
        for p in inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
        if p.kind is p.KEYWORD_ONLY
    }
    settings = ConfigDict(extra="forbid", arbitrary_types_allowed=True, strict=False, validate_default=True)
    return create_model(cls.__name__, __config__=settings, **fields)


def validate(model: type[BaseModel], value: Mapping[str, Any]) -> BaseModel:
    """Pydantic's validation with errors for the person at the keyboard: what, where, expected, nearest key."""
    try:
        return model.model_validate(dict(value))
    except ValidationError as error:
        first = error.errors()[0]
        path = tuple(first["loc"])
        if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            key = str(path[-1])
            choices = _keys(model, path[:-1])
            listing = f" (known keys: {', '.join(choices)})" if choices else ""
            raise ComponentError(f"unknown key '{key}'{nearest(key, choices)}{listing}", path) from None
        inner = (first.get("ctx") or {}).get("error")
        if isinstance(inner, ComponentError):
            raise ComponentError(inner.message, (*path, *inner.path)) from None
        got = "" if first["type"] == "missing" else f", got {first['input']!r}"
        message = "is missing" if first["type"] == "missing" else first["msg"]
        raise ComponentError(f"{message}{got}", path) from None


def _keys(owner: Any, path: tuple[str | int, ...]) -> list[str]:
    """The keys that the model or dataclass at `path` knows; none where the way leads through something else."""
    for part in path:
        owner = get_type_hints(owner).get(str(part)) if inspect.isclass(owner) else None
        owner = next((kind for kind in get_args(owner) if inspect.isclass(kind) and kind is not NoneType), owner)
    if dataclasses.is_dataclass(owner):
        return sorted(field.name for field in dataclasses.fields(owner))
    return sorted(getattr(owner, "model_fields", ()))


def resolve(kind: type[K], value: Any) -> Spec[K]:
    """{"type": name, **config} -> Spec with every default filled in."""
    if not isinstance(value, Mapping) or "type" not in value:
        raise ComponentError(f"expected a mapping with a 'type' (one of: {', '.join(names(kind))}), got {value!r}")
    name = value["type"]
    if not isinstance(name, str):
        raise ComponentError(f"'type' must be a name, got {name!r}", ("type",))
    cls = lookup(kind, name)
    model = validate(config_model(cls), {k: v for k, v in value.items() if k != "type"})
    return Spec(kind, name, model.model_dump(mode="json"))


def _arguments(cls: type, config: dict[str, Any]) -> dict[str, Any]:
    """A plain configuration as the constructor's argument values (nested mappings become Specs)."""
    model = validate(config_model(cls), config)
    return {name: getattr(model, name) for name in type(model).model_fields}


def build(kind: type[K], value: Any, *wired: Any) -> K:
    """Resolve and construct in one go."""
    return resolve(kind, value).build(*wired)
