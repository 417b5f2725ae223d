"""Published VQ models with random weights: the same codes and pictures in their class and in our parts, and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from components.converters import vqgan
from components.converters._tensors import ConversionError
from components.interfaces import ImageFormat

transformers = pytest.importorskip("transformers")

SMALL = {
    "base_channels": 32, "channel_multiplier": [1, 2, 2], "num_res_blocks": 1, "latent_channels": 16, "embed_dim": 8,
    "num_embeddings": 64, "in_channels": 3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def janus() -> tuple[torch.nn.Module, object]:
    torch.manual_seed(0)
    config = transformers.JanusVQVAEConfig(**SMALL, num_patches=8, out_channels=3)
    from transformers.models.janus.modeling_janus import JanusVQVAE

    return _spread(JanusVQVAE(config)), config


def chameleon() -> tuple[torch.nn.Module, object]:
    torch.manual_seed(0)
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    config = transformers.ChameleonVQVAEConfig(**SMALL, resolution=32, attn_resolutions=[16, 8], attn_type="vanilla")
    return _spread(ChameleonVQVAE(config)), config


@torch.no_grad()
def _spread(model: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough that codes differ from place to place."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.5 * parameter[0].numel() ** -0.5 * 2)
    model.quantize.embedding.weight.normal_()
    return model.eval()


def pictures(n: int) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("n", [1, 3])
class TestJanus:
    def test_the_same_codes_and_reconstructions(self, n: int) -> None:
        theirs, config = janus()
        section, image = vqgan.janus_section(config)
        ours = vqgan.from_tensors(section, image, theirs.state_dict())
        codes = theirs.encode(pictures(n)).image_tokens.view(n, -1)
        assert codes.unique().numel() > 8
        assert torch.equal(ours.encode(pictures(n)), codes)
        torch.testing.assert_close(ours.decode(codes), theirs.decode(codes).clamp(-1, 1), atol=1e-5, rtol=1e-5)

    def test_back_it_is_the_same_to_the_last_bit(self, n: int) -> None:
        theirs, config = janus()
        ours = vqgan.from_tensors(*vqgan.janus_section(config), theirs.state_dict())
        back, before = vqgan.to_tensors(ours), theirs.state_dict()
        assert back.keys() == before.keys()
        assert all(torch.equal(back[name], before[name]) for name in before)


class TestChameleon:
    @pytest.mark.parametrize("n", [1, 3])
    def test_the_same_codes(self, n: int) -> None:
        theirs, config = chameleon()
        section, image = vqgan.chameleon_section(config)
        assert image == ImageFormat(32, 3)
        assert section["attention"] == [1, 2]
        ours = vqgan.from_tensors(section, image, theirs.state_dict())
        codes = theirs.encode(pictures(n)).image_tokens.view(n, -1)
        assert codes.unique().numel() > 8
        assert torch.equal(ours.encode(pictures(n)), codes)

    def test_without_a_decoder_nothing_is_drawn(self) -> None:
        theirs, config = chameleon()
        ours = vqgan.from_tensors(*vqgan.chameleon_section(config), theirs.state_dict())
        with pytest.raises(ConversionError, match="have no decoder"):
            ours.decode(ours.encode(pictures(1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("encoder.conv_in.bias"),
            r"'encoder.conv_in.bias': expected \(32,\), found nothing",
        ),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), r"'extra': expected nothing, found \(2,\)"),
        (lambda tensors: tensors.update({"quant_conv.bias": torch.zeros(9)}), r"expected \(8,\), found \(9,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message: str) -> None:
    theirs, config = janus()
    tensors = theirs.state_dict()
    change(tensors)
    with pytest.raises(ConversionError, match=message):
        vqgan.from_tensors(*vqgan.janus_section(config), tensors)
