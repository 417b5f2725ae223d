"""A trained component as a folder for others: weights, configuration, and the model card that the Hugging Face hub shows.

1. In Tessera's own format the files are those of the stored component, byte for byte; it is loaded once before that.
2. A plain next-token decoder is written by Transformers itself, so that `AutoModelForCausalLM.from_pretrained` reads it.
3. `README.md` begins with what the hub reads (license, library, tags); below stand what it is, how it was made, data,
   metrics and how to load it. The card says only what it is given.
4. A folder appears whole or not at all: it is written beside under another name, and renamed. One with something in it is
   never touched.

Format of the card: https://huggingface.co/docs/hub/model-cards. Deliberately absent: sending anything anywhere (`hf upload`
does that), and the hub's `model-index` of results, which wants names of public data sets.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from components import artifact, yamlio
from components.artifact import ArtifactError
from components.interfaces import KINDS, Generator, TextTokenizer

WEIGHTS = ("config.json", "model.safetensors")


class PublishingError(ValueError):
    """A folder that cannot be written to; says which and why."""

    user_error = True


@dataclass(frozen=True)
class Card:
    """What is said about a model. `license` is the hub's name of it ("apache-2.0", "cc-by-4.0", "other").

    `made` are facts by name (run, commit, ...), `recipe` the YAML it was made by. A metric `m` that has `m.low` and `m.high`
    is shown with that interval."""

    title: str
    what: str
    system: str = ""
    license: str = "other"
    tags: Sequence[str] = ()
    made: Mapping[str, str] = field(default_factory=dict)
    recipe: str = ""
    data: Sequence[str] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


def save_pretrained(component: Path, folder: Path, card: Card) -> None:
    """Publishes what `artifact.save` (or `text_tokenizers.stored.save`) wrote into `component`.

    Raises PublishingError for a folder that is not empty, ArtifactError for a component that cannot be loaded."""
    kind, files = check(component)
    with new_folder(folder) as new:
        for name in files:
            shutil.copyfile(component / name, new / name)
        (new / "README.md").write_text(readme(card, "tessera", _loading(kind)), encoding="utf-8")


def save_transformers(generator: Path, folder: Path, card: Card, tokenizer: Path | None = None) -> None:
    """Publishes a stored next-token decoder as a Transformers model, with the tokenizer it draws tokens for, in Tessera's
    format, below `tokenizer/`.

    Raises PublishingError for a folder that is not empty, ArtifactError for a component that cannot be loaded,
    ConversionError for a generator that is no plain decoder."""
    from components.converters.decoder import to_transformers

    model = artifact.load(generator, Generator)
    twin = to_transformers(model)
    if tokenizer is not None:
        check(tokenizer)
    with new_folder(folder) as new:
        with _quiet():
            twin.save_pretrained(new)
        if tokenizer is not None:
            (new / "tokenizer").mkdir()
            for name in WEIGHTS:
                shutil.copyfile(tokenizer / name, new / "tokenizer" / name)
        (new / "README.md").write_text(readme(card, "transformers", _loading_twin(model, tokenizer)), encoding="utf-8")


def check(component: Path) -> tuple[str, tuple[str, ...]]:
    """(kind, names of its files) of a stored component that can be loaded; raises ArtifactError for what cannot be."""
    path = component / "config.json"
    if not path.is_file():
        raise ArtifactError(f"{component} holds no trained component: config.json is missing")
    try:
        kind = json.loads(path.read_text())["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not the configuration of a component ({error})") from error
    if kind not in KINDS:
        raise ArtifactError(f"{path}: no kind of component is called '{kind}'")
    if kind == TextTokenizer.__name__:
        from components.text_tokenizers import stored

        stored.load(component)
        return kind, stored.FILES
    artifact.load(component, KINDS[kind])
    return kind, WEIGHTS


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when the block has ended well, and is removed when it has not.

    Raises PublishingError, before the block and again after it, when something is in `folder`."""
    folder = folder.resolve()
    _refuse_filled(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    new.mkdir()
    try:
        yield new
        for path in (*new.rglob("*"), new):
            if path.is_file():
                path.chmod(new.stat().st_mode & 0o666)  # some writers keep their files to themselves
            _to_disk(path)
        _refuse_filled(folder)
        new.rename(folder)  # in place of an empty one; the system refuses one that has been filled meanwhile
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers without its progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _refuse_filled(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise PublishingError(f"{folder} is a file; give a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise PublishingError(f"{folder} is not empty, and nothing in it will be replaced; give a new folder")


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---------------------------------------------------------------------------------------------------------- the card


def readme(card: Card, library: str, loading: str) -> str:
    """The model card in Markdown. `loading` is Python code."""
    tags = list(dict.fromkeys(["tessera", "discrete-tokens", *card.tags]))
    head = yamlio.dump({"license": card.license, "library_name": library, "tags": tags})
    facts = {**({"system": card.system} if card.system else {}), **card.made}
    lines = [f"# {card.title}", "", card.what, "", "## How it was made", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()] or ["Nothing is recorded."]
    if card.recipe:
        lines += ["", "By this recipe, every default filled in:", "", _fenced(card.recipe.rstrip(), "yaml")]
    lines += ["", "## Data", "", *(card.data or ["Nothing is recorded."])]
    lines += ["", "## Metrics", "", *_table(card.metrics)]
    lines += ["", "## How to load it", "", _fenced(loading, "python"), ""]
    return f"---\n{head}---\n\n" + "\n".join(lines)


def _table(metrics: Mapping[str, float]) -> list[str]:
    """Rows of a Markdown table, sorted by name."""
    if not metrics:
        return ["Nothing was measured."]
    rows = ["| metric | value | 95 % interval |", "|---|---|---|"]
    for name in sorted(metrics):
        if not name.endswith((".low", ".high")):
            low, high = metrics.get(f"{name}.low"), metrics.get(f"{name}.high")
            interval = "" if low is None or high is None else f"{_number(low)} to {_number(high)}"
            rows.append(f"| {name} | {_number(metrics[name])} | {interval} |")
    return rows


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def _fenced(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def _loading(kind: str) -> str:
    if kind == TextTokenizer.__name__:
        return (
            "from pathlib import Path\n\n"
            "from components.text_tokenizers import stored\n\n"
            'tokenizer = stored.load(Path("."))  # the folder with this file\n\n'
            "# or, without Tessera\n"
            "from tokenizers import Tokenizer\n\n"
            'tokenizer = Tokenizer.from_file("tokenizer.json")'
        )
    return (
        "from pathlib import Path\n\n"
        "from components import artifact\n"
        f"from components.interfaces import {kind}\n\n"
        f'model = artifact.load(Path("."), {kind})  # the folder with this file'
    )


def _loading_twin(model: Generator, tokenizer: Path | None) -> str:
    spec, classes = model.spec, model.classes
    lines = [
        "import torch",
        "from transformers import AutoModelForCausalLM",
        "",
        'model = AutoModelForCausalLM.from_pretrained(".")  # the folder with this file',
        f"# tokens 0 to {spec.vocabulary - 1} are codes, {spec.vocabulary} + c asks for class c, "
        f"{spec.vocabulary + classes} for none",
        f"asked = torch.tensor([[{spec.vocabulary + classes}]])  # one sample; drawn without guidance",
        "seen = torch.ones_like(asked)",
        "tokens = model.generate(asked, attention_mask=seen, do_sample=True, top_k=0)[:, 1:]",
    ]
    if tokenizer is not None:
        lines += [
            "",
            "# tokens to pictures",
            "from pathlib import Path",
            "",
            "from components import artifact",
            "from components.interfaces import Tokenizer",
            "",
            'pictures = artifact.load(Path("tokenizer"), Tokenizer).decode(tokens)',
        ]
    lines += [
        "",
        "# back into Tessera",
        "from components.converters.decoder import from_transformers",
        "from components.interfaces import TokenSpec",
        "",
        f"generator = from_transformers(model, {spec!r}, {classes})",
    ]
    return "\n".join(lines)
