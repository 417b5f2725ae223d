"""The sections of a recipe as models. A component's own configuration comes from its constructor (`components.registry`);
here stands only what belongs to the section itself."""

from __future__ import annotations

import inspect
import warnings
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import PydanticJsonSchemaWarning

from components import registry
from components.interfaces import (
    FeatureExtractor,
    Generator,
    Metric,
    Mixture,
    PostTraining,
    Sampler,
    Source,
    Tokenizer,
    Transform,
)
from components.registry import ComponentError, Spec, names, validate
from components.training.config import Train


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_default=True)


class Image(_Section):
    """How networks see the data set's pictures."""

    size: int = Field(ge=4, le=4096, description="pixels a side; the shorter side is scaled, the centre cut out")
    channels: int = Field(ge=1, le=3)


class NearDuplicates(_Section):
    """MinHash over shingles: pairs whose estimated Jaccard similarity reaches the threshold."""

    threshold: float = Field(default=0.8, gt=0, le=1)
    shingle: int = Field(default=5, ge=1, le=50, description="units that follow one another")
    unit: Literal["word", "character"] = Field(
        default="word", description="character: for languages without spaces between words, with a shingle of 9 or so"
    )
    permutations: int = Field(default=128, ge=16, le=1024)
    drop: bool = Field(default=False, description="keep only the first of each group; otherwise report")


#: the suite of expectations that belongs to a modality
SUITES = {"image": "images", "text": "texts", "audio": "audio", "array": "arrays"}


class Dataset(_Section):
    """Sources, and how they become a data set."""

    source: Spec[Source]
    target: Spec[Source] | None = None
    image: Image | None = None
    content: str | None = Field(default=None, description="filled in: digest of the files that the sources read")
    held_out: float = Field(default=0.1, gt=0, lt=1, description="share that training never sees")
    expectations: str = Field(
        default="", pattern=r"^[a-z0-9_-]*$", description="suite that the data must meet; empty: that of the modality"
    )
    max_broken: float = Field(
        default=0.05, ge=0, le=1, description="share of broken and quarantined samples that stops the run"
    )
    near_duplicates: NearDuplicates | None = Field(default=None, description="look for texts that are nearly the same")

    @model_validator(mode="after")
    def _complete(self) -> Dataset:
        modalities = self.source.build().modalities
        if self.image is None and "image" in modalities:
            raise ComponentError(
                "the source yields pictures: say how networks see them, e.g. {size: 64, channels: 3}", ("image",)
            )
        self.expectations = self.expectations or SUITES[modalities[0]]
        return self


class Evaluation(_Section):
    """What is measured, and on how many samples."""

    metrics: Annotated[list[Spec[Metric]], Field(min_length=1)]
    samples: int = Field(default=2000, ge=1)
    batch_size: int = Field(default=250, ge=1)


_TRAINED: dict[str, Any] = {"properties": {"train": {"properties": {"steps": {"minimum": 1}}}}}


class WithTrain(_Section):
    """The part of a trained section that is not the component's."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [_TRAINED]})

    train: Train

    @model_validator(mode="after")
    def _something(self) -> WithTrain:
        if self.train.steps == 0:
            raise ComponentError("Input should be greater than or equal to 1, got 0", ("train", "steps"))
        return self


class Init(_Section):
    """Published weights to start from."""

    source: str = Field(alias="from", description="hf:organisation/name@revision, or a folder of weights")
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="of these weights; filled in, checked where it is given"
    )


class WithWeights(WithTrain):
    """The same of a section that can start from published weights."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [_TRAINED, {"required": ["init"], "properties": {"init": {"type": "object"}}}]}
    )

    init: Init | None = None

    @model_validator(mode="after")
    def _something(self) -> WithWeights:
        if self.train.steps == 0 and self.init is None:
            raise ComponentError(
                "Input should be greater than or equal to 1, got 0 (0 is for a section with 'init')", ("train", "steps")
            )
        return self


class TokenizerOwn(WithWeights):
    transforms: list[Spec[Transform]] = []


class MixtureOwn(_Section):
    target_share: float = Field(
        default=0.0, ge=0, lt=1, description="share of training draws taken from the target itself"
    )


class Nothing(_Section):
    """A section that is only its component."""


#: section -> (kind of its component, what else it holds)
_COMPONENTS: dict[str, tuple[type, type[BaseModel]]] = {
    "mixture": (Mixture, MixtureOwn),
    "tokenizer": (Tokenizer, TokenizerOwn),
    "generator": (Generator, WithWeights),
    "sampling": (Sampler, Nothing),
    "posttraining": (PostTraining, WithTrain),
}
_MODELS: dict[str, type[BaseModel]] = {"dataset": Dataset, "evaluation": Evaluation}
SECTIONS = (
    "system", "title", "seed", "dataset", "mixture", "networks", "tokenizer", "generator", "sampling", "posttraining",
    "evaluation", "gates", "claims", "code",
)  # fmt: skip
_REQUIRED = ("system", "dataset")


def resolve_section(name: str, recipe: dict[str, Any]) -> Any:
    """One section with every default filled in. Raises ComponentError with the path inside the section."""
    value = recipe.get(name)
    if value is None and name in _REQUIRED:
        raise ComponentError("is missing")
    if name in ("system", "title"):
        if value is not None and not isinstance(value, str):
            raise ComponentError(f"expected a text, got {value!r}")
        return value
    if name == "seed":
        value = 0 if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ComponentError(f"expected a whole number from 0, got {value!r}")
        return value
    if name in ("gates", "claims"):
        return _texts(name, value)
    if name == "code":
        return {}
    if name == "networks":
        found = value or {}
        if not isinstance(found, dict):
            raise ComponentError(f"expected names with their networks, got {found!r}")
        return {key: _component(entry, FeatureExtractor, WithWeights, (key,)) for key, entry in found.items()}
    if value is None:
        return None
    if name in _MODELS:
        if not isinstance(value, dict):
            raise ComponentError(f"expected a mapping, got {value!r}")
        return validate(_MODELS[name], value).model_dump(mode="json")
    kind, own = _COMPONENTS[name]
    return _component(value, kind, own)


def _texts(name: str, value: Any) -> list[str]:
    value = value or []
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ComponentError(f"expected a list of texts, got {value!r}")
    if name == "gates":
        from flows import gates

        for text in value:
            try:
                gates.parse(text)
            except gates.GateError as error:
                raise ComponentError(str(error)) from error
    return value


def _component(value: Any, kind: type, own: type[BaseModel], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """{type, **configuration, **section's own} -> the same, complete."""
    try:
        if not isinstance(value, dict) or "type" not in value:
            raise ComponentError(f"expected a mapping with a 'type' (one of: {', '.join(names(kind))}), got {value!r}")
        belongs = set(own.model_fields)
        rest = validate(own, {k: v for k, v in value.items() if k in belongs}).model_dump(mode="json", by_alias=True)
        spec: registry.Spec[Any] = registry.resolve(kind, {k: v for k, v in value.items() if k not in belongs})
    except ComponentError as error:
        raise ComponentError(error.message, (*path, *error.path)) from error
    return {**spec.dump(), **rest}


# --------------------------------------------------------------------------------------------------- JSON schema


def json_schema() -> dict[str, Any]:
    """Draft 2020-12: every section, and for every `type` the configuration its constructor takes."""
    from components.interfaces import KINDS
    from components.mixture.problem import Embedder, Objective, Proxy, SampleScore

    definitions: dict[str, Any] = {}
    for kind in (*KINDS.values(), Embedder, Objective, Proxy, SampleScore):
        definitions[kind.__name__] = {"oneOf": [_configuration(kind, name) for name in names(kind)] + [_foreign()]}
    sections = {name: _section_schema(model) for name, model in _MODELS.items()}
    for name, (kind, own) in _COMPONENTS.items():
        sections[name] = {"anyOf": [{"type": "null"}, _with_own(kind, own)]}
    texts = {"type": ["array", "null"], "items": {"type": "string"}}
    sections |= {
        "system": {"type": "string"},
        "title": {"type": ["string", "null"]},
        "seed": {"type": ["integer", "null"], "minimum": 0},
        "networks": {"type": ["object", "null"], "additionalProperties": _with_own(FeatureExtractor, WithWeights)},
        "gates": texts,
        "claims": texts,
        "scales": {"type": ["object", "null"], "additionalProperties": {"type": ["object", "null"]}},
    }
    sections["evaluation"] = {"anyOf": [{"type": "null"}, sections["evaluation"]]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tessera recipe",
        "type": "object",
        "required": list(_REQUIRED),
        "additionalProperties": False,
        "properties": sections,
        "$defs": definitions,
    }


def _foreign() -> dict[str, Any]:
    """A component of the project, `module:Class`: its configuration is its own affair."""
    return {"type": "object", "properties": {"type": {"type": "string", "pattern": ":"}}, "required": ["type"]}


def _configuration(kind: type, name: str) -> dict[str, Any]:
    cls: type[Any] = registry.lookup(kind, name)
    schema = _section_schema(registry.config_model(cls))
    schema["properties"] = {"type": {"const": name}, **schema.get("properties", {})}
    schema["required"] = ["type", *schema.get("required", [])]
    schema["description"] = inspect.getdoc(cls) or ""
    return schema


def _with_own(kind: type, own: type[BaseModel]) -> dict[str, Any]:
    extra = _section_schema(own)
    choices = []
    for name in names(kind):
        schema = _configuration(kind, name)
        schema["properties"] = {**schema["properties"], **extra.get("properties", {})}
        schema["required"] = [*schema["required"], *extra.get("required", [])]
        choices.append(schema | {key: extra[key] for key in ("anyOf",) if key in extra})
    return {"oneOf": [*choices, _foreign()]}


def _section_schema(model: type[BaseModel]) -> dict[str, Any]:
    """A model's schema with nested models written out and components referred to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PydanticJsonSchemaWarning)  # defaults that are no JSON: left out anyway
        schema = model.model_json_schema(mode="validation")
    local = schema.pop("$defs", {})

    def inline(value: Any) -> Any:
        if isinstance(value, dict):
            if "x-kind" in value:
                return {"$ref": f"#/$defs/{value['x-kind']}"}
            if str(value.get("$ref", "")).startswith("#/$defs/") and value["$ref"].rpartition("/")[2] in local:
                return inline(local[value["$ref"].rpartition("/")[2]])
            return {key: inline(inner) for key, inner in value.items() if key != "default"}
        return [inline(inner) for inner in value] if isinstance(value, list) else value

    return inline(schema)
