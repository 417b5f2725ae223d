"""Emu3's VQ model with random weights: the same codes and pictures in its class and in our parts, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from components import registry
from components.converters import emu3
from components.converters._tensors import ConversionError
from components.initial import start_from
from components.interfaces import ImageFormat, Tokenizer

transformers = pytest.importorskip("transformers")

SMALL = {
    "base_channels": 32, "channel_multiplier": [1, 2, 2], "num_res_blocks": 1, "latent_channels": 4, "embed_dim": 4,
    "codebook_size": 64, "hidden_size": 64, "attn_resolutions": [2], "temporal_downsample_factor": 4,
}  # fmt: skip
VARIANTS = [{}, {"temporal_downsample_factor": 1}, {"attn_resolutions": [1, 2], "temporal_downsample_factor": 2}]
variants = pytest.mark.parametrize("changes", VARIANTS, ids=["4 frames", "1 frame", "2 frames"])


@torch.no_grad()
def model(**changes: object) -> tuple[torch.nn.Module, object]:
    """Norms that scale by about one, no bias that is zero; a codebook as wide as the latents, so that codes differ from
    place to place; pictures of a brightness that pictures have."""
    from transformers.models.emu3.modeling_emu3 import Emu3VQVAE

    torch.manual_seed(0)
    config = transformers.Emu3VQVAEConfig(**SMALL | changes)
    made = Emu3VQVAE(config)
    for name, parameter in made.named_parameters():
        scales = name.endswith("conv_y.bias") or (parameter.ndim == 1 and name.endswith("weight"))
        deviation = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.normal_(1 if scales else 0, deviation / 4 if "conv_y" in name else deviation)
    for name, buffer in made.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    frames = pictures(8)[:, None].expand(-1, config.temporal_downsample_factor, -1, -1, -1)
    latents = made.eval().quant_conv(made.encoder(frames).transpose(1, 2)).transpose(0, 1).flatten(1)
    made.quantize.embedding.weight.normal_().mul_(latents.std(1)).add_(latents.mean(1))
    drawn = made.decode(torch.randint(64, (8, 8, 8)))
    made.decoder.conv_out.weight.div_(4 * drawn.std())
    made.decoder.conv_out.bias.zero_()
    return made, config


def pictures(n: int, seed: int = 1) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def theirs_of(made: torch.nn.Module, images: Tensor) -> Tensor:
    sizes = torch.tensor([list(images.shape[2:])] * len(images))
    return torch.stack(list(made.encode(images, sizes).image_tokens)).flatten(1)


@variants
class TestTheSame:
    @pytest.fixture(autouse=True)
    def _no_gradients(self):
        with torch.no_grad():
            yield

    @pytest.mark.parametrize("n", [1, 3])
    def test_codes_and_reconstructions(self, changes: dict, n: int) -> None:
        theirs, config = model(**changes)
        section, image = emu3.emu3_section(config, 32)
        assert image == ImageFormat(32, 3)
        ours = emu3.from_tensors(section, image, theirs.state_dict())
        for seed in range(3):
            codes = theirs_of(theirs, pictures(n, seed))
            assert codes.unique().numel() > 8
            assert torch.equal(ours.encode(pictures(n, seed)), codes)
            drawn = theirs.decode(codes.view(n, 8, 8))
            assert drawn.std() > 0.1
            torch.testing.assert_close(ours.decode(codes), drawn.clamp(-1, 1), atol=1e-5, rtol=1e-5)

    def test_in_double_precision_the_pictures_are_the_same_to_ten_digits(self, changes: dict) -> None:
        theirs, config = model(**changes)
        ours = emu3.from_tensors(*emu3.emu3_section(config, 32), theirs.state_dict()).double()
        codes = torch.randint(64, (2, 64))
        drawn = theirs.double().decode(codes.view(2, 8, 8))
        torch.testing.assert_close(ours.decode(codes), drawn.clamp(-1, 1), atol=1e-10, rtol=1e-10)

    def test_back_it_is_the_same_to_the_last_bit(self, changes: dict) -> None:
        theirs, config = model(**changes)
        ours = emu3.from_tensors(*emu3.emu3_section(config, 32), theirs.state_dict())
        back, before = emu3.to_tensors(ours), theirs.state_dict()
        assert back.keys() == before.keys()
        assert all(torch.equal(back[name], before[name]) for name in before)
        theirs.load_state_dict(back)


def test_statistics_of_norms_stay_in_training_and_all_that_pictures_use_learns() -> None:
    theirs, config = model()
    ours = emu3.from_tensors(*emu3.emu3_section(config, 32), theirs.state_dict()).train()
    ours({"images": pictures(2)})["loss"].backward()
    after = emu3.to_tensors(ours)
    assert all(torch.equal(after[name], tensor) for name, tensor in theirs.state_dict().items())
    assert all(parameter.grad is not None for parameter in ours.parameters())
    still = [name for name, parameter in ours.named_parameters() if not parameter.grad.any()]
    assert not still


@pytest.mark.parametrize("whole", [False, True], ids=["alone", "in the whole model"])
def test_a_folder_is_a_start(tmp_path: Path, whole: bool) -> None:
    theirs, config = model()
    section, image = emu3.emu3_section(config, 32)
    tensors = {("model.vqmodel." if whole else "") + n: t.clone() for n, t in theirs.state_dict().items()}
    if whole:
        tensors["model.text_model.embed_tokens.weight"] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "emu3" if whole else "emu3_vqgan"}))
    made = registry.build(Tokenizer, section, image).eval()
    section = registry.resolve(Tokenizer, section).dump()
    start_from(made, section, Tokenizer, tmp_path)
    with torch.no_grad():
        assert torch.equal(made.encode(pictures(2)), theirs_of(theirs, pictures(2)))
    with pytest.raises(ConversionError, match="is a 'movq' with a 'vq' of one codebook; the section has 'grid'"):
        start_from(made, section | {"type": "grid"}, Tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("encoder.time_conv.1.conv.conv.bias"),
            r"'encoder.time_conv.1.conv.conv.bias': expected \(4,\), found nothing",
        ),
        (
            lambda tensors: tensors.update({"decoder.up_block.up.2.attn.0.q.bias": torch.zeros(64)}),
            r"'decoder.up_block.up.2.attn.0.q.bias': expected nothing, found \(64,\)",
        ),
        (
            lambda tensors: tensors.update({"decoder.middle_block.attn_1.k_proj.weight": torch.zeros(64, 32)}),
            r"'decoder.middle_block.attn_1.k_proj.weight': expected \(64, 64\), found \(64, 32\)",
        ),
        (
            lambda tensors: tensors.update({"quantize.embedding.weight": torch.zeros(63, 4)}),
            r"'quantize.embedding.weight': expected \(64, 4\), found \(63, 4\)",
        ),
    ],
    ids=["missing", "left over", "another shape", "truncated"],
)
def test_tensors_that_do_not_fit_are_named(change, message: str) -> None:
    theirs, config = model()
    tensors = theirs.state_dict()
    change(tensors)
    with pytest.raises(ConversionError, match=message):
        emu3.from_tensors(*emu3.emu3_section(config, 32), tensors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"double_latent": True}, "double_latent: expected false"),
        ({"in_channels": 4, "out_channels": 4}, "in_channels: expected 1 or 3, got 4"),
        ({"out_channels": 1}, "out_channels: expected 3, got 1"),
        ({"temporal_downsample_factor": 3}, "temporal_downsample_factor: expected a power of two, got 3"),
        ({"embed_dim": 8}, "embed_dim: expected 4, got 8"),
        ({"num_attention_heads": 2}, "num_attention_heads: expected 1, got 2"),
        ({"hidden_size": 32}, r"hidden_size: expected the channels where there is attention \(64\), got 32"),
        ({"attn_resolutions": [0]}, r"hidden_size: expected the channels where there is attention \(32, 64\), got 64"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        emu3.emu3_section(transformers.Emu3VQVAEConfig(**SMALL | changes))


def test_a_size_that_does_not_fit_is_refused_by_key() -> None:
    section, _ = emu3.emu3_section(transformers.Emu3VQVAEConfig(**SMALL))
    with pytest.raises(registry.ComponentError, match="2 halvings do not divide the image size 30") as caught:
        registry.build(Tokenizer, section, ImageFormat(30, 3))
    assert caught.value.path == ("multipliers",)
