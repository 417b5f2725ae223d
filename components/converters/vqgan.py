"""The VQ models of Chameleon and Janus, as Transformers has them, in Tessera's own parts, and back.

1. Encoder, decoder and the two 1x1 convolutions have the same names; the codebook is the embedding of their quantizer.
2. Chameleon's published weights in Transformers have no decoder: its tokens can be made, and not drawn.
3. Janus compares latents and codes as they are, and draws from codes on the unit sphere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from components import registry
from components.converters._tensors import ConversionError, load, refuse_to_draw
from components.interfaces import ImageFormat, Tokenizer

if TYPE_CHECKING:
    from transformers import ChameleonVQVAEConfig, JanusVQVAEConfig

    from components.initial import Weights

_CODES = {"quantizer.codebook.codes": "quantize.embedding.weight"}
_OWN = ("quantizer.", "judged.")  # what theirs have not: counts of use


def janus_section(config: JanusVQVAEConfig) -> tuple[dict[str, Any], ImageFormat]:
    """(the tokenizer section of a recipe, the pictures it is for)"""
    levels = len(config.channel_multiplier)
    section = _section(config, attention=[levels - 1])
    return section | {"unit_latents": True}, _format(config.in_channels, config.num_patches * 2 ** (levels - 1))


def chameleon_section(config: ChameleonVQVAEConfig) -> tuple[dict[str, Any], ImageFormat]:
    """(the tokenizer section of a recipe, the pictures it is for)"""
    if config.attn_type != "vanilla":
        raise ConversionError(f"attn_type: expected 'vanilla', got '{config.attn_type}'")
    sizes = [config.resolution // 2**level for level in range(len(config.channel_multiplier))]
    attention = [level for level, size in enumerate(sizes) if size in (config.attn_resolutions or ())]
    return _section(config, attention), _format(config.in_channels, config.resolution)


def from_tensors(section: dict[str, Any], image: ImageFormat, theirs: Mapping[str, Tensor]) -> Tokenizer:
    """The tokenizer of a section with these weights. Without a decoder among them, `decode` refuses."""
    tokenizer = registry.build(Tokenizer, section, image).eval()
    if not _load(tokenizer, theirs):
        tokenizer.__dict__["decode"] = refuse_to_draw
    return tokenizer


def start(tokenizer: nn.Module, section: Mapping[str, Any], config: Mapping[str, Any], weights: Weights) -> None:
    """Their weights, alone or as part of the whole model, into a tokenizer that was built from `section`. Where there is no
    decoder among them, its own stays as it was: training makes one."""
    codes = [name for name in weights if name.endswith("quantize.embedding.weight")]
    if section["type"] != "vqgan" or len(codes) != 1:
        raise ConversionError(
            f"a '{config['model_type']}' is a 'vqgan' with one codebook; the section has '{section['type']}', the weights "
            f"{len(codes)} codebooks"
        )
    unit = str(config["model_type"]).startswith("janus")
    if bool(section["unit_latents"]) != unit:
        raise ConversionError(f"unit_latents: expected {str(unit).lower()} for a '{config['model_type']}'")
    _load(tokenizer, weights.below(codes[0].removesuffix("quantize.embedding.weight")))


def _load(tokenizer: nn.Module, theirs: Mapping[str, Tensor]) -> bool:
    """Whether there was a decoder among them."""
    names = {their: ours for ours, their in _CODES.items()}
    tensors = {names.get(name, name): tensor for name, tensor in theirs.items()}
    drawn = any(name.startswith("decoder.") for name in tensors)
    kept = [n for n in tokenizer.state_dict() if n.startswith(_OWN) and n not in _CODES]
    load(tokenizer, tensors, tuple(kept) if drawn else (*kept, "decoder."))
    return drawn


def to_tensors(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Its tensors under their names."""
    found = {}
    for name, tensor in tokenizer.state_dict().items():
        if name in _CODES or not name.startswith(_OWN):
            found[_CODES.get(name, name)] = tensor.clone()
    return found


def _section(config: Any, attention: list[int]) -> dict[str, Any]:
    if config.double_latent:
        raise ConversionError("double_latent: expected false, a quantizer takes no mean and variance")
    return {
        "type": "vqgan",
        "base": config.base_channels,
        "multipliers": list(config.channel_multiplier),
        "blocks": config.num_res_blocks,
        "attention": attention,
        "latent": config.latent_channels,
        "dim": config.embed_dim,
        "quantizer": {
            "type": "vq",
            "codebook_size": config.num_embeddings,
            "codebook": {"type": "learned"},
            "revival": None,
        },
    }


def _format(channels: int, size: int) -> ImageFormat:
    if channels not in (1, 3):
        raise ConversionError(f"in_channels: expected 1 or 3, got {channels}")
    return ImageFormat(size, 3 if channels == 3 else 1)
