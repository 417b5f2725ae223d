"""The VQ model of Emu3, as Transformers has it, in Tessera's own parts, and back.

1. A picture there is repeated along time and its codes are those of the one frame that is left; drawn is the first
   frame. `movq` does that and makes no frame that is thrown away.
2. Tensors have other names; attention there is linear layers, here 1x1 convolutions of the same numbers.
3. Layers over time there work on latents of `latent_channels` and of `embed_dim` alike, so these must be the same.

Deliberately absent: videos. Pictures are square, in [-1, 1] as Emu3's own processor makes them (mean and deviation
0.5).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from components import registry
from components.converters._tensors import ConversionError, compare
from components.interfaces import ImageFormat, Tokenizer

if TYPE_CHECKING:
    from transformers import Emu3VQVAEConfig

    from components.initial import Weights

_CODES = "quantizer.codebook.codes"
_OWN = ("quantizer.", "judged.")  # what theirs have not: counts of use
_THEIRS = (  # in this order, each where it fits
    (r"^quantizer\.codebook\.codes$", "quantize.embedding.weight"),
    (r"^fold\.halvings\.(\d+)\.", r"encoder.time_conv.\1.conv."),
    (r"^fold\.blocks\.", "encoder.time_res_stack."),
    (r"^unfold\.doublings\.(\d+)\.", r"decoder.time_conv.\1.conv."),
    (r"^unfold\.blocks\.", "decoder.time_res_stack."),
    (r"\.mid\.attn_1\.norm\.", ".middle_block.attn_norm."),
    (r"\.mid\.", ".middle_block."),
    (r"^encoder\.down\.", "encoder.down_block.down."),
    (r"^decoder\.up\.", "decoder.up_block.up."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"\.(attn\.\d+|attn_1)\.([qkv])\.", r".\1.\2_proj."),
    (r"\.(attn\.\d+|attn_1)\.proj_out\.", r".\1.out_proj."),
)


def emu3_section(config: Emu3VQVAEConfig, size: int = 512) -> tuple[dict[str, Any], ImageFormat]:
    """(the tokenizer section of a recipe, the pictures it is for). Their configuration has no size: any that the
    halvings divide will do."""
    _check(config)
    levels = range(len(config.channel_multiplier))
    section = {
        "type": "movq",
        "base": config.base_channels,
        "multipliers": list(config.channel_multiplier),
        "blocks": config.num_res_blocks,
        "attention": [level for level in levels if level in config.attn_resolutions],
        "dim": config.embed_dim,
        "halvings": config.temporal_downsample_factor.bit_length() - 1,
        "quantizer": {
            "type": "vq",
            "codebook_size": config.codebook_size,
            "codebook": {"type": "learned"},
            "revival": None,
        },
    }
    return section, ImageFormat(size, 3 if config.in_channels == 3 else 1)


def from_tensors(section: dict[str, Any], image: ImageFormat, theirs: Mapping[str, Tensor]) -> Tokenizer:
    """The tokenizer of a section with these weights."""
    tokenizer = registry.build(Tokenizer, section, image).eval()
    _load(tokenizer, theirs)
    return tokenizer


def start(tokenizer: nn.Module, section: Mapping[str, Any], config: Mapping[str, Any], weights: Weights) -> None:
    """Their weights, alone or as part of the whole model, into a tokenizer that was built from `section`."""
    codes = [name for name in weights if name.endswith("quantize.embedding.weight")]
    if section["type"] != "movq" or section["quantizer"]["type"] != "vq" or len(codes) != 1:
        raise ConversionError(
            f"a '{config['model_type']}' is a 'movq' with a 'vq' of one codebook; the section has '{section['type']}' "
            f"with '{section['quantizer']['type']}', the weights {len(codes)} codebooks"
        )
    _load(tokenizer, weights.below(codes[0].removesuffix("quantize.embedding.weight")))


def to_tensors(tokenizer: nn.Module) -> dict[str, Tensor]:
    """Its tensors under their names."""
    state = tokenizer.state_dict()
    found = {}
    for ours, their in _names(state).items():
        tensor = state[ours].clone()
        found[their] = tensor[:, :, 0, 0] if _linear(their) else tensor
    return found


def _load(tokenizer: nn.Module, theirs: Mapping[str, Tensor]) -> None:
    compare(to_tensors(tokenizer), theirs)
    names = _names(tokenizer.state_dict())
    tensors = {
        ours: theirs[their][:, :, None, None] if _linear(their) else theirs[their] for ours, their in names.items()
    }
    tokenizer.load_state_dict(tensors, strict=False)


def _names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Our names -> theirs."""
    kept = [name for name in state if name == _CODES or not name.startswith(_OWN)]
    levels = len({name.split(".")[2] for name in kept if name.startswith("decoder.up.")})
    return {name: _name(name, levels) for name in kept}


def _name(ours: str, levels: int) -> str:
    their = ours
    for pattern, replacement in _THEIRS:
        their = re.sub(pattern, replacement, their)
    # Theirs count resolutions from the highest, our decoder begins at the lowest.
    return re.sub(r"(?<=\.up\.)\d+", lambda found: str(levels - 1 - int(found[0])), their)


def _linear(their: str) -> bool:
    return their.endswith("_proj.weight")


def _check(config: Emu3VQVAEConfig) -> None:
    if config.double_latent:
        raise ConversionError("double_latent: expected false, a quantizer takes no mean and variance")
    if config.in_channels not in (1, 3):
        raise ConversionError(f"in_channels: expected 1 or 3, got {config.in_channels}")
    factor = config.temporal_downsample_factor
    if factor < 1 or factor & (factor - 1):
        raise ConversionError(f"temporal_downsample_factor: expected a power of two, got {factor}")
    widths = [config.base_channels * multiplier for multiplier in config.channel_multiplier]
    attended = {widths[-1], *(width for level, width in enumerate(widths) if level in config.attn_resolutions)}
    if attended != {config.hidden_size}:
        raise ConversionError(
            f"hidden_size: expected the channels where there is attention ({', '.join(map(str, sorted(attended)))}), "
            f"got {config.hidden_size}"
        )
    for name, found, expected in (
        ("out_channels", config.out_channels, config.in_channels),
        ("embed_dim", config.embed_dim, config.latent_channels),
        ("num_attention_heads", config.num_attention_heads, 1),
    ):
        if found != expected:
            raise ConversionError(f"{name}: expected {expected}, got {found}")
