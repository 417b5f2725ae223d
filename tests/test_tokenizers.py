"""What every tokenizer keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from components import artifact, registry
from components.interfaces import ImageFormat, Tokenizer
from components.training.config import Train
from components.training.trainer import train

#: small configurations; a tokenizer that is not here is tested with its defaults
CASES = {
    "grid": [
        {"width": 8, "dim": 4, "quantizer": {"type": "vq", "codebook_size": 16}},
        {"width": 8, "dim": 4, "downsample": 8, "quantizer": {"type": "fsq", "levels": [4, 3]}},
        {"width": 8, "dim": 4, "quantizer": {"type": "grouped_lfq", "groups": 2, "bits": 3}},
    ],
    "vqgan": [
        {
            "base": 32, "multipliers": [1, 1, 1], "blocks": 1, "attention": [2], "latent": 8, "dim": 4,
            "quantizer": {"type": "vq", "codebook_size": 16},
        }
    ],
    "movq": [
        {
            "base": 32, "multipliers": [1, 1, 1], "blocks": 1, "attention": [2], "dim": 4,
            "quantizer": {"type": "vq", "codebook_size": 16},
        }
    ],
    "semantic_vq": [
        {
            "patch": 4, "depth": 1, "width": 32, "heads": 2, "hidden": 64, "positions": 6, "dim": 4, "decoder_depth": 1,
            "quantizer": {"type": "vq", "codebook_size": 16, "assignment": {"type": "cosine"}},
        }
    ],
    "vit_grid": [{"depth": 1, "width": 32, "heads": 2, "dim": 4, "quantizer": {"type": "vq", "codebook_size": 16}}],
    "query": [
        {"count": 6, "depth": 1, "width": 32, "heads": 2, "dim": 4, "quantizer": {"type": "vq", "codebook_size": 16}},
        {
            "count": 6, "depth": 1, "width": 32, "heads": 2, "dim": 4,
            "quantizer": {"type": "rvq", "codebook_size": 16, "stages": 2},
            "change": {"type": "uniform_tail"},
        },
    ],
}  # fmt: skip
CHOICES = [{"type": name, **case} for name in registry.names(Tokenizer) for case in CASES.get(name, [{}])]
FORMATS = [ImageFormat(16, 1), ImageFormat(32, 3)]
every = pytest.mark.parametrize("choice", CHOICES, ids=lambda c: f"{c['type']}-{c.get('quantizer', {}).get('type')}")
formats = pytest.mark.parametrize("image", FORMATS, ids=lambda i: f"{i.size}x{i.channels}")


@pytest.fixture(autouse=True)
def _one_thread():
    """Small networks are slower on several threads, most of all where others compute as well."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(choice: dict, image: ImageFormat) -> Tokenizer:
    torch.manual_seed(0)
    return registry.build(Tokenizer, choice, image)


def pictures(image: ImageFormat, n: int = 5) -> Tensor:
    return torch.rand(n, image.channels, image.size, image.size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@every
@formats
@pytest.mark.parametrize("n", [1, 5, 0])
def test_encode_and_decode(choice, image, n):
    tokenizer = build(choice, image).eval()
    images, spec = pictures(image, n), tokenizer.spec
    tokens = tokenizer.encode(images)
    assert tokens.shape == (n, spec.length)
    assert tokens.dtype == torch.int64
    assert ((tokens >= 0) & (tokens < spec.vocabulary)).all()
    decoded = tokenizer.decode(tokens)
    assert decoded.shape == images.shape
    assert (decoded.abs() <= 1).all()
    assert tokenizer.image == image
    if spec.layout == "grid":
        assert spec.grid[0] * spec.grid[1] == spec.positions


@every
def test_batches_do_not_matter(choice):
    tokenizer = build(choice, FORMATS[0]).eval()
    images = pictures(FORMATS[0], 6)
    tokens = tokenizer.encode(images)
    assert torch.equal(tokens, torch.cat([tokenizer.encode(image[None]) for image in images]))
    one_by_one = torch.cat([tokenizer.decode(row[None]) for row in tokens])
    assert torch.allclose(tokenizer.decode(tokens), one_by_one, atol=1e-5)


@every
def test_every_token_can_be_decoded(choice):
    tokenizer = build(choice, FORMATS[0]).eval()
    spec = tokenizer.spec
    tokens = torch.arange(min(spec.codebook_sizes))[:4096, None].expand(-1, spec.length)
    assert tokenizer.decode(tokens).isfinite().all()


@every
def test_what_is_not_an_image_or_a_token_is_refused(choice):
    tokenizer = build(choice, FORMATS[0]).eval()
    spec = tokenizer.spec
    with pytest.raises(ValueError, match="expected images"):
        tokenizer.encode(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="expected tokens"):
        tokenizer.decode(torch.zeros(2, spec.length + 1, dtype=torch.long))
    with pytest.raises(ValueError, match="not all finite"):
        tokenizer.encode(torch.full((1, 1, 16, 16), torch.nan))
    for bad in (-1, spec.vocabulary):
        with pytest.raises(ValueError, match="tokens must be in"):
            tokenizer.decode(torch.full((1, spec.length), bad))


@every
def test_results_can_be_used_with_autograd(choice):
    tokenizer = build(choice, FORMATS[0]).eval()
    decoded = tokenizer.decode(tokenizer.encode(pictures(FORMATS[0])))
    weight = torch.ones(1, requires_grad=True)
    (decoded * weight).sum().backward()  # an inference tensor could not be saved for this
    assert weight.grad.isfinite().all()


@every
def test_it_learns_and_is_the_same_after_loading(choice, tmp_path):
    image = FORMATS[0]
    rng = torch.Generator().manual_seed(0)
    corners = torch.rand(16, 1, 2, 2, generator=rng) * 2 - 1
    images = torch.nn.functional.interpolate(corners, 16, mode="bilinear", align_corners=True)

    class Batches:
        def batch(self, step: int) -> dict[str, Tensor]:
            return {"images": images}

    class Rows:
        def __init__(self) -> None:
            self.losses: list[float] = []

        def progress(self, done, total, note=""): ...

        def log(self, step, metrics):
            self.losses.append(metrics["loss"])

    tokenizer, rows = build(choice, image), Rows()
    config = Train(steps=30, lr=1e-2, batch_size=16, ema=0.9, log_every=5)
    train(tokenizer, Batches(), config, checkpoints=tmp_path / "c", monitor=rows, seed=0)
    assert rows.losses[-1] < (0.9 if "change" in choice else 0.7) * rows.losses[0]
    artifact.save(tmp_path / "t", Tokenizer, choice, (image,), tokenizer)
    loaded = artifact.load(tmp_path / "t", Tokenizer)
    tokens = tokenizer.encode(images)
    assert torch.equal(loaded.encode(images), tokens)
    assert torch.equal(loaded.decode(tokens), tokenizer.decode(tokens))


def test_a_size_that_does_not_fit_is_refused_by_key():
    with pytest.raises(registry.ComponentError, match="8 does not divide the image size 20") as caught:
        build({"type": "grid", "downsample": 8, "quantizer": {"type": "vq"}}, ImageFormat(20, 1))
    assert caught.value.path == ("downsample",)
