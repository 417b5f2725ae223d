"""Tessera: discrete-token generative models, from raw data to a promoted generator.

A trained model does three things: pictures to codes, codes to pictures, and new pictures.

    import tessera

    model = tessera.load("models:/quickstart@champion")     # or "runs/quickstart-tiny", or a bundle's folder
    codes = model.encode(["a.png", "b.png"])                # [2, L] whole numbers
    images = model.decode(codes)                            # uint8 [2, H, W, C]
    tessera.save_grid(model.sample(16, label="7"), "sevens.png")

The same on a model with random weights, made here:

>>> import tempfile
>>> from pathlib import Path
>>> import numpy as np, torch
>>> from components import artifact, registry
>>> from components.interfaces import Generator, ImageFormat, Tokenizer
>>> from flows.serving import save_bundle
>>> temporary = tempfile.TemporaryDirectory(); folder = Path(temporary.name)
>>> image = ImageFormat(size=8, channels=1)
>>> grid = {"type": "grid", "downsample": 4, "width": 8, "quantizer": {"type": "vq", "codebook_size": 16}}
>>> tokenizer = registry.build(Tokenizer, grid, image)
>>> artifact.save(folder / "tokenizer", Tokenizer, grid, (image,), tokenizer)
>>> small = {"type": "transformer", "depth": 1, "width": 16, "heads": 2}
>>> next_token = {"type": "next_token", "backbone": small, "head": {"type": "categorical"}}
>>> generator = registry.build(Generator, next_token, tokenizer.spec, 2)
>>> artifact.save(folder / "generator", Generator, next_token, (tokenizer.spec, 2), generator)
>>> recipe = {"system": "demo", "sampling": {"type": "ancestral", "guidance": 2.0}}
>>> save_bundle(folder / "demo", folder / "tokenizer", folder / "generator", recipe, ["cat", "dog"], image)

>>> model = load(folder / "demo")
>>> codes = model.encode(np.zeros((3, 32, 24), np.uint8))  # any size: scaled and cut as in training
>>> codes.shape, codes.dtype
((3, 4), dtype('int64'))
>>> model.decode(codes).shape
(3, 8, 8, 1)
>>> images = model.sample(5, label="dog", seed=1)
>>> images.shape, images.dtype
((5, 8, 8, 1), dtype('uint8'))
>>> bool((model.sample(2, label="dog", seed=1) == images[:2]).all())
True
>>> model.sample(1, label="dogg")  # doctest: +ELLIPSIS
Traceback (most recent call last):
    ...
flows.inputs.ServingError: ... has no class 'dogg', did you mean 'dog'? (there are: cat, dog)
>>> temporary.cleanup()
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from flows.serving import Model

__all__ = ["load", "save_grid"]


def load(ref: str | Path, device: str = "cpu") -> Model:
    """The model of a run ("runs/x"), a bundle's folder, or the registry ("models:/name@alias", "models:/name/3")."""
    from flows import serving
    from infra.settings import Settings

    return serving.load(ref, Settings(), device)


def save_grid(images: np.ndarray, path: str | Path, columns: int | None = None) -> None:
    """Pictures uint8 [n, H, W, C] -> one PNG, row by row."""
    from flows import serving

    serving.save_grid(images, path, columns)
