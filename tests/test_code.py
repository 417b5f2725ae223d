"""The code a stage depends on: what changes its hash and what does not, on a copy of the product and on small modules."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import code, recipes, runs

ROOT = Path(__file__).parent.parent
STAGES = ("dataset", "mixture", "networks", "tokenizer", "tokens", "generator", "posttraining", "evaluation",
          "registration")  # fmt: skip
Change = Callable[[str, str, str], set[str]]
_TICKS = itertools.count(1)


@pytest.fixture(scope="session")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A project and its quickstart, resolved once."""
    project = tmp_path_factory.mktemp("code") / "project"
    runs.init_project(project)
    return project, recipes.resolve(project, "quickstart", None, [])


@pytest.fixture(scope="session")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("code") / "product"
    for folder in ("components", "flows", "infra"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture
def product(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the product; hashes are taken from it."""
    monkeypatch.setattr(code, "_ROOT", copied)
    return copied


def rewrite(path: Path, text: str) -> None:
    """Another content and a time of change that no content before had, whatever the clock's grain."""
    path.write_text(text)
    tick = next(_TICKS)
    os.utime(path, ns=(tick, tick))


def added(text: str, old: str, new: str) -> str:
    """The text with `new` in the place of `old`; an empty `old` is the end."""
    assert not old or text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
    return text.replace(old, new) if old else text + new


@pytest.fixture
def change(product: Path, resolved: tuple[Path, dict[str, Any]]) -> Change:
    """Edits a file of the copy, and puts it back; the stages whose hash was another one in between."""
    project, recipe = resolved

    def make(file: str, old: str, new: str) -> set[str]:
        path = product / file
        kept, time = path.read_text(), path.stat().st_mtime_ns
        try:
            rewrite(path, added(kept, old, new))
            found = code.of_recipe(project, recipe, list(STAGES))
        finally:
            path.write_text(kept)
            os.utime(path, ns=(time, time))
        return {stage for stage in STAGES if found[stage] != recipe["code"][stage]}

    return make


def test_every_stage_has_a_hash_of_its_own(resolved: tuple[Path, dict[str, Any]]) -> None:
    _, recipe = resolved
    assert tuple(recipe["code"]) == STAGES
    assert len(set(recipe["code"].values())) == len(STAGES)


def test_a_copy_of_the_product_has_the_same_hashes(product: Path, resolved: tuple[Path, dict[str, Any]]) -> None:
    project, recipe = resolved
    for _ in range(2):  # nothing that was read is changed by it
        assert code.of_recipe(project, recipe, list(STAGES)) == recipe["code"]


VQ, BODY = "components/quantizers/vq.py", "flows/tokenizer.py"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (VQ, "", "# a comment\n"),
        (VQ, "class VQ(Quantizer):", "class VQ(\n    Quantizer  # the base\n):"),
        (VQ, '"""Vector quantization', '"""Other words about vector quantization'),
        (VQ, '    """Nearest code of', '    """Other words about the nearest code of'),
        (BODY, '"""The discrete tokenizer."""', '"""Words."""'),
        (BODY, '    """Trains the recipe', '    """Other words: trains the recipe'),
        (BODY, 'section = ctx.section("tokenizer")', "section = ctx.section(\n        'tokenizer',\n    )"),
    ],
)
def test_comments_docstrings_and_formatting_change_no_hash(change: Change, file: str, old: str, new: str) -> None:
    assert change(file, old, new) == set()


MORE = "\n_MORE = 1\n"
OF_TOKENIZER = {"tokenizer", "tokens", "posttraining", "evaluation", "registration"}  # it, and what loads its weights


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        (VQ, OF_TOKENIZER),
        ("components/tokenizers/_conv.py", OF_TOKENIZER),
        ("components/backbones/_rope.py", {"generator", "posttraining", "evaluation", "registration"}),
        ("components/data/sources/glyphs.py", {"dataset"}),
        ("components/data/transforms/random_affine.py", {"networks", "posttraining", "evaluation"}),
        ("components/networks/classifier.py", {"networks", "posttraining", "evaluation"}),
        ("components/mixture/scores/contrast.py", {"mixture"}),
        ("components/posttraining/losses.py", {"posttraining"}),
        ("components/rewards/class_probability.py", {"posttraining"}),
        ("components/evaluation/fd.py", {"evaluation"}),
        ("components/sampling/rules.py", {"posttraining", "evaluation", "registration"}),
        ("flows/data.py", {"networks", "tokenizer", "generator", "posttraining", "evaluation"}),
        ("flows/serving.py", {"registration"}),
        ("components/quantizers/fsq.py", set()),
        ("components/mixture/uniform.py", set()),
        ("components/data/sources/image_folder.py", set()),
    ],
)
def test_a_changed_component_changes_only_the_stages_that_use_it(change: Change, file: str, stages: set[str]) -> None:
    assert change(file, "", MORE) == stages


def test_the_trainer_belongs_to_everything_that_is_trained(change: Change) -> None:
    changed = change("components/training/trainer.py", "", MORE)
    assert {"networks", "tokenizer", "generator", "posttraining"} <= changed
    assert not {"dataset", "mixture", "tokens", "registration"} & changed


@pytest.mark.parametrize(
    "file",
    ["components/interfaces.py", "components/registry.py", "flows/walk.py", "flows/pipeline.py", "infra/graph.py",
     "infra/storage.py", "flows/tokenizer.py"],
)  # fmt: skip
def test_the_vocabulary_and_what_only_carries_a_body_change_no_hash(change: Change, file: str) -> None:
    assert change(file, "", MORE) == set()


@pytest.mark.parametrize(
    ("old", "new", "stages"),
    [
        ('section = ctx.section("tokenizer")', 'section = dict(ctx.section("tokenizer"))', {"tokenizer"}),
        ("from components.training.trainer import train", "from components.training.trainer import train as train",
         {"tokenizer"}),
        ('walk(request, until="tokenizer")', 'walk(request, until="tokens")', set()),
    ],
)  # fmt: skip
def test_of_a_stage_only_its_body_counts(change: Change, old: str, new: str, stages: set[str]) -> None:
    assert change(BODY, old, new) == stages


def test_what_a_body_reaches_in_its_file_counts(change: Change) -> None:
    assert change("flows/tokens.py", "_BATCH = 512", "_BATCH = 256") == {"tokens"}


# ----------------------------------------------------------------------------------------------- the recipe's sections


def test_a_hash_also_holds_the_sections_that_the_stage_reads(resolved: tuple[Path, dict[str, Any]]) -> None:
    """DVC's run cache is blind to keys called `size` and `nfiles`."""
    project, recipe = resolved
    other = recipe | {"dataset": recipe["dataset"] | {"image": {"size": 32, "channels": 1}}}
    found = code.of_recipe(project, other, list(STAGES))
    assert {stage for stage in STAGES if found[stage] != recipe["code"][stage]} == {"dataset"}
    assert found["dataset"].partition("-")[0] == recipe["code"]["dataset"].partition("-")[0], "the code is the same"


def test_another_component_is_other_code(resolved: tuple[Path, dict[str, Any]]) -> None:
    project, recipe = resolved
    other = recipe | {"tokenizer": recipe["tokenizer"] | {"quantizer": {"type": "fsq", "levels": [4, 4]}}}
    found = code.of_recipe(project, other, ["tokenizer"])
    assert found["tokenizer"].partition("-")[0] != recipe["code"]["tokenizer"].partition("-")[0]


# ------------------------------------------------------------------------------------------- components of a project


def project_hash(project: Path, type_: str) -> str:
    """The hash of a stage that uses one component of a project."""
    recipe = {"seed": 0, "tokenizer": {"type": "grid", "transforms": [{"type": type_}]}}
    return code.stage_hashes(project, {"tokenizer": ["seed", "tokenizer"]}, recipe, ["tokenizer"])["tokenizer"]


@pytest.mark.parametrize("name", ["parts", "components_of_mine", "flows_of_mine", "infrastructure"])
def test_a_module_of_the_project_counts_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.py"
    path.write_text("class Shift:\n    by = 1\n")
    first = project_hash(tmp_path, f"{name}:Shift")
    rewrite(path, '"""Words."""\n\nclass Shift:  # a comment\n    """Words."""\n\n    by = 1\n')
    assert project_hash(tmp_path, f"{name}:Shift") == first
    rewrite(path, "class Shift:\n    by = 2\n")
    assert project_hash(tmp_path, f"{name}:Shift") != first


@pytest.mark.parametrize(
    ("files", "type_"),
    [
        ({"parts.py": "from more import by\nclass Shift: ...\n", "more.py": "by = 1\n"}, "parts:Shift"),
        ({"parts.py": "class Shift:\n    def f(self):\n        import more\n", "more.py": "by = 1\n"}, "parts:Shift"),
        (
            {"own/__init__.py": "", "own/parts.py": "from .more import by\nclass Shift: ...\n", "own/more.py": "by = 1\n"},
            "own.parts:Shift",
        ),
        (
            {"own/__init__.py": "from .parts import Shift\n", "own/parts.py": "from . import more\nclass Shift: ...\n",
             "own/more.py": "by = 1\n"},
            "own:Shift",
        ),
    ],
    ids=["module", "inside a function", "relative", "package"],
)  # fmt: skip
def test_what_a_module_of_the_project_imports_counts(tmp_path: Path, files: dict[str, str], type_: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    first = project_hash(tmp_path, type_)
    imported = next(path for path in tmp_path.rglob("more.py"))
    rewrite(imported, "by = 1  # one\n")
    assert project_hash(tmp_path, type_) == first
    rewrite(imported, "by = 2\n")
    assert project_hash(tmp_path, type_) != first


def test_a_hash_is_the_same_however_often_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "extra.py").write_text(
        'def body(ctx):\n    """What it does."""\n    """More."""\n    return {}\n'
    )
    assert len({code.stage_hashes(tmp_path, {"extra": []}, {}, ["extra"])["extra"] for _ in range(3)}) == 1


def test_the_mark_of_all_sources_sees_packages_of_the_project_and_not_its_data(tmp_path: Path) -> None:
    (tmp_path / "own" / "deep").mkdir(parents=True)
    (tmp_path / "own" / "__init__.py").touch()
    (tmp_path / "runs" / "x").mkdir(parents=True)
    marks = [code.source_hash(tmp_path)]
    for name in ("parts.py", "own/parts.py", "own/deep/parts.py", "runs/x/parts.py"):
        (tmp_path / name).touch()
        marks.append(code.source_hash(tmp_path))
    assert len(set(marks[:4])) == 4
    assert marks[4] == marks[3]
