"""A trained model in use: bundles, references, pictures in every form, labels, and MLflow's loader."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tessera
from components import artifact, registry, yamlio
from components.data.images import fit
from components.interfaces import Generator, ImageFormat, Tokenizer
from flows import pyfunc_model, registration, serving
from flows.context import StageContext
from flows.inputs import ServingError, pictures

GRID = {"type": "grid", "downsample": 4, "width": 8, "quantizer": {"type": "vq", "codebook_size": 16}}
BACKBONE = {"type": "transformer", "depth": 1, "width": 16, "heads": 2}
NEXT = {"type": "next_token", "backbone": BACKBONE, "head": {"type": "categorical"}}
CLASSES, TARGET = ["0", "1", "A"], ["0", "1"]
RECIPE = {
    "system": "demo", "seed": 0, "dataset": {"source": {"type": "glyphs"}, "target": {"type": "digits"}}, "tokenizer": GRID,
    "generator": NEXT, "posttraining": None, "sampling": {"type": "ancestral", "guidance": 2.0},
    "evaluation": {"metrics": [{"type": "psnr"}]},
}  # fmt: skip


def make_run(run: Path) -> Path:
    """A run whose stages up to evaluation are there, with random weights."""
    torch.manual_seed(0)
    image = ImageFormat(8, 1)
    outputs = run / "outputs"
    tokenizer = registry.build(Tokenizer, GRID, image)
    generator = registry.build(Generator, NEXT, tokenizer.spec, len(CLASSES))
    for parameter in generator.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    artifact.save(outputs / "tokenizer", Tokenizer, GRID, (image,), tokenizer)
    artifact.save(outputs / "generator", Generator, NEXT, (tokenizer.spec, len(CLASSES)), generator)
    (outputs / "tokenizer" / "figures").mkdir()
    (outputs / "tokenizer" / "figures" / "reconstructions.png").write_bytes(b"a picture")
    about = {
        "image": asdict(image),
        "classes": CLASSES,
        "target_classes": TARGET,
        "splits": {"train": {"rows": 5, "shards": 1}},
    }
    for stage, name, value in (
        ("dataset", "dataset.json", about),
        ("evaluation", "metrics.json", {"psnr": 21.5, "psnr.low": 20.0}),
    ):
        (outputs / stage).mkdir()
        (outputs / stage / name).write_text(json.dumps(value))
    (run / "recipe.yaml").write_text(yamlio.dump(RECIPE))
    return run


def register(run: Path, output: Path, recipe: dict = RECIPE) -> dict[str, float]:
    output.mkdir(parents=True)
    return registration.body(StageContext(run, "registration", recipe, output, output.parent))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "runs" / "demo")


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "demo"
    register(run, folder)
    return folder


@pytest.fixture(scope="module")
def model(bundle: Path) -> serving.Model:
    return serving.load(bundle)


class TestModel:
    def test_encode_and_decode_are_the_tokenizer(self, model: serving.Model) -> None:
        images = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), np.uint8)  # more than one batch
        codes = model.encode(images)
        floats = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        assert np.array_equal(codes, model.tokenizer.encode(floats).numpy())
        decoded = model.decode(codes)
        assert (decoded.shape, decoded.dtype) == ((300, 8, 8, 1), np.uint8)
        exact = (model.tokenizer.decode(torch.from_numpy(codes)).permute(0, 2, 3, 1).clamp(-1, 1) + 1) * 127.5
        assert np.abs(decoded - exact.numpy()).max() <= 0.501

    def test_a_seed_gives_the_same_pictures_and_more_of_them(self, model: serving.Model) -> None:
        few, many = model.sample(3, "A", seed=4), model.sample(300, "A", seed=4)
        assert np.array_equal(few, many[:3])
        assert not np.array_equal(few, model.sample(3, "A", seed=5))
        assert model.sample(0).shape == (0, 8, 8, 1)

    def test_without_a_label_the_target_classes_take_turns(self, model: serving.Model) -> None:
        assert np.array_equal(model.sample(5, seed=1), model.sample(5, ["0", "1", "0", "1", "0"], seed=1))
        assert not np.array_equal(model.sample(5, seed=1), model.sample(5, "A", seed=1))

    def test_a_model_without_classes_asks_for_the_null_class(self, model: serving.Model) -> None:
        spec = model.tokenizer.spec
        plain = serving.Model(model.tokenizer, registry.build(Generator, NEXT, spec, 0))
        assert plain.sample(2).shape == (2, 8, 8, 1)
        with pytest.raises(ServingError, match="trained without labels"):
            plain.sample(1, "cat")

    def test_arguments_take_the_place_of_the_recipes_sampling(self, model: serving.Model, bundle: Path) -> None:
        as_recipe = model.sample(20, "0")
        assert np.array_equal(as_recipe, model.sample(20, "0", guidance=2.0))
        assert not np.array_equal(as_recipe, model.sample(20, "0", guidance=1.0))
        cold = model.sample(20, "0", temperature=0)
        assert (cold == cold[0]).all()

    @pytest.mark.parametrize(
        ("codes", "message"),
        [(np.zeros((2, 3), int), r"\[n, 4\]"), (np.zeros((2, 4)), "whole numbers"), (np.full((1, 4), 16), "0 to 15"),
         (np.full((1, 4), -1), "another model")],
    )  # fmt: skip
    def test_wrong_codes_are_explained(self, model: serving.Model, codes: np.ndarray, message: str) -> None:
        with pytest.raises(ServingError, match=message):
            model.decode(codes)

    def test_wrong_labels_are_explained(self, model: serving.Model) -> None:
        with pytest.raises(ServingError, match=r"no class 'a'.*there are: 0, 1, A"):
            model.sample(1, "a")
        with pytest.raises(ServingError, match="2 pictures need 2 labels"):
            model.sample(2, ["0"])

    def test_a_grid_is_a_picture(self, model: serving.Model, tmp_path: Path) -> None:
        tessera.save_grid(model.sample(7), tmp_path / "new" / "grid.png")
        with Image.open(tmp_path / "new" / "grid.png") as picture:
            assert picture.width >= 3 * 64
        with pytest.raises(ServingError, match="no picture"):
            tessera.save_grid(model.sample(0), tmp_path / "none.png")


class TestPictures:
    gray, color = ImageFormat(8, 1), ImageFormat(8, 3)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 20, 14, 3), np.uint8)

    def test_every_form_gives_the_same(self, tmp_path: Path) -> None:
        pils = [Image.fromarray(p) for p in self.pixels]
        paths = [tmp_path / f"{i}.png" for i in range(2)]
        for pil, path in zip(pils, paths, strict=True):
            pil.save(path)
        for image in (self.gray, self.color):
            expected = np.stack([fit(pil, image) for pil in pils])
            assert expected.shape == (2, image.channels, 8, 8)
            forms = (
                self.pixels,
                self.pixels.transpose(0, 3, 1, 2),
                pils,
                paths,
                [str(p) for p in paths],
                list(self.pixels),
            )
            for form in (*forms, [pils[0], paths[1]]):
                assert np.array_equal(pictures(form, image), expected)
            for one in (self.pixels[0], pils[0], paths[0], str(paths[0])):
                assert np.array_equal(pictures(one, image), expected[:1])

    def test_gray_arrays(self) -> None:
        gray = self.pixels[..., 0]
        expected = pictures(gray[..., None], self.gray)
        assert np.array_equal(pictures(gray, self.gray), expected)
        assert np.array_equal(pictures(gray[0], self.gray), expected[:1])

    def test_the_right_size_passes_untouched(self) -> None:
        exact = np.random.default_rng(2).integers(0, 256, (3, 8, 8, 3), np.uint8)
        assert np.array_equal(pictures(exact, self.color), exact.transpose(0, 3, 1, 2))

    def test_nothing_gives_nothing(self) -> None:
        for nothing in ([], np.empty((0, 8, 8, 1), np.uint8), np.empty((0, 20, 20, 1), np.uint8)):
            assert pictures(nothing, self.gray).shape == (0, 1, 8, 8)

    def test_what_is_no_picture_is_explained(self, tmp_path: Path) -> None:
        (tmp_path / "text.png").write_text("hello")
        for wrong, message in (
            (np.zeros((8, 8, 1)), "uint8"), (np.zeros((2, 8, 8, 5), np.uint8), "1, 3 or 4 channels"),
            (np.zeros(8, np.uint8), "expected"), (np.zeros((3, 8, 8), np.uint8), "one color picture or three gray"),
            (tmp_path / "none.png", "no picture at"), ([tmp_path / "text.png"], "not a picture"), ([7], "got int"),
        ):  # fmt: skip
            with pytest.raises(ServingError, match=message):
                pictures(wrong, self.color)


class TestReferences:
    def test_a_bundle_stands_alone(self, bundle: Path, model: serving.Model, tmp_path: Path) -> None:
        moved = tmp_path / "elsewhere"
        bundle_files = {str(p.relative_to(bundle)) for p in bundle.rglob("*") if p.is_file()}
        assert bundle_files == {
            "README.md", "bundle.json", "metrics.json", "recipe.yaml", "tokenizer/config.json", "tokenizer/model.safetensors",
            "generator/config.json", "generator/model.safetensors",
        }  # fmt: skip
        for name in bundle_files:
            (moved / name).parent.mkdir(parents=True, exist_ok=True)
            (moved / name).write_bytes((bundle / name).read_bytes())
        assert np.array_equal(tessera.load(moved).sample(4), model.sample(4))

    def test_a_run_is_loaded_with_and_without_its_bundle(
        self, tmp_path: Path, model: serving.Model, monkeypatch
    ) -> None:
        run = make_run(tmp_path / "runs" / "demo")
        assert np.array_equal(tessera.load(run).sample(4), model.sample(4))
        register(run, run / "outputs" / "registration")
        assert np.array_equal(tessera.load(run).sample(4), model.sample(4))
        monkeypatch.setenv("TESSERA_PROJECT", str(tmp_path))
        assert np.array_equal(tessera.load("runs/demo").sample(4), model.sample(4))  # from any folder of the project
        assert np.array_equal(tessera.load("demo").sample(4), model.sample(4))

    def test_the_posttrained_generator_comes_first(self, tmp_path: Path, model: serving.Model) -> None:
        run = make_run(tmp_path / "demo")
        better = registry.build(Generator, NEXT, model.tokenizer.spec, len(CLASSES))
        artifact.save(run / "outputs" / "posttraining", Generator, NEXT, (better.spec, len(CLASSES)), better)
        expected = better.state_dict()["head.project.weight"]
        assert torch.equal(serving.load(run).generator.state_dict()["head.project.weight"], expected)
        register(run, tmp_path / "bundle", RECIPE | {"posttraining": {"type": "grpo"}})
        assert torch.equal(serving.load(tmp_path / "bundle").generator.state_dict()["head.project.weight"], expected)

    def test_a_tokenizer_alone_encodes_and_says_why_it_does_not_sample(self, run: Path, tmp_path: Path) -> None:
        alone = serving.load(run / "outputs" / "tokenizer")
        recipe = RECIPE | {"generator": None, "sampling": None, "evaluation": None}
        register(run, tmp_path / "bundle", recipe)
        for model in (alone, serving.load(tmp_path / "bundle")):
            assert model.encode(np.zeros((2, 8, 8, 1), np.uint8)).shape == (2, 4)
            with pytest.raises(ServingError, match="tokenizer only"):
                model.sample(1)

    def test_a_wrong_reference_is_explained(self, tmp_path: Path, bundle: Path) -> None:
        with pytest.raises(ServingError, match="runs/NAME"):
            tessera.load("no/such/run")
        with pytest.raises(ServingError, match="holds no model"):
            tessera.load(tmp_path)
        for path in ("bundle.json", "recipe.yaml"):
            (tmp_path / path).write_bytes((bundle / path).read_bytes())
        about = json.loads((tmp_path / "bundle.json").read_text())
        (tmp_path / "bundle.json").write_text(json.dumps(about | {"format": 99}))
        with pytest.raises(ServingError, match="format 99"):
            tessera.load(tmp_path)


class TestRegistration:
    def test_metrics_are_those_of_the_bundle(self, run: Path, tmp_path: Path) -> None:
        metrics = register(run, tmp_path / "bundle")
        model = serving.load(tmp_path / "bundle")
        tensors = [*model.tokenizer.state_dict().values(), *model.generator.state_dict().values()]
        assert metrics["parameters"] == sum(tensor.numel() for tensor in tensors)
        files = [path for path in (tmp_path / "bundle").rglob("*") if path.is_file()]
        assert metrics["bundle_bytes"] == sum(path.stat().st_size for path in files)

    def test_the_card_says_what_data_and_how_well(self, bundle: Path) -> None:
        card = (bundle / "README.md").read_text()
        for text in ("# demo", "8 x 8", "`next_token`", "`glyphs`, `digits`", "0, 1.", "| psnr | 21.5 |", "Apache-2.0"):
            assert text in card
        assert "psnr.low" not in card


class TestPyfunc:
    def test_rows_become_pictures(self, bundle: Path, model: serving.Model) -> None:
        pd = pytest.importorskip("pandas")
        predictor = pyfunc_model._load_pyfunc(str(bundle))
        drawn = predictor.predict(pd.DataFrame({"label": ["A", None], "n": [2, 3]}), {"seed": 7})
        assert drawn["label"].tolist()[:2] == ["A", "A"]
        assert len(drawn) == 5
        assert drawn["image"][0] == model.sample(2, "A", seed=7)[0].tolist()
        assert len(predictor.predict(pd.DataFrame({"label": ["0", "1"]}))) == 2

    @pytest.mark.slow
    def test_mlflow_saves_and_loads_it_without_a_pickle(
        self, bundle: Path, model: serving.Model, tmp_path: Path
    ) -> None:
        pyfunc = pytest.importorskip("mlflow.pyfunc")
        pd = pytest.importorskip("pandas")
        pyfunc.save_model(tmp_path / "m", loader_module="flows.pyfunc_model", data_path=str(bundle))
        assert not list((tmp_path / "m").rglob("*.pkl"))
        drawn = pyfunc.load_model(str(tmp_path / "m")).predict(pd.DataFrame({"label": ["A"], "n": [2]}))
        assert drawn["image"][0] == model.sample(2, "A")[0].tolist()


def test_the_face_is_light_and_the_platform_stays_out() -> None:
    code = (
        "import sys, tessera; assert 'torch' not in sys.modules; import flows.serving, flows.pyfunc_model; "
        "heavy = {'prefect', 'ray', 'mlflow', 'dvc', 'torch', 'pandas'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(serving.__file__).parent.parent)


def test_the_examples_of_the_face_hold() -> None:
    assert doctest.testmod(tessera).failed == 0
