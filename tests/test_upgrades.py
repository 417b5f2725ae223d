"""Models of every earlier format load for ever: one of each is kept here, with what it said when it was stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components import artifact, registry, upgrades
from components.interfaces import Autoregressive, Generator, Tokenizer

STORED = sorted((Path(__file__).parent / "data").glob("format-*"))


def test_there_is_one_of_each_format() -> None:
    assert [folder.name for folder in STORED] == [f"format-{number}" for number in range(1, artifact.FORMAT)]


@pytest.mark.parametrize("folder", STORED, ids=lambda folder: folder.name)
@torch.no_grad()
def test_it_says_what_it_said(folder: Path) -> None:
    said = load_file(folder / "expected.safetensors")
    tokenizer = artifact.load(folder / "tokenizer", Tokenizer)
    assert torch.equal(tokenizer.encode(said["images"]), said["tokens"])
    torch.testing.assert_close(tokenizer.decode(said["tokens"]), said["decoded"], atol=1e-5, rtol=1e-5)
    generator = artifact.load(folder / "generator", Generator)
    assert isinstance(generator, Autoregressive)
    found = generator.log_probs(said["tokens"], torch.tensor([0, 1, 2, 3, 0]))
    torch.testing.assert_close(found, said["log_probs"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("folder", STORED, ids=lambda folder: folder.name)
def test_stored_again_it_is_of_the_newest_format(folder: Path, tmp_path: Path) -> None:
    tokenizer = artifact.load(folder / "tokenizer", Tokenizer)
    config, _ = upgrades.upgrade(json.loads((folder / "tokenizer" / "config.json").read_text()), {})
    spec = registry.resolve(Tokenizer, config["spec"]).dump()
    artifact.save(tmp_path, Tokenizer, spec, (tokenizer.image,), tokenizer)
    assert json.loads((tmp_path / "config.json").read_text())["format"] == artifact.FORMAT
    images = load_file(folder / "expected.safetensors")["images"]
    assert torch.equal(artifact.load(tmp_path, Tokenizer).encode(images), tokenizer.encode(images))
