"""A trained model in use: pictures to codes, codes to pictures, samples. Needs the light core only, no platform.

A *bundle* is a folder that says everything a model is:

    bundle.json     format, system, image, classes, target_classes
    recipe.yaml     the resolved recipe; its `sampling` section is how samples are drawn by default
    tokenizer/      components.artifact
    generator/      components.artifact; absent in a model that is a tokenizer only

A run's folder is read in the same way: its bundle where it has registered one, else what its stages have made so far.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components import yamlio
from components.registry import nearest
from flows.inputs import ServingError, pictures
from flows.outputs import files
from infra.storage import write_bytes_atomic, write_json_atomic

if TYPE_CHECKING:
    import torch

    from components.interfaces import Generator, ImageFormat, Sampler, Tokenizer
    from flows.inputs import Pictures
    from infra.settings import Settings

FORMAT = 1
_BATCH = 256  # rows at a time: more is not faster on a CPU and takes more memory


class Model:
    """A tokenizer, and a generator where there is one, ready to use. Made by `load`.

    `classes` are the names that `sample` takes as labels; `target_classes` those it draws when none is asked for."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        generator: Generator | None = None,
        *,
        sampling: dict[str, Any] | None = None,
        classes: Sequence[str] = (),
        target_classes: Sequence[str] = (),
        name: str = "model",
    ) -> None:
        self.tokenizer, self.generator, self.name = tokenizer.eval(), generator and generator.eval(), name
        self.sampling = sampling or {"type": "ancestral"}
        self.classes, self.target_classes = list(classes), list(target_classes or classes)

    @property
    def image(self) -> ImageFormat:
        return self.tokenizer.image

    @property
    def device(self) -> torch.device:
        """Where the tokenizer's weights are; the generator's are in the same place."""
        return next(self.tokenizer.parameters()).device

    def encode(self, images: Pictures) -> np.ndarray:
        """Pictures -> codes [n, L] int64.

        Takes uint8 arrays ([n, H, W, C], [n, C, H, W], gray [n, H, W], or one picture [H, W, C], [H, W]), PIL pictures,
        paths, or a list of such. Any size: the shorter side is scaled, the centre cut out, as in training."""
        import torch

        from components.data.batches import to_float

        pixels = pictures(images, self.image)
        codes = [np.empty((0, self.tokenizer.spec.length), np.int64)]
        with torch.inference_mode():
            for start in range(0, len(pixels), _BATCH):
                part = to_float(pixels[start : start + _BATCH]).to(self.device)
                codes.append(self.tokenizer.encode(part).cpu().numpy().astype(np.int64))
        return np.concatenate(codes)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes [n, L] -> pictures uint8 [n, H, W, C]. Raises ServingError for codes that no picture has here."""
        import torch

        from components.data.batches import to_uint8

        codes, spec = np.asarray(codes), self.tokenizer.spec
        if codes.ndim != 2 or codes.shape[1] != spec.length or not np.issubdtype(codes.dtype, np.integer):
            raise ServingError(
                f"{self.name} decodes whole numbers [n, {spec.length}], got {codes.dtype} of shape {list(codes.shape)}"
            )
        if codes.size and not 0 <= codes.min() <= codes.max() < spec.vocabulary:
            raise ServingError(
                f"{self.name} has codes from 0 to {spec.vocabulary - 1}, got {codes.min()} to {codes.max()}; "
                "were they made by another model?"
            )
        images = [np.empty((0, self.image.channels, self.image.size, self.image.size), np.uint8)]
        with torch.inference_mode():
            for start in range(0, len(codes), _BATCH):
                part = torch.from_numpy(codes[start : start + _BATCH].astype(np.int64)).to(self.device)
                images.append(to_uint8(self.tokenizer.decode(part)))
        return np.concatenate(images).transpose(0, 2, 3, 1)

    def sample(
        self,
        n: int,
        label: str | Sequence[str] | None = None,
        seed: int = 0,
        *,
        temperature: float | None = None,
        guidance: float | None = None,
    ) -> np.ndarray:
        """Draws `n` pictures, uint8 [n, H, W, C].

        `label` is a class, a list of n classes, or None: the target classes in turn. `temperature` and `guidance` take
        the place of the model's own. The same seed gives the same pictures, and more of them for a larger `n` (CPU)."""
        import torch

        if n < 0:
            raise ServingError(f"{n} pictures cannot be drawn")
        if self.generator is None:
            raise ServingError(f"{self.name} is a tokenizer only: it encodes and decodes, but cannot sample")
        sampler = self._sampler(temperature, guidance)
        labels = torch.tensor(self._labels(n, label), dtype=torch.int64, device=self.device)
        rng = torch.Generator(self.device).manual_seed(seed)
        parts = [sampler.sample(self.generator, part, rng).cpu().numpy() for part in labels.split(_BATCH)] if n else []
        return self.decode(np.concatenate([np.empty((0, self.tokenizer.spec.length), np.int64), *parts]))

    def _sampler(self, temperature: float | None, guidance: float | None) -> Sampler:
        from components import registry
        from components.interfaces import Sampler

        asked = {"temperature": temperature, "guidance": guidance}
        return registry.build(Sampler, self.sampling | {k: v for k, v in asked.items() if v is not None})

    def _labels(self, n: int, label: str | Sequence[str] | None) -> list[int]:
        if label is None:
            asked = [self.classes.index(name) for name in self.target_classes] or [
                len(self.classes)
            ]  # else the null class
            return [asked[i % len(asked)] for i in range(n)]
        names = [label] * n if isinstance(label, str) else list(label)
        if len(names) != n:
            raise ServingError(f"{n} pictures need {n} labels, got {len(names)}")
        for name in names:
            if name not in self.classes:
                known = ", ".join(self.classes) or "none: it was trained without labels"
                hint = nearest(name, self.classes)
                raise ServingError(f"{self.name} has no class '{name}'{hint} (there are: {known})")
        return [self.classes.index(name) for name in names]


def load(ref: str | Path, settings: Settings | None = None, device: str = "cpu") -> Model:
    """The folder of a run, a bundle or a tokenizer, `models:/name@alias` or `models:/name/version` -> Model."""
    if str(ref).startswith("models:/"):
        from infra import registry
        from infra.settings import Settings

        return load_folder(Path(registry.download(str(ref), settings or Settings())), device, str(ref))
    folder = Path(ref)
    if not folder.is_dir() and settings is not None:
        folder = next((p for p in (settings.project / ref, settings.runs / ref) if p.is_dir()), folder)
    if not folder.is_dir():
        raise ServingError(f"there is no model at '{ref}': expected runs/NAME, a bundle's folder or models:/NAME@ALIAS")
    return load_folder(folder, device, str(ref))


def load_folder(folder: Path, device: str = "cpu", name: str | None = None) -> Model:
    """The model in a folder: a bundle, a run, or a tokenizer alone."""
    from components import artifact
    from components.interfaces import Generator, Tokenizer

    name, outputs = name or str(folder), folder / "outputs"
    if (outputs / "registration" / "bundle.json").is_file():
        return load_folder(outputs / "registration", device, name)
    if (folder / "bundle.json").is_file():
        about, recipe = json.loads((folder / "bundle.json").read_text()), yamlio.load(folder / "recipe.yaml")
        if about["format"] > FORMAT:
            raise ServingError(f"{name}: format {about['format']} is newer than this version reads ({FORMAT}); upgrade")
        tokenizer, generators = folder / "tokenizer", [folder / "generator"]
    elif (outputs / "tokenizer" / "config.json").is_file():
        about = json.loads(files(folder, "dataset").path("dataset.json").read_text())
        recipe = yamlio.load(folder / "recipe.yaml")
        tokenizer, generators = outputs / "tokenizer", [outputs / "posttraining", outputs / "generator"]
    elif (folder / "config.json").is_file():
        about, recipe, tokenizer, generators = {}, {}, folder, []
    else:
        raise ServingError(f"{name} holds no model: neither a bundle (bundle.json) nor a run with a trained tokenizer")
    found = next((path for path in generators if (path / "config.json").is_file()), None)
    return Model(
        artifact.load(tokenizer, Tokenizer).to(device),
        artifact.load(found, Generator).to(device) if found else None,
        sampling=recipe.get("sampling"),
        classes=about.get("classes", ()),
        target_classes=about.get("target_classes", ()),
        name=name,
    )


def save_bundle(
    folder: Path,
    tokenizer: Path,
    generator: Path | None,
    recipe: dict[str, Any],
    classes: Sequence[str],
    image: ImageFormat,
    *,
    target_classes: Sequence[str] = (),
) -> None:
    """Writes a bundle into `folder` from the artifacts in `tokenizer` and `generator`; bundle.json comes last, so that
    a folder that has one is complete."""
    for source, name in ((tokenizer, "tokenizer"), (generator, "generator")):
        if source is not None:
            (folder / name).mkdir(parents=True, exist_ok=True)
            for file in ("config.json", "model.safetensors"):  # no figures, no tables
                shutil.copyfile(source / file, folder / name / file)
    write_bytes_atomic(folder / "recipe.yaml", yamlio.dump(recipe).encode())
    about = {
        "format": FORMAT,
        "system": recipe["system"],
        "image": asdict(image),
        "classes": list(classes),
        "target_classes": list(target_classes or classes),
    }
    write_json_atomic(folder / "bundle.json", about)


def save_grid(images: np.ndarray, path: str | Path, columns: int | None = None) -> None:
    """Pictures uint8 [n, H, W, C] -> one PNG, row by row; by default about as wide as high."""
    from components.data.images import grid

    if not len(images):
        raise ServingError("there is no picture to save")
    columns = columns or math.ceil(math.sqrt(len(images)))
    planes = images.transpose(0, 3, 1, 2)
    scale = max(1, 64 // planes.shape[-1])  # small pictures are enlarged by whole factors
    write_bytes_atomic(Path(path), grid([planes[i : i + columns] for i in range(0, len(planes), columns)], scale=scale))
