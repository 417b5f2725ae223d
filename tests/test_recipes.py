"""Recipes: scale, overrides, defaults, references, the exported schema, and the answer to every slip."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from components import registry, yamlio
from components.interfaces import Metric, Quantizer
from flows import recipes, runs
from flows.recipes import RecipeError
from flows.sections import SECTIONS

ROOT = Path(__file__).parent.parent
SHIPPED = [(name, scale) for name in recipes.list_recipes(ROOT) for scale in recipes.list_scales(ROOT)
           if scale == "paper" or scale in (recipes.load(ROOT, name).get("scales") or {})]  # fmt: skip

RECIPE = """
system: small
dataset:
  source: {type: digits}
  image: {size: 16, channels: 1}
networks:
  judge: {type: classifier, train: {steps: 5}}
tokenizer:
  type: grid
  width: 32
  quantizer: {type: vq, codebook_size: 64}
  transforms: [{type: random_affine, degrees: 5}, {type: horizontal_flip}]
  train: {steps: 9, lr: 1e-4}
evaluation:
  metrics: [{type: psnr}, {type: fd, network: "@judge"}]
scales:
  tiny: {tokenizer: {width: 8, quantizer: {codebook_size: 16}}}
  small: {tokenizer: {quantizer: {type: fsq}, transforms: []}}
  bare:
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes") / "project"
    runs.init_project(folder)
    (folder / "recipes" / "mine.yaml").write_text(RECIPE)
    return folder


Resolve = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def resolve(made: Path) -> Resolve:
    return lambda *overrides, scale=None, name="mine": recipes.resolve(made, name, scale, list(overrides))


@pytest.fixture
def written(made: Path) -> Iterator[Callable[[str | bytes], str]]:
    """Writes a recipe of this text; its name."""

    def write(text: str | bytes) -> str:
        path = made / "recipes" / "broken.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path.stem

    yield write
    (made / "recipes" / "broken.yaml").unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------- the shipped


@pytest.mark.parametrize(("name", "scale"), SHIPPED)
def test_every_shipped_recipe_resolves_at_each_of_its_scales(
    resolve: Resolve, made: Path, name: str, scale: str
) -> None:
    resolved = resolve(scale=scale, name=name)
    assert list(resolved) == list(SECTIONS)
    assert set(resolved["code"]) == set(runs.stages_of(made, resolved))
    as_written = yamlio.parse(yamlio.dump(resolved))
    assert as_written == resolved, "what stands in runs/<run>/recipe.yaml reads back as it was"


def test_there_are_shipped_recipes() -> None:
    assert {("quickstart", "tiny"), ("tokenizer", "tiny"), ("tokenizer", "small"), ("tokenizer", "paper")} <= set(
        SHIPPED
    )


@pytest.fixture(scope="session")
def validator(made: Path) -> Draft202012Validator:
    schema = recipes.schema(made)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("name", ["mine", *recipes.list_recipes(ROOT)])
def test_the_exported_schema_accepts_the_recipe(validator: Draft202012Validator, made: Path, name: str) -> None:
    validator.validate(recipes.load(made, name))


@pytest.mark.parametrize(("name", "scale"), [("mine", None), *SHIPPED])
def test_the_exported_schema_accepts_every_filled_in_default(
    validator: Draft202012Validator, resolve: Resolve, name: str, scale: str | None
) -> None:
    validator.validate({key: value for key, value in resolve(name=name, scale=scale).items() if key != "code"})


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("tokenizr",), {}),
        (("seed",), -1),
        (("system",), None),
        (("dataset", "imag"), {}),
        (("dataset", "image", "size"), 2),
        (("dataset", "source", "type"), "digitz"),
        (("tokenizer", "widht"), 8),
        (("tokenizer", "width"), "wide"),
        (("tokenizer", "quantizer", "codebok_size"), 8),
        (("tokenizer", "train", "stepz"), 8),
        (("tokenizer", "train", "steps"), 0),
        (("networks", "judge", "type"), "clasifier"),
        (("evaluation", "metrics"), []),
        (("gates",), [1]),
        (("scales",), {"tiny": 3}),
    ],
)
def test_the_exported_schema_and_resolving_refuse_the_same(
    validator: Draft202012Validator, written: Callable[[str], str], resolve: Resolve, place: tuple[str, ...], value: Any
) -> None:
    recipe = yamlio.parse(RECIPE)
    inner = recipe
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    assert not validator.is_valid(recipe)
    with pytest.raises(RecipeError):
        resolve(name=written(yamlio.dump(recipe)), scale="paper")


@pytest.mark.parametrize("section", ["title", "seed", "mixture", "networks", "generator", "sampling", "posttraining",
                                     "evaluation", "gates", "claims", "scales"])  # fmt: skip
def test_a_section_may_be_null_for_both(
    validator: Draft202012Validator, written: Callable[[str], str], resolve: Resolve, section: str
) -> None:
    recipe = yamlio.parse(RECIPE) | {"evaluation": {"metrics": [{"type": "psnr"}]}} | {section: None}
    validator.validate(recipe)
    resolve(name=written(yamlio.dump(recipe)), scale="paper")


def test_the_exported_schema_lets_components_of_the_project_pass(validator: Draft202012Validator) -> None:
    recipe = yamlio.parse(RECIPE)
    recipe["tokenizer"]["transforms"] = [{"type": "my_components:Mirror", "anything": 1}]
    validator.validate(recipe)


# --------------------------------------------------------------------------------------------------- scale, defaults


def test_paper_is_the_recipe_as_it_stands_and_tiny_the_default(resolve: Resolve) -> None:
    assert resolve(scale="paper")["tokenizer"]["width"] == 32
    assert resolve(scale="paper")["tokenizer"]["quantizer"]["codebook_size"] == 64
    assert resolve() == resolve(scale="tiny")
    assert resolve()["tokenizer"]["width"] == 8
    assert resolve(scale="bare") == resolve(scale="paper")


def test_a_recipe_without_scales_is_itself(resolve: Resolve, written: Callable[[str | bytes], str]) -> None:
    name = written("system: plain\ndataset: {source: {type: pydoc_text}}\n")
    assert resolve(name=name) == resolve(name=name, scale="tiny") == resolve(name=name, scale="paper")
    with pytest.raises(RecipeError, match="has no scale 'small'"):
        resolve(name=name, scale="small")


def test_a_scale_merges_into_what_is_there(resolve: Resolve) -> None:
    quantizer = resolve()["tokenizer"]["quantizer"]
    assert (quantizer["type"], quantizer["codebook_size"]) == ("vq", 16)
    assert len(resolve()["tokenizer"]["transforms"]) == 2


def test_another_type_in_a_scale_takes_the_old_ones_place(resolve: Resolve) -> None:
    tokenizer = resolve(scale="small")["tokenizer"]
    assert tokenizer["quantizer"] == registry.resolve(Quantizer, {"type": "fsq"}).dump()
    assert tokenizer["transforms"] == [], "a list is replaced, not merged"
    assert tokenizer["width"] == 32


def test_merging_leaves_both_sides_as_they_were() -> None:
    base, change = {"a": {"b": [1]}, "c": 1}, {"a": {"d": {"e": 2}}}
    kept = deepcopy((base, change))
    merged = recipes.merge(base, change)
    merged["a"]["d"]["e"] = 3
    assert (base, change) == kept
    assert recipes.merge(base, change) == {"a": {"b": [1], "d": {"e": 2}}, "c": 1}


def test_every_default_is_filled_in_from_the_constructors(resolve: Resolve) -> None:
    resolved = resolve()
    assert resolved["seed"] == 0
    assert resolved["dataset"]["held_out"] == 0.1
    assert resolved["dataset"]["target"] is None
    assert resolved["tokenizer"]["train"]["betas"] == [0.9, 0.95]
    assert resolved["tokenizer"]["quantizer"] == registry.resolve(Quantizer, {"type": "vq", "codebook_size": 16}).dump()
    assert resolved["evaluation"]["metrics"][1] == registry.resolve(Metric, {"type": "fd"}).dump()
    assert resolved["mixture"] is None
    assert resolved["gates"] == []


def test_a_resolved_recipe_is_kept_until_its_file_changes(
    resolve: Resolve, written: Callable[[str], str], made: Path
) -> None:
    name = written(RECIPE)
    assert resolve(name=name) == resolve(name=name)
    written(RECIPE.replace("lr: 1e-4", "lr: 2e-4"))
    assert resolve(name=name)["tokenizer"]["train"]["lr"] == 2e-4


def test_a_kept_recipe_that_is_torn_is_made_anew(resolve: Resolve, made: Path) -> None:
    before = resolve("seed=77")
    for kept in (made / ".tessera" / "cache" / "resolved").glob("*.json"):
        if '"seed": 77' in kept.read_text():
            kept.write_text('{"seed": 77, "tok')
    assert resolve("seed=77") == before


# --------------------------------------------------------------------------------------------------------- overrides


def test_overrides_are_read_as_yaml(resolve: Resolve) -> None:
    tokenizer = resolve("tokenizer.train.lr=1e-3", "tokenizer.width=24", "tokenizer.train.ema=null",
                        "tokenizer.quantizer={type: fsq, levels: [4, 4]}", "title=no")["tokenizer"]  # fmt: skip
    assert (tokenizer["train"]["lr"], tokenizer["train"]["ema"], tokenizer["width"]) == (1e-3, None, 24)
    assert tokenizer["quantizer"] == {"type": "fsq", "levels": [4, 4]}
    assert resolve("title=no")["title"] == "no", "a word, as in YAML 1.2"


def test_overrides_come_after_the_scale(resolve: Resolve) -> None:
    assert resolve("tokenizer.width=48", scale="tiny")["tokenizer"]["width"] == 48


def test_overrides_reach_into_lists(resolve: Resolve) -> None:
    resolved = resolve("tokenizer.transforms.0.degrees=45", "evaluation.metrics.0={type: ssim}")
    assert [t["type"] for t in resolved["tokenizer"]["transforms"]] == ["random_affine", "horizontal_flip"]
    assert resolved["tokenizer"]["transforms"][0]["degrees"] == 45
    assert [m["type"] for m in resolved["evaluation"]["metrics"]] == ["ssim", "fd"]
    assert resolve("tokenizer.transforms=[]")["tokenizer"]["transforms"] == []


def test_an_override_makes_the_way_to_what_is_not_there_yet(resolve: Resolve) -> None:
    resolved = resolve("networks.second.type=classifier", "networks.second.train.steps=3")
    assert resolved["networks"]["second"]["train"]["steps"] == 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], [[]]),
        (["a.b=1"], [["a.b=1"]]),
        (["a=1,2", "b=3"], [["a=1", "b=3"], ["a=2", "b=3"]]),
        (["a=1,2", "b=3,4"], [["a=1", "b=3"], ["a=1", "b=4"], ["a=2", "b=3"], ["a=2", "b=4"]]),
        (["a=[1,2],[3]"], [["a=[1,2]"], ["a=[3]"]]),
        (["a={x: 1, y: [2, 3]}"], [["a={x: 1, y: [2, 3]}"]]),
        (["a='1,2',3"], [["a='1,2'"], ["a=3"]]),
        (['a="]",2'], [['a="]"'], ["a=2"]]),
        (["a=b=c"], [["a=b=c"]]),
        ([" a =1"], [["a=1"]]),
        (["a="], [["a="]]),
    ],
)
def test_a_comma_makes_one_run_a_value_unless_it_belongs_to_the_value(
    settings: list[str], expected: list[list[str]]
) -> None:
    assert recipes.expand(settings) == expected


@pytest.mark.parametrize("setting", ["a", "=1", " =1", ""])
def test_a_change_without_key_or_value_is_refused(setting: str) -> None:
    with pytest.raises(RecipeError, match="is not a change; write a.b=c"):
        recipes.expand([setting])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokenizer.width", "'tokenizer.width' is not a change"),
        ("tokenizer.transforms.2.degrees=1", "tokenizer.transforms is a list of 2, '2' is not in it"),
        ("tokenizer.transforms.first=1", "'first' is not in it"),
        ("tokenizer.transforms.-1={}", "'-1' is not in it"),
        ("mixture.rounds=1", r"rounds.*mixture|expected a mapping with a 'type'"),
        ("tokenizer.width.x=1", "tokenizer.width is 8, it has no 'x'"),
        ("tokenizer.width=[", r"'tokenizer.width=\[': the value is not valid YAML: .*line 2, column 1"),
    ],
)
def test_an_override_that_fits_nowhere_says_where_it_stopped(resolve: Resolve, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        resolve(override)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- slips


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("tokenizr.width=3", "unknown section 'tokenizr'", "did you mean 'tokenizer'?"),
        ("tokenizer.widht=3", "tokenizer.widht: unknown key", "did you mean 'width'? (known keys:"),
        ("tokenizer.train.stepz=3", "tokenizer.train.stepz: unknown key", "did you mean 'steps'? (known keys:"),
        ("dataset.image.sizes=3", "dataset.image.sizes: unknown key", "did you mean 'size'? (known keys: channels,"),
        ("dataset.heldout=3", "dataset.heldout: unknown key", "did you mean 'held_out'?"),
        ("networks.judge.widht=3", "networks.judge.widht: unknown key", "did you mean 'width'?"),
        ("evaluation.metrics.1.netwrk=x", "evaluation.metrics.1.netwrk: unknown key", "did you mean 'network'?"),
        (
            "tokenizer.quantizer.type=vqq",
            "tokenizer.quantizer.type: no Quantizer",
            "did you mean 'vq'? (there are: additive,",
        ),
        ("tokenizer.type=gird", "tokenizer.type: no Tokenizer", "did you mean 'grid'?"),
        ("dataset.target.type=digitz", "dataset.target.type: no Source", "did you mean 'digits'?"),
        (
            "tokenizer.width=wide",
            "tokenizer.width: ",
            "valid integer, unable to parse string as an integer, got 'wide'",
        ),
        ("tokenizer.width=2.5", "tokenizer.width: ", "valid integer, got a number with a fractional part, got 2.5"),
        ("tokenizer.train.steps=0", "tokenizer.train.steps: ", "greater than or equal to 1, got 0"),
        ("tokenizer.train.precision=fp8", "tokenizer.train.precision: ", "'fp32' or 'bf16', got 'fp8'"),
        ("tokenizer.train=3", "tokenizer.train: ", "got 3"),
        ("tokenizer.train=", "tokenizer.train: ", "got None"),
        ("dataset.held_out=1", "dataset.held_out: ", "less than 1, got 1"),
        ("dataset.expectations=../x", "dataset.expectations: ", "match pattern"),
        ("evaluation.metrics=[]", "evaluation.metrics: ", "at least 1 item"),
        ("seed=-1", "seed: ", "expected a whole number from 0, got -1"),
        ("seed=true", "seed: ", "expected a whole number from 0, got True"),
        ("title=3", "title: ", "expected a text, got 3"),
        ("system=", "system: ", "is missing"),
        ("dataset=", "dataset: ", "is missing"),
        ("dataset=3", "dataset: ", "expected a mapping, got 3"),
        ("networks=[1]", "networks: ", "expected names with their networks, got [1]"),
        ("gates=fd < 3", "gates: ", "expected a list of texts, got 'fd < 3'"),
        ("gates=[fd]", "gates: ", "cannot read the gate 'fd'; write e.g."),
        ("tokenizer.type=no_such:Thing", "tokenizer.type: ", "cannot import 'no_such:Thing'"),
    ],
)
def test_a_slip_names_the_file_the_key_and_what_was_expected(
    resolve: Resolve, override: str, key: str, expected: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(override)
    message = str(caught.value)
    assert message.startswith(f"recipes/mine.yaml: {key}")
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipes/broken.yaml: expected a mapping of sections, got NoneType"),
        ("[1]", "recipes/broken.yaml: expected a mapping of sections, got list"),
        ("a: [", "recipes/broken.yaml is not valid YAML: .* .line 2, column 1."),
        ("system: a\nsystem: b", 'recipes/broken.yaml is not valid YAML: found duplicate key "system".* .line 2'),
        (b"system: \xff", "recipes/broken.yaml is not valid YAML: 'utf-8' codec can't decode"),
        ("system: a\nscales: 3", "recipes/broken.yaml: scales: expected scales with their changes, got 3"),
        ("system: a\nscales: {tiny: 3}", "recipes/broken.yaml: scales: expected scales with their changes"),
        ("system: a\nscales: [tiny]", "recipes/broken.yaml: scales: expected scales with their changes"),
        ("system: a\nnull: 3\nscales: {tiny: }", "recipes/broken.yaml: unknown section 'None'"),
        ("system: a\nscales: {tiny: }", "recipes/broken.yaml: dataset: is missing"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(
    written: Callable[[str | bytes], str], resolve: Resolve, text: str | bytes, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        resolve(name=written(text))
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_is_answered_with_the_nearest(resolve: Resolve) -> None:
    with pytest.raises(RecipeError, match="there is no recipe 'quikstart', did you mean 'quickstart'"):
        resolve(name="quikstart")


@pytest.mark.parametrize("name", ["../mine", "recipes/mine", "/etc/passwd", "", ".", "..", "Mine", "a" * 65])
def test_a_recipes_name_never_leaves_its_folder(resolve: Resolve, name: str) -> None:
    with pytest.raises(RecipeError, match="is not a recipe's name .there are: .*mine"):
        resolve(name=name)


def test_an_unknown_scale_is_answered_with_the_nearest(resolve: Resolve) -> None:
    with pytest.raises(
        RecipeError, match="recipes/mine.yaml has no scale 'tny', did you mean 'tiny'.*bare, paper, small"
    ):
        resolve(scale="tny")


def test_scales_are_listed_smallest_first(made: Path) -> None:
    assert recipes.list_scales(made) == ["tiny", "small", "paper", "bare"]


# -------------------------------------------------------------------------------------------------------- references


def test_a_reference_needs_no_quotes_on_the_command_line(resolve: Resolve) -> None:
    resolved = resolve("networks.second={type: classifier, train: {steps: 3}}", "evaluation.metrics.1.network=@second")
    assert resolved["evaluation"]["metrics"][1]["network"] == "@second"


@pytest.mark.parametrize(
    ("overrides", "where", "answer"),
    [
        (
            ["evaluation.metrics.1.network=@jugde"],
            "evaluation.metrics.1.network",
            "did you mean 'judge'? (it has: judge)",
        ),
        (["networks={}"], "evaluation.metrics.1.network", "no network '@judge' (it has none)"),
        (["networks=null"], "evaluation.metrics.1.network", "no network '@judge' (it has none)"),
        (
            [
                "generator={type: next_token, backbone: {type: transformer}, head: {type: categorical}, train: {steps: 1}}",
                "posttraining={type: grpo, reward: {type: class_probability}, train: {steps: 1}}",
            ],
            "posttraining.reward.network",
            "no network '@reward' (it has: judge)",
        ),
    ],
)
def test_a_reference_to_no_network_is_refused_before_anything_runs(
    resolve: Resolve, overrides: list[str], where: str, answer: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(*overrides)
    assert str(caught.value).startswith(f"recipes/mine.yaml: {where}: the recipe has no network")
    assert answer in str(caught.value)


# -------------------------------------------------------------------------------------------- components of a project


def test_a_changed_module_of_the_project_is_a_changed_recipe(
    made: Path, resolve: Resolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(made)
    package = made / "parts_of_recipes"
    package.mkdir()
    (package / "__init__.py").touch()
    text = (made / "my_components.py").read_text()
    (package / "mirror.py").write_text(text)
    override = "tokenizer.transforms=[{type: 'parts_of_recipes.mirror:Mirror'}]"
    before = resolve(override)
    (package / "mirror.py").write_text(text.replace("flip(-1)", "flip(-2)"))
    os.utime(package / "mirror.py", ns=(1, 1))  # whatever the clock's grain
    after = resolve(override)
    assert before["tokenizer"] == after["tokenizer"]
    assert [stage for stage in before["code"] if before["code"][stage] != after["code"][stage]] == [
        "tokenizer",
        "evaluation",
        "registration",
    ]
