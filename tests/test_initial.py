"""Published weights as a start: the same model as there, checked by hash, in the recipe, the key and the lineage."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_converters_vqgan import janus, pictures
from test_generators import CLASSES, SPEC, batch, build

from components import artifact, registry, yamlio
from components.converters import decoder, vqgan
from components.converters._tensors import ConversionError
from components.initial import start_from
from components.interfaces import FeatureExtractor, Generator, ImageFormat, Tokenizer
from flows import initial
from flows.execute import Options, execute
from flows.initial import InitError
from flows.recipes import RecipeError
from infra import graph, lineage
from infra.settings import Settings, environment
from tests._project import make

IMAGE = ImageFormat(16, 1)
GRID = {"type": "grid", "width": 8, "dim": 4, "quantizer": {"type": "vq", "codebook_size": 16}}


def tokenizer(seed: int, **changes: object) -> Tokenizer:
    torch.manual_seed(seed)
    return registry.build(Tokenizer, GRID | changes, IMAGE).eval()


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    spec = registry.resolve(Tokenizer, GRID).dump()
    artifact.save(tmp_path / "stored", Tokenizer, spec, (IMAGE,), tokenizer(1))
    return tmp_path / "stored"


class TestWeights:
    def test_of_our_own_format(self, stored: Path) -> None:
        made, images = tokenizer(2), torch.rand(4, 1, 16, 16)
        assert not torch.equal(made.encode(images), tokenizer(1).encode(images))
        start_from(made, GRID, Tokenizer, stored)
        assert torch.equal(made.encode(images), tokenizer(1).encode(images))

    def test_of_an_older_format(self) -> None:
        folder = Path(__file__).parent / "data" / "format-1" / "tokenizer"
        said = load_file(folder.parent / "expected.safetensors")
        spec = artifact.load(folder, Tokenizer)
        section = {"type": "grid"}
        for parameter in spec.parameters():
            parameter.data.zero_()
        start_from(spec, section, Tokenizer, folder)
        assert torch.equal(spec.encode(said["images"]), said["tokens"])

    @pytest.mark.parametrize("whole", [False, True], ids=["alone", "in the whole model"])
    def test_of_janus(self, tmp_path: Path, whole: bool) -> None:
        theirs, config = janus()
        section, image = vqgan.janus_section(config)
        section = registry.resolve(Tokenizer, section).dump()
        prefix = "model.vqmodel." if whole else ""
        tensors = {prefix + name: tensor.clone() for name, tensor in theirs.state_dict().items()}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "janus" if whole else "janus_vqgan"}))
        if whole:
            tensors["model.language_model.embed_tokens.weight"] = torch.zeros(3, 3)
        names = sorted(tensors)
        for number, part in enumerate((names[::2], names[1::2])):  # several files
            save_file({name: tensors[name].contiguous() for name in part}, tmp_path / f"model-{number}.safetensors")
        made = registry.build(Tokenizer, section, image).eval()
        start_from(made, section, Tokenizer, tmp_path)
        codes = theirs.encode(pictures(2)).image_tokens.view(2, -1)
        assert torch.equal(made.encode(pictures(2)), codes)
        with pytest.raises(ConversionError, match="unit_latents: expected true"):
            start_from(made, section | {"unit_latents": False}, Tokenizer, tmp_path)

    def test_of_a_decoder(self, tmp_path: Path) -> None:
        model = build("next_token")
        decoder.to_transformers(model).save_pretrained(tmp_path)
        made = build("next_token")
        for parameter in made.parameters():
            parameter.data.zero_()
        start_from(made, {"type": "next_token"}, Generator, tmp_path)
        tokens, labels = batch()
        assert torch.equal(made.log_probs(tokens, labels), model.log_probs(tokens, labels))
        other = registry.build(
            Generator,
            {
                "type": "next_token",
                "backbone": {"type": "transformer", "depth": 2, "width": 32, "heads": 4, "rope_base": 500.0},
                "head": {"type": "categorical"},
            },
            SPEC,
            CLASSES,
        )
        with pytest.raises(ConversionError, match=r"backbone.rope_base: expected 10000.0 as there, got 500.0"):
            start_from(other, {"type": "next_token"}, Generator, tmp_path)

    def test_what_does_not_fit_is_named(self, stored: Path) -> None:
        for changes, message in (
            ({"width": 16}, r"tensor 'decoder\.\S+': expected \("),
            ({"quantizer": {"type": "vq", "codebook_size": 32}}, r"codes': expected \(32, 4\), found \(16, 4\)"),
        ):
            with pytest.raises(ConversionError, match=message):
                start_from(tokenizer(2, **changes), GRID, Tokenizer, stored)
        with pytest.raises(ConversionError, match="expected a FeatureExtractor, it is a Tokenizer"):
            start_from(tokenizer(2), GRID, FeatureExtractor, stored)
        with pytest.raises(ConversionError, match="expected weights of 'query', they are of 'grid'"):
            start_from(tokenizer(2), {"type": "query"}, Tokenizer, stored)

    def test_a_truncated_file_is_named(self, stored: Path) -> None:
        path = stored / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ConversionError, match=r"model\.safetensors: not a readable safetensors file"):
            start_from(tokenizer(2), GRID, Tokenizer, stored)

    def test_pickles_are_never_read(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        torch.save({}, tmp_path / "pytorch_model.bin")
        with pytest.raises(ConversionError, match=r"pytorch_model\.bin is a pickle, which is never read"):
            start_from(tokenizer(2), GRID, Tokenizer, tmp_path)

    def test_an_unknown_architecture(self, stored: Path) -> None:
        (stored / "config.json").write_text(json.dumps({"model_type": "bert"}))
        with pytest.raises(
            ConversionError, match=r"no Tokenizer can be made of a 'bert'; known: Tessera's own, chameleon"
        ):
            start_from(tokenizer(2), GRID, Tokenizer, stored)


class TestHash:
    def test_it_is_that_of_sha256sum(self, stored: Path) -> None:
        printed = subprocess.run(
            ["sha256sum", "config.json", "model.safetensors"], cwd=stored, capture_output=True, check=True
        ).stdout
        assert initial.digest(stored) == hashlib.sha256(printed).hexdigest()

    def test_what_is_kept_follows_changes(self, stored: Path, tmp_path: Path) -> None:
        kept = tmp_path / "kept.json"
        before = initial.digest(stored, kept)
        assert initial.digest(stored, kept) == before
        assert len(json.loads(kept.read_text())) == 2
        tensors = load_file(stored / "model.safetensors")
        save_file({name: tensor + 1 for name, tensor in tensors.items()}, stored / "model.safetensors")
        assert initial.digest(stored, kept) == initial.digest(stored) != before

    def test_the_hub_s_cache_without_a_network(self, stored: Path, tmp_path: Path, monkeypatch) -> None:
        """The hub's own client, offline: a revision that was fetched before, and one that was not."""
        commit = "a" * 40
        repository = tmp_path / "hub" / "models--org--name"
        shutil.copytree(stored, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "v1").write_text(commit)
        import huggingface_hub.constants as constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        assert initial.digest(initial.locate("hf:org/name@v1", tmp_path)) == initial.digest(stored)
        with pytest.raises(InitError, match="'hf:org/name@v2' is not in the local cache and could not be fetched"):
            initial.locate("hf:org/name@v2", tmp_path)

    @pytest.mark.parametrize("source", ["hf:name@v1", "hf:org/name", "hf:../../etc@x"])
    def test_what_is_no_repository(self, source: str, tmp_path: Path) -> None:
        with pytest.raises(InitError, match="expected hf:organisation/name@revision or a folder"):
            initial.locate(source, tmp_path)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory):
    settings = make(tmp_path_factory.mktemp("initial") / "p")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**environment(settings), "TESSERA_PROJECT": str(settings.project)}.items():
            patch.setenv(name, value)
        yield settings


@pytest.mark.slow
class TestInARun:
    def recipe(self, settings: Settings, **init: object) -> None:
        section = GRID | {"transforms": [], "train": {"steps": 0}, "init": {"from": "weights", **init}}
        content = {
            "system": "started",
            "dataset": {"source": {"type": "digits"}, "image": {"size": 16, "channels": 1}, "held_out": 0.2},
            "tokenizer": section,
        }
        (settings.project / "recipes" / "started.yaml").write_text(yamlio.dump(content))

    def run(self, settings: Settings) -> Path:
        execute(settings, "started", None, [], "", None, Options(None, frozenset(), frozenset(), 1, True))
        return settings.runs / "started-tiny"

    def test_the_weights_are_used_recorded_and_watched(self, project: Settings, stored: Path) -> None:
        weights = project.project / "weights"
        shutil.copytree(stored, weights)
        self.recipe(project)
        run = self.run(project)
        images = torch.rand(4, 1, 16, 16)
        made = artifact.load(run / "outputs" / "tokenizer", Tokenizer)
        assert torch.equal(made.encode(images), tokenizer(1).encode(images))
        found = initial.digest(weights)
        assert yamlio.load(run / "recipe.yaml")["tokenizer"]["init"] == {"from": "weights", "sha256": found}
        event = lineage.events(run)["tokenizer"]
        assert [(item["namespace"], item["name"]) for item in event["inputs"]][-1] == (lineage.PUBLISHED, found)
        text = lineage.render(lineage.tree(run, project))
        assert f"{found[:12]}  weights (made outside this run)" in text
        assert lineage.users(project, found) == ["started-tiny/tokenizer"]
        with graph.open_graph(run, project) as opened:
            assert not opened.node("tokenizer").why()

        tensors = load_file(weights / "model.safetensors")
        save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, weights / "model.safetensors")
        self.run(project)
        again = artifact.load(run / "outputs" / "tokenizer", Tokenizer)
        assert not torch.equal(again.encoder.layers[0].weight, made.encoder.layers[0].weight)

    def test_another_hash_than_the_recipe_s_is_refused(self, project: Settings) -> None:
        self.recipe(project, sha256="0" * 64)
        with pytest.raises(InitError, match=r"tokenizer\.init\.sha256: weights has \w{64}, the recipe asks for 000"):
            self.run(project)

    def test_nothing_to_start_from_and_nothing_to_train(self, project: Settings) -> None:
        self.recipe(project)
        path = project.project / "recipes" / "started.yaml"
        content = yamlio.load(path)
        del content["tokenizer"]["init"]
        path.write_text(yamlio.dump(content))
        with pytest.raises(
            RecipeError, match=r"tokenizer.train.steps: Input should be greater than or equal to 1, got 0"
        ):
            self.run(project)
