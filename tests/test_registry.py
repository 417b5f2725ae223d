"""Components by name: what every registered one must be able to do, the mistakes a person makes, and components from outside."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch
from jsonschema import Draft202012Validator

from components import registry
from components.interfaces import (
    KINDS,
    Generator,
    ImageFormat,
    LatentSpec,
    Metric,
    Quantizer,
    SequenceShape,
    Tokenizer,
    TokenSpec,
    Transform,
)
from components.registry import ComponentError, Spec
from flows.sections import json_schema

ROOT = Path(__file__).parent.parent
IMAGE = ImageFormat(size=16, channels=1)
TOKENS = TokenSpec((32,), 16, "grid", grid=(4, 4))


def _kinds_inside(annotation: Any) -> set[type]:
    """The kinds that a configuration mentions, also within its dataclasses."""
    if get_origin(annotation) is Spec:
        return {get_args(annotation)[0]}
    found = {kind for argument in get_args(annotation) for kind in _kinds_inside(argument)}
    if hasattr(annotation, "__dataclass_fields__"):
        found |= {kind for hint in get_type_hints(annotation).values() for kind in _kinds_inside(hint)}
    return found


def _every_kind() -> dict[str, type]:
    """The vocabulary, and the kinds that its components bring along (a mixture's proxy)."""
    waiting, found = list(KINDS.values()), {}
    while waiting:
        kind = waiting.pop()
        if kind.__name__ in found:
            continue
        found[kind.__name__] = kind
        for name in registry.names(kind):
            for field in registry.config_model(registry.lookup(kind, name)).model_fields.values():
                waiting += _kinds_inside(field.annotation)
    return found


EVERY_KIND = _every_kind()
EVERY = [(kind, name) for _, kind in sorted(EVERY_KIND.items()) for name in registry.names(kind)]
every_component = pytest.mark.parametrize(
    ("kind", "name"), [pytest.param(*pair, id=f"{pair[0].__name__}-{pair[1]}") for pair in EVERY]
)


def smallest(kind: type, name: str) -> dict[str, Any]:
    """Only what a component asks for; inner components are the first of their kind."""
    config: dict[str, Any] = {"type": name}
    for key, field in registry.config_model(registry.lookup(kind, name)).model_fields.items():
        if field.is_required():
            inner = next(iter(_kinds_inside(field.annotation)), None)
            value = (
                smallest(inner, registry.names(inner)[0]) if inner else "@judge" if key == "network" else "somewhere"
            )
            config[key] = {"mine": value} if get_origin(field.annotation) is dict else value
    return config


def wired(kind: type, name: str) -> tuple[Any, ...]:
    """What the builder of a kind hands in, as `interfaces.py` says."""
    if kind.__name__ in ("Reward", "Metric", "PostTraining"):
        network: Any = registry.build(KINDS["FeatureExtractor"], {"type": "classifier"}, IMAGE, 3)
        networks = {"judge": network, "reward": network}
    if kind.__name__ == "PostTraining":
        tokenizer = registry.build(Tokenizer, smallest(Tokenizer, "grid"), IMAGE)
        return registry.build(Generator, smallest(Generator, "next_token"), TOKENS, 3), tokenizer, networks
    if kind.__name__ in ("Head", "Generator"):
        cls = registry.lookup(kind, name)
        spec: Any = LatentSpec(4, 16, (4, 4)) if getattr(cls, "continuous", False) else TOKENS
        spec = TokenSpec((8, 8), 16, "grid", (4, 4)) if name == "channel_autoregressive" else spec
        return (32, spec) if kind.__name__ == "Head" else (spec, 3)
    return {
        "FeatureExtractor": lambda: (IMAGE, 3),
        "Quantizer": lambda: (8,),
        "Codebook": lambda: (64, 8),
        "Tokenizer": lambda: (IMAGE,),
        "Adversary": lambda: (IMAGE,),
        "Autoencoder": lambda: (IMAGE,),
        "Backbone": lambda: (SequenceShape(16, grid=(4, 4)),),
        "Conditioner": lambda: (3,),
        "Reward": lambda: (networks,),
        "Metric": lambda: (networks, TOKENS),
    }.get(kind.__name__, tuple)()  # fmt: skip


def test_the_vocabulary_is_there() -> None:
    assert set(KINDS) < set(EVERY_KIND) and "Proxy" in EVERY_KIND
    assert all(registry.names(kind) for kind in EVERY_KIND.values())


@every_component
def test_defaults_resolve_to_a_complete_configuration_that_resolves_to_itself(kind: type, name: str) -> None:
    spec: Spec[Any] = registry.resolve(kind, smallest(kind, name))
    assert set(spec.dump()) == {"type", *registry.config_model(registry.lookup(kind, name)).model_fields}
    assert registry.resolve(kind, spec.dump()) == spec


@every_component
def test_a_component_is_built_from_its_defaults(kind: type, name: str) -> None:
    with torch.device("meta"):  # shapes only: the default sizes are those of papers
        made: Any = registry.build(kind, smallest(kind, name), *wired(kind, name))
    assert isinstance(made, kind)
    if isinstance(made, Metric):
        assert made.better in ("higher", "lower")


@every_component
def test_configuration_is_keyword_only_typed_and_documented(kind: type, name: str) -> None:
    cls: Any = registry.lookup(kind, name)
    assert inspect.getdoc(cls), f"{cls} has no docstring"
    assert sys.modules[cls.__module__].__doc__, f"{cls.__module__} has no docstring"
    hints = get_type_hints(cls.__init__)
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        if "__init__" in vars(cls):
            assert parameter.name in hints, f"{cls}: {parameter.name} has no type"
            assert parameter.kind is not parameter.VAR_KEYWORD, f"{cls}: **{parameter.name} takes anything"
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            assert parameter.default is parameter.empty, f"{cls}: {parameter.name} is wired, a default would hide it"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json_schema()


@every_component
def test_the_exported_schema_takes_what_resolves_and_nothing_else(
    schema: dict[str, Any], kind: type, name: str
) -> None:
    validator = Draft202012Validator({"$ref": f"#/$defs/{kind.__name__}", "$defs": schema["$defs"]})
    config = registry.resolve(kind, smallest(kind, name)).dump()
    validator.validate(smallest(kind, name))
    validator.validate(config)
    assert not validator.is_valid(config | {"no_such_key": 1})
    assert not validator.is_valid(config | {"type": name + "_"})


def test_every_reference_of_the_schema_is_defined(schema: dict[str, Any]) -> None:
    def references(value: Any) -> set[str]:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        own = {value["$ref"]} if isinstance(value, dict) and isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, inner))

    found = references(schema)
    assert "#/$defs/Proxy" in found
    assert found <= {f"#/$defs/{name}" for name in schema["$defs"]}


@every_component
def test_a_slip_in_a_name_is_answered_with_the_nearest(kind: type, name: str) -> None:
    with pytest.raises(ComponentError, match=f"no {kind.__name__} is called '{name}x'") as caught:
        registry.resolve(kind, {"type": f"{name}x"})
    assert caught.value.path == ("type",)
    assert f"did you mean '{name}'?" in str(caught.value)
    assert all(known in str(caught.value) for known in registry.names(kind))


@every_component
def test_an_unknown_key_is_answered_with_the_nearest(kind: type, name: str) -> None:
    keys = list(registry.resolve(kind, smallest(kind, name)).config)
    wrong = f"{keys[0]}s" if keys else "anything"
    with pytest.raises(ComponentError, match=f"unknown key '{wrong}'") as caught:
        registry.resolve(kind, smallest(kind, name) | {wrong: 1})
    assert caught.value.path == (wrong,)
    assert not keys or f"did you mean '{keys[0]}'?" in str(caught.value)


GRID = {"type": "grid", "quantizer": {"type": "vq"}}


@pytest.mark.parametrize(
    ("config", "path", "message"),
    [
        ({"type": "grid"}, ("quantizer",), "is missing"),
        (GRID | {"width": "wide"}, ("width",), "valid integer.*got 'wide'"),
        (GRID | {"quantizer": "vq"}, ("quantizer",), "expected a mapping with a 'type' .one of: .*vq.*got 'vq'"),
        (GRID | {"quantizer": {"codebook_size": 4}}, ("quantizer",), "expected a mapping with a 'type'"),
        (GRID | {"quantizer": {"type": "vqq"}}, ("quantizer", "type"), "did you mean 'vq'"),
        (GRID | {"quantizer": {"type": 3}}, ("quantizer", "type"), "'type' must be a name, got 3"),
        (GRID | {"quantizer": {"type": "fsq", "levels": ["x"]}}, ("quantizer", "levels", 0), "valid integer"),
        (GRID | {"quantizer": {"type": "vq", "codebok_size": 4}}, ("quantizer", "codebok_size"), "'codebook_size'"),
    ],
)
def test_mistakes_say_where_and_what_is_expected(config: dict[str, Any], path: tuple[str, ...], message: str) -> None:
    with pytest.raises(ComponentError, match=message) as caught:
        registry.resolve(Tokenizer, config)
    assert caught.value.path == path


def test_a_slip_inside_a_nested_dataclass_names_its_keys() -> None:
    mixture = {"type": "climb", "problem": {"clustering": {"fin": 3}}}
    with pytest.raises(ComponentError, match=r"unknown key 'fin', did you mean 'fine'\? .known keys: .*most") as caught:
        registry.resolve(KINDS["Mixture"], mixture)
    assert caught.value.path == ("problem", "clustering", "fin")


def test_a_configuration_reaches_the_constructor() -> None:
    tokenizer = registry.build(
        Tokenizer, {**GRID, "downsample": 4, "quantizer": {"type": "fsq", "levels": [3, 5]}}, IMAGE
    )
    assert tokenizer.spec == TokenSpec((15,), 16, "grid", grid=(4, 4))


# ------------------------------------------------------------------------------------------- components from outside

MODULE = '''
"""A component of a project."""
from typing import Annotated
from pydantic import Field
from components.interfaces import Transform

class Shift(Transform):
    """Adds a constant."""
    def __init__(self, *, by: Annotated[float, Field(ge=0)] = 0.5) -> None:
        self.by = by
    def __call__(self, images, rng):
        return images + self.by

class Other:
    pass
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A project's module, of a name of its own for each test: modules and look-ups are kept for the process."""
    name = f"parts_of_{request.node.originalname}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_class_of_the_project_is_a_component_like_any_other(module: str) -> None:
    spec = registry.resolve(Transform, {"type": f"{module}:Shift"})
    assert spec.dump() == {"type": f"{module}:Shift", "by": 0.5}
    assert spec.build()(torch.zeros(1), torch.Generator()) == 0.5
    with pytest.raises(ComponentError, match="unknown key 'bye', did you mean 'by'"):
        registry.resolve(Transform, {"type": f"{module}:Shift", "bye": 1})
    with pytest.raises(ComponentError, match="greater than or equal to 0, got -1"):
        registry.resolve(Transform, {"type": f"{module}:Shift", "by": -1})


def test_a_class_of_another_kind_is_refused(module: str) -> None:
    with pytest.raises(ComponentError, match=f"'{module}:Other' is not a Transform"):
        registry.resolve(Transform, {"type": f"{module}:Other"})
    with pytest.raises(ComponentError, match=f"'{module}:Shift' is not a Quantizer"):
        registry.resolve(Quantizer, {"type": f"{module}:Shift"})


@pytest.mark.parametrize("name", ["no_such_module:Shift", ":Shift", ".x:Shift", "json:Shift"])
def test_what_cannot_be_imported_is_named(name: str) -> None:
    with pytest.raises(ComponentError, match=f"cannot import '{name}'") as caught:
        registry.resolve(Transform, {"type": name})
    assert caught.value.path == ("type",)


def test_a_module_that_does_not_compile_is_named(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text("def broken(:\n")
    with pytest.raises(ComponentError, match=f"cannot import '{module}:Shift': SyntaxError"):
        registry.resolve(Transform, {"type": f"{module}:Shift"})


def test_an_installed_package_adds_a_component_by_its_entry_point(tmp_path: Path) -> None:
    (tmp_path / "shifts.py").write_text(MODULE)
    about = tmp_path / "shifts-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shifts\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[tessera.components]\ntransform.shift = shifts:Shift\n")
    code = (
        "from components import registry; from components.interfaces import Source, Transform;"
        "print(registry.resolve(Transform, {'type': 'shift', 'by': 2}).dump(), registry.names(Transform));"
        "assert 'shift' not in registry.names(Source);"
        "registry.resolve(Transform, {'type': 'shif'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert "{'type': 'shift', 'by': 2.0}" in done.stdout, done.stderr
    assert "'horizontal_flip'" in done.stdout
    assert "did you mean 'shift'?" in done.stderr
