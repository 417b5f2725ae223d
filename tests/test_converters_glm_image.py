"""GLM-Image's tokenizer with random weights: from pictures on the same codes in its classes and our parts, and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from components import registry
from components.converters import glm_image
from components.converters._tensors import ConversionError
from components.initial import start_from
from components.interfaces import ImageFormat, Tokenizer

transformers = pytest.importorskip("transformers")

VISION = {
    "depth": 2, "hidden_size": 64, "num_heads": 4, "intermediate_size": 96, "image_size": 32, "patch_size": 4,
}  # fmt: skip
VQ = {"embed_dim": 16, "num_embeddings": 64, "latent_channels": 64}
TEXT = {
    "vocab_size": 80, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "pad_token_id": 0, "vision_vocab_size": 66, "eos_token_id": 65,
}  # fmt: skip


def configured(vision: dict | None = None, vq: dict | None = None) -> object:
    return transformers.GlmImageConfig(
        text_config=dict(TEXT), vision_config=VISION | (vision or {}), vq_config=VQ | (vq or {})
    )


@torch.no_grad()
def model(**vision: object) -> tuple[torch.nn.Module, object]:
    """The whole model; of its tokenizer, norms scale by about one and no bias is zero."""
    from transformers.models.glm_image.modeling_glm_image import GlmImageModel

    torch.manual_seed(0)
    config = configured(vision)
    made = GlmImageModel(config).eval()
    for part in (made.visual, made.vqmodel):
        for name, parameter in part.named_parameters():
            scales = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(1 if scales else 0, parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2)
    made.visual.embeddings.position_embedding.weight.normal_()
    return made, config


def tensors_of(made: torch.nn.Module) -> dict[str, Tensor]:
    return {n: t for n, t in made.state_dict().items() if n.startswith(("visual.", "vqmodel."))}


def pictures(n: int, size: int, seed: int = 1) -> Tensor:
    """uint8 [n, 3, size, size]"""
    return torch.randint(256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def for_us(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


@torch.no_grad()
def features_of(made: torch.nn.Module, images: Tensor) -> list[Tensor]:
    """Their way from pictures to features [W, rows, columns]: their processor's numbers, patches one after another."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    values = images.numpy().astype(np.float32) / 255
    mean, deviation = (np.array(v, np.float32)[:, None, None] for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    patch, (n, _, size, _) = VISION["patch_size"], images.shape
    side = size // patch
    cut = ((values - mean) / deviation).reshape(n, 3, side, patch, side, patch).transpose(0, 2, 4, 1, 3, 5)
    patches = torch.from_numpy(cut.reshape(n * side * side, -1).copy())
    return made.get_image_features(patches, torch.tensor([[1, side, side]] * n)).pooler_output


@torch.no_grad()
def theirs_of(made: torch.nn.Module, images: Tensor) -> Tensor:
    return made.get_image_tokens(features_of(made, images)).view(len(images), -1)


class TestTheSame:
    @pytest.mark.parametrize("size", [16, 32, 40], ids=["squeezed", "as learned", "stretched"])
    @pytest.mark.parametrize("n", [1, 3])
    def test_codes(self, n: int, size: int) -> None:
        theirs, config = model()
        section, image = glm_image.glm_image_section(config, size)
        assert image == ImageFormat(size, 3)
        ours = glm_image.from_tensors(section, image, tensors_of(theirs))
        for seed in range(3):
            codes = theirs_of(theirs, pictures(n, size, seed))
            assert codes.unique().numel() > 8
            assert torch.equal(ours.encode(for_us(pictures(n, size, seed))), codes)

    @pytest.mark.parametrize("gelu", ["gelu", "gelu_pytorch_tanh"])
    def test_latents_and_quantized_latents(self, gelu: str) -> None:
        theirs, config = model(hidden_act=gelu)
        ours = glm_image.from_tensors(*glm_image.glm_image_section(config, 40), tensors_of(theirs))
        images = pictures(2, 40)
        assert torch.equal(ours.encode(for_us(images)), theirs_of(theirs, images))
        with torch.no_grad():
            features = torch.stack(features_of(theirs, images))
            latents, quantized = ours.latents(for_us(images)), theirs.vqmodel.encode(features)
            wanted = theirs.vqmodel.quant_conv(features), quantized.quantized_last_hidden_state
            for found, expected in zip((latents, ours.quantizer(latents).latents), wanted, strict=True):
                torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)

    def test_back_it_is_the_same_to_the_last_bit(self) -> None:
        theirs, config = model()
        ours = glm_image.from_tensors(*glm_image.glm_image_section(config, 32), tensors_of(theirs))
        back, before = glm_image.to_tensors(ours), tensors_of(theirs)
        assert back.keys() == before.keys()
        assert all(torch.equal(back[name], before[name]) for name in before)
        theirs.load_state_dict(back, strict=False)


def test_nothing_is_drawn_without_a_decoder_of_its_own() -> None:
    theirs, config = model()
    section, image = glm_image.glm_image_section(config, 32)
    ours = glm_image.from_tensors(section, image, tensors_of(theirs))
    with pytest.raises(ConversionError, match="have no decoder"):
        ours.decode(ours.encode(for_us(pictures(1, 32))))


def test_a_folder_is_a_start_for_a_tokenizer_with_a_decoder_to_train(tmp_path: Path) -> None:
    theirs, config = model()
    section, image = glm_image.glm_image_section(config, 32)
    save_file({f"model.{n}": t.clone() for n, t in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    made = registry.build(Tokenizer, section, image).eval()
    section = registry.resolve(Tokenizer, section).dump()
    start_from(made, section, Tokenizer, tmp_path)
    tokens = made.encode(for_us(pictures(2, 32)))
    assert torch.equal(tokens, theirs_of(theirs, pictures(2, 32)))
    assert made.decode(tokens).shape == (2, 3, 32, 32)
    euclidean = section["quantizer"] | {"assignment": {"type": "euclidean"}}
    for changes, message in (
        ({"heads": 2}, "heads: expected 4 as there, got 2"),
        ({"gelu": "tanh"}, "gelu: expected none as there, got tanh"),
        ({"quantizer": euclidean}, "quantizer.assignment: expected 'cosine', got 'euclidean'"),
        ({"type": "grid"}, "is a 'semantic_vq' with a 'vq'; the section has 'grid'"),
    ):
        with pytest.raises(ConversionError, match=message):
            start_from(made, section | changes, Tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("visual.blocks.1.attn.qkv.bias"),
            r"'visual.blocks.1.attn.qkv.bias': expected \(192,\), found nothing",
        ),
        (
            lambda tensors: tensors.update({"visual.merger.weight": torch.zeros(2)}),
            r"'visual.merger.weight': expected nothing, found \(2,\)",
        ),
        (
            lambda tensors: tensors.update({"vqmodel.quant_conv.weight": torch.zeros(16, 64)}),
            r"'vqmodel.quant_conv.weight': expected \(16, 64, 1, 1\), found \(16, 64\)",
        ),
        (
            lambda tensors: tensors.update({"visual.embeddings.position_embedding.weight": torch.zeros(63, 64)}),
            r"'visual.embeddings.position_embedding.weight': expected \(64, 64\), found \(63, 64\)",
        ),
    ],
    ids=["missing", "left over", "another shape", "truncated"],
)
def test_tensors_that_do_not_fit_are_named(change, message: str) -> None:
    theirs, config = model()
    tensors = tensors_of(theirs)
    change(tensors)
    with pytest.raises(ConversionError, match=message):
        glm_image.from_tensors(*glm_image.glm_image_section(config, 32), tensors)


@pytest.mark.parametrize(
    ("vision", "vq", "message"),
    [
        ({"in_channels": 4}, {}, r"vision_config.in_channels: expected 1 or 3, got 4"),
        ({"hidden_act": "silu"}, {}, r"hidden_act: expected 'gelu' or 'gelu_pytorch_tanh', got 'silu'"),
        ({"image_size": [32, 16]}, {}, r"vision_config.image_size: expected one number, got \[32, 16\]"),
        ({"attention_bias": False}, {}, r"vision_config.attention_bias: expected True, got False"),
        ({"layer_norm_eps": 1e-5}, {}, r"vision_config.layer_norm_eps: expected 1e-06, got 1e-05"),
        ({"spatial_merge_size": 2}, {}, r"vision_config.spatial_merge_size: expected 1, got 2"),
        ({}, {"latent_channels": 32}, r"vq_config.latent_channels: expected 64, got 32"),
    ],
)
def test_configurations_that_cannot_be_are_refused(vision: dict, vq: dict, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        glm_image.glm_image_section(configured(vision, vq), 32)


@pytest.mark.parametrize(
    ("changes", "message", "key"),
    [
        ({"mean": [0.5, 0.5]}, "expected 1 number or 3, got 2", "mean"),
        ({"deviation": [0.5] * 4}, "expected 1 number or 3, got 4", "deviation"),
        ({"patch": 5}, "5 does not divide the image size 32", "patch"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_key(changes: dict, message: str, key: str) -> None:
    section, image = glm_image.glm_image_section(configured(), 32)
    with pytest.raises(registry.ComponentError, match=message) as caught:
        registry.build(Tokenizer, section | changes, image)
    assert caught.value.path == (key,)
