"""Models for others: what is published comes back to the last bit, with a card that the hub reads, whole or not at all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tessera
from components import artifact, publishing, registry
from components.artifact import ArtifactError
from components.converters._tensors import ConversionError
from components.converters.decoder import from_transformers
from components.interfaces import Generator, ImageFormat, TextTokenizer, Tokenizer, TokenSpec
from components.publishing import Card, PublishingError, readme, save_pretrained, save_transformers
from components.text_tokenizers import stored
from flows import export as exporting
from flows import serving
from flows.export import ExportError, export
from infra import lineage
from infra.settings import Settings
from tests import _project

IMAGE, CLASSES = ImageFormat(8, 1), ["0", "1", "A"]
GRID = {"type": "grid", "downsample": 4, "width": 8, "quantizer": {"type": "vq", "codebook_size": 16}}
BACKBONE = {"type": "transformer", "depth": 1, "width": 16, "heads": 2}
NEXT = {"type": "next_token", "backbone": BACKBONE, "head": {"type": "categorical"}}
CARD = Card(
    "digits: small",
    "It draws digits.",
    system="demo",
    license="cc-by-4.0",
    tags=["digits", "tessera"],
    made={"run": "demo-tiny"},
    recipe="seed: 0\nnote: '```'\n",
    data=["Ten thousand digits."],
    metrics={"psnr": 21.5, "psnr.low": 20.04, "psnr.high": 23.0, "parameters": 1234567.0},
)


def built(kind: type, spec: dict, *wired: object) -> torch.nn.Module:
    """With weights that no initialization would give."""
    torch.manual_seed(0)
    module = registry.build(kind, spec, *wired)
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return module.eval()


def store(folder: Path, kind: type, spec: dict, *wired: object) -> torch.nn.Module:
    module = built(kind, spec, *wired)
    artifact.save(folder, kind, spec, wired, module)
    return module


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def code_of(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    return code


def performed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The names that the card's code defines, run where the card says."""
    monkeypatch.chdir(folder)
    names: dict = {"images": np.zeros((2, 8, 8, 1), np.uint8)}
    exec(code_of((folder / "README.md").read_text()), names)
    return names


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tokenizer/` and `generator/` as stages leave them, figures included."""
    folder = tmp_path_factory.mktemp("parts")
    tokenizer = store(folder / "tokenizer", Tokenizer, GRID, IMAGE)
    store(folder / "generator", Generator, NEXT, tokenizer.spec, len(CLASSES))
    (folder / "tokenizer" / "figures").mkdir()
    return folder


@pytest.fixture(scope="module")
def bundle(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "demo"
    recipe = {
        "system": "demo",
        "dataset": {"source": {"type": "glyphs"}, "target": None},
        "tokenizer": GRID,
        "generator": NEXT,
        "sampling": {"type": "ancestral", "guidance": 2.0},
    }
    serving.save_bundle(folder, parts / "tokenizer", parts / "generator", recipe, CLASSES, IMAGE)
    (folder / "metrics.json").write_text(json.dumps({"psnr": 21.5}))
    (folder / "notes.txt").write_text("nobody's business")
    return folder


class TestOwnFormat:
    @pytest.mark.parametrize(("part", "kind"), [("tokenizer", Tokenizer), ("generator", Generator)])
    def test_out_and_back_is_the_same_to_the_last_bit(
        self, parts: Path, tmp_path: Path, part: str, kind: type, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = artifact.load(parts / part, kind)
        save_pretrained(parts / part, tmp_path / "new" / "out", CARD)
        out = tmp_path / "new" / "out"
        assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
        assert same(artifact.load(out, kind), before)
        assert same(performed(out, monkeypatch)["model"], before)
        for name in publishing.WEIGHTS:
            assert (out / name).read_bytes() == (parts / part / name).read_bytes()

    def test_a_text_tokenizer_has_its_own_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("tokenizers")
        spec = {"type": "bpe", "vocabulary": 300}
        tokenizer = registry.build(TextTokenizer, spec)
        tokenizer.fit(Path(__file__).read_text().splitlines())
        stored.save(tmp_path / "in", spec, tokenizer)
        save_pretrained(tmp_path / "in", tmp_path / "out", CARD)
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["README.md", "config.json", "tokenizer.json"]
        assert stored.load(tmp_path / "out").dump() == tokenizer.dump()
        assert performed(tmp_path / "out", monkeypatch)["tokenizer"].encode("def f").ids == (
            tokenizer.encode(["def f"])[0].tolist()
        )

    def test_what_cannot_be_loaded_is_not_published(self, parts: Path, tmp_path: Path) -> None:
        for name, content, message in (
            ("config.json", None, "config.json is missing"),
            ("config.json", b"[]", "not the configuration of a component"),
            ("config.json", b'{"kind": "Nothing"}', "no kind of component is called 'Nothing'"),
            ("model.safetensors", b"short", "not a readable safetensors file"),
        ):
            damaged = tmp_path / "damaged"
            save_pretrained(parts / "tokenizer", damaged, CARD)
            (damaged / name).unlink()
            if content is not None:
                (damaged / name).write_bytes(content)
            with pytest.raises(ArtifactError, match=re.escape(message)):
                save_pretrained(damaged, tmp_path / "out", CARD)
            assert [path.name for path in tmp_path.iterdir()] == ["damaged"], "nothing is left behind"
            for path in damaged.iterdir():
                path.unlink()


@pytest.fixture(scope="module")
def out(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generator as a Transformers model, with its tokenizer."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("twin") / "out"
    save_transformers(parts / "generator", folder, CARD, parts / "tokenizer")
    return folder


class TestTransformers:
    def test_its_files_are_those_of_transformers(self, out: Path) -> None:
        names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
        assert names == {
            "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer/config.json",
            "tokenizer/model.safetensors",
        }  # fmt: skip
        assert {path.stat().st_mode for path in out.glob("*.*")} == {(out / "README.md").stat().st_mode}

    def test_out_and_back_is_the_same_to_the_last_bit(self, out: Path, parts: Path) -> None:
        from transformers import AutoModelForCausalLM

        before = artifact.load(parts / "generator", Generator)
        twin = AutoModelForCausalLM.from_pretrained(out)
        assert same(from_transformers(twin, before.spec, before.classes), before)

    def test_its_card_says_how_to_draw_pictures_and_come_back(
        self, out: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = performed(out, monkeypatch)
        assert names["tokens"].shape == (1, 4) and int(names["tokens"].max()) < 16
        assert names["pictures"].shape == (1, 1, 8, 8)
        assert same(names["generator"], artifact.load(parts / "generator", Generator))

    def test_what_that_architecture_cannot_say_leaves_nothing(self, tmp_path: Path) -> None:
        pytest.importorskip("transformers")
        store(
            tmp_path / "in",
            Generator,
            NEXT | {"backbone": BACKBONE | {"axes": 2}},
            TokenSpec((8,), 4, "grid", (2, 2)),
            1,
        )
        with pytest.raises(ConversionError, match="one rotary axis"):
            save_transformers(tmp_path / "in", tmp_path / "out", CARD)
        assert [path.name for path in tmp_path.iterdir()] == ["in"]


class TestFolder:
    def test_one_with_something_in_it_is_refused_and_stays(self, parts: Path, tmp_path: Path) -> None:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine.txt").write_text("mine")
        (tmp_path / "file").write_text("mine")
        for name, message in (("full", "is not empty"), ("file", "is a file")):
            with pytest.raises(PublishingError, match=f"{name} {message}"):
                save_pretrained(parts / "tokenizer", tmp_path / name, CARD)
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "mine.txt"]

    def test_an_empty_one_is_taken(self, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "link").symlink_to("empty")
        monkeypatch.chdir(tmp_path)
        save_pretrained(parts / "tokenizer", Path("link"), CARD)
        assert artifact.load(tmp_path / "empty", Tokenizer)

    def test_what_fails_half_way_leaves_nothing(self, tmp_path: Path) -> None:
        def stopped(new: Path) -> None:
            (new / "half").write_text("half")
            assert not (tmp_path / "a" / "out").exists()
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), publishing.new_folder(tmp_path / "a" / "out") as new:
            stopped(new)
        assert not list((tmp_path / "a").iterdir())

    def test_one_that_is_filled_meanwhile_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "theirs").write_text("theirs")
        with pytest.raises(PublishingError, match="is not empty"), publishing.new_folder(tmp_path / "out"):
            (tmp_path / "full").rename(tmp_path / "out")
        assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


class TestCard:
    def test_the_hub_reads_its_head(self) -> None:
        hub = pytest.importorskip("huggingface_hub")
        data = hub.ModelCard(readme(CARD, "tessera", "pass")).data
        assert (data.license, data.library_name) == ("cc-by-4.0", "tessera")
        assert data.tags == ["tessera", "discrete-tokens", "digits"]

    def test_it_says_everything_it_is_given(self) -> None:
        said = readme(CARD, "tessera", "pass")
        heads = re.findall(r"^#+ (.*)$", said, re.MULTILINE)
        assert heads == ["digits: small", "How it was made", "Data", "Metrics", "How to load it"]
        for text in (
            "\nIt draws digits.\n", "- system: demo", "- run: demo-tiny", "````yaml\nseed: 0\nnote: '```'\n````",
            "\nTen thousand digits.\n", "| psnr | 21.5 | 20.04 to 23 |", "| parameters | 1,234,567 |  |", "```python\npass\n```",
        ):  # fmt: skip
            assert text in said
        assert "psnr.low" not in said

    def test_what_is_not_known_is_said_to_be_not_known(self) -> None:
        said = readme(Card("a", "b"), "tessera", "pass")
        assert "license: other" in said
        assert said.count("Nothing is recorded.") == 2 and "Nothing was measured." in said


class TestExport:
    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        return Settings(project=tmp_path / "project")

    @pytest.fixture
    def run(self, settings: Settings, bundle: Path) -> Path:
        """A run that has registered the bundle, with the event of it."""
        run = settings.runs / "demo-tiny"
        _copy(bundle, run / "outputs" / "registration")
        _copy(bundle / "tokenizer", run / "outputs" / "tokenizer")
        (run / "recipe.yaml").write_bytes((bundle / "recipe.yaml").read_bytes())
        for stage in ("tokenizer", "registration"):
            lineage.emit(
                run, settings, stage=stage, key=stage, state="ran", inputs={"outputs/dataset": "abc.dir"}, outputs={},
                sections={}, metrics={}, facts={"commit": "c0ffee", "dirty": True},
            )  # fmt: skip
        return run

    def test_a_bundle_stands_alone(
        self, settings: Settings, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        export(settings, str(bundle), out, "tessera", "mit")
        expected = {
            "README.md", "bundle.json", "metrics.json", "recipe.yaml", "tokenizer/config.json", "tokenizer/model.safetensors",
            "generator/config.json", "generator/model.safetensors",
        }  # fmt: skip
        assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == expected
        for name in expected - {"README.md"}:
            assert (out / name).read_bytes() == (bundle / name).read_bytes()
        before = tessera.load(bundle)
        assert np.array_equal(tessera.load(out).sample(3), before.sample(3))
        names = performed(out, monkeypatch)
        assert np.array_equal(names["images"], before.sample(16))
        said = (out / "README.md").read_text()
        for text in ("license: mit", "# demo", "8 x 8", "`glyphs`.", "numbered from 0: 0, 1, A.", "codebook_size: 16",
                     "| psnr | 21.5 |"):  # fmt: skip
            assert text in said

    def test_a_run_says_what_its_lineage_knows(self, settings: Settings, run: Path, tmp_path: Path) -> None:
        for number, ref in enumerate(("demo-tiny", "runs/demo-tiny", str(run), "runs/demo-tiny/outputs/tokenizer")):
            export(settings, ref, tmp_path / str(number), "tessera", "other")
            said = (tmp_path / str(number) / "README.md").read_text()
            for text in ("- system: demo", "- run: demo-tiny", "- commit: c0ffee, with changes", "data set: abc.dir"):
                assert text in said
        assert same(artifact.load(tmp_path / "3", Tokenizer), artifact.load(run / "outputs" / "tokenizer", Tokenizer))

    def test_a_decoder_goes_to_transformers(self, settings: Settings, run: Path, bundle: Path, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        export(settings, "demo-tiny", tmp_path / "all", "transformers", "other")
        export(settings, str(bundle / "generator"), tmp_path / "alone", "transformers", "other")
        assert (tmp_path / "all" / "tokenizer" / "model.safetensors").is_file()
        before = artifact.load(bundle / "generator", Generator)
        for name in ("all", "alone"):
            twin = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name)
            assert same(from_transformers(twin, before.spec, before.classes), before)

    def test_slips_are_explained(self, settings: Settings, run: Path, bundle: Path, tmp_path: Path) -> None:
        (settings.runs / "young" / "outputs").mkdir(parents=True)
        (settings.runs / "young" / "recipe.yaml").write_text("system: demo\n")
        (tmp_path / "empty").mkdir()
        alone = tmp_path / "alone"
        serving.save_bundle(alone, bundle / "tokenizer", None, {"system": "alone"}, [], IMAGE)
        for ref, form, license, message in (
            ("demo-tyni", "tessera", "mit", "no model at 'demo-tyni', did you mean 'demo-tiny'?"),
            ("young", "tessera", "mit", "run 'young' has registered no model; finish it, or export"),
            (str(tmp_path / "empty"), "tessera", "mit", "holds no model"),
            (str(bundle / "tokenizer"), "transformers", "mit", "is a Tokenizer; only a next-token decoder"),
            (str(alone), "transformers", "mit", "is a tokenizer only"),
            ("demo-tiny", "tessera", "My Own", "'My Own' is not how the hub calls a license"),
        ):
            with pytest.raises(ExportError, match=re.escape(message)):
                export(settings, ref, tmp_path / "out", form, license)
        export(settings, str(alone), tmp_path / "tokenizer-only", "tessera", "mit")
        assert tessera.load(tmp_path / "tokenizer-only").generator is None
        assert not (tmp_path / "out").exists()

    def test_from_the_command_line(self, settings: Settings, bundle: Path, tmp_path: Path) -> None:
        _project.make(settings.project)
        done = _project.tessera(settings, "export", str(bundle), str(tmp_path / "out"), "--license", "mit")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert "license: mit" in (tmp_path / "out" / "README.md").read_text()
        done = _project.tessera(settings, "export", str(bundle), str(tmp_path / "out"))
        assert done.returncode == 2
        assert done.stderr.startswith("error ") and done.stderr.count("\n") == 1 and "is not empty" in done.stderr


@pytest.mark.slow
def test_a_registered_version_is_exported_in_both_formats(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    settings = _project.make(tmp_path / "project", git=True)
    done = _project.tessera(
        settings, "run", "quickstart", "--inline", "--name", "first", *_project.sets(base=_project.SMALLEST)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    bundle = settings.runs / "first" / "outputs" / "registration"
    data = _project.locked(bundle.parent.parent)["dataset"]["outputs/dataset"]
    for ref in ("models:/quickstart@candidate", "models:/quickstart/1", "first"):
        for form in ("tessera", "transformers"):
            out = tmp_path / re.sub(r"\W", "-", f"{ref} {form}")
            done = _project.tessera(settings, "export", ref, str(out), "--as", form)
            assert (done.returncode, done.stderr) == (0, ""), done.stderr
            said = (out / "README.md").read_text()
            assert "- run: first" in said and f"- hash of the data set: {data}" in said and "| psnr |" in said
            assert bool(re.search(r"^- commit: [0-9a-f]{40}", said, re.MULTILINE))
            assert ("- version: quickstart 1" in said) == ref.startswith("models:/")
        own = tmp_path / re.sub(r"\W", "-", f"{ref} tessera")
        assert np.array_equal(tessera.load(own).sample(4), tessera.load(bundle).sample(4))
        before = artifact.load(bundle / "generator", Generator)
        twin = transformers.AutoModelForCausalLM.from_pretrained(out)
        assert same(from_transformers(twin, before.spec, before.classes), before)


def _copy(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())


def test_the_module_is_light() -> None:
    code = (
        "import sys, flows.export; "
        "assert not {'transformers', 'mlflow', 'prefect'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(exporting.__file__).parent.parent)
