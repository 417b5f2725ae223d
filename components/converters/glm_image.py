"""The image tokenizer of GLM-Image, as Transformers has it, in Tessera's own parts, and back.

1. It is two models there: `visual`, a vision transformer, and `vqmodel`, which quantizes what it gives; neither makes
   tokens alone. Together they are `semantic_vq`.
2. Tensors have other names; 1x1 convolutions there are linear layers here, of the same numbers.
3. They have no decoder, as a diffusion model draws: tokens can be made, and not drawn, until training has made a
   decoder.
4. How pictures are normalized stands in their processor, not in the model's configuration; so it is an argument.

Deliberately absent: their processor's sizes (it makes pictures half as large, with sides of many lengths), the decoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from components import registry
from components.converters._tensors import ConversionError, compare, refuse_to_draw
from components.interfaces import ImageFormat, Tokenizer

if TYPE_CHECKING:
    from transformers import GlmImageConfig

    from components.initial import Weights

# The defaults of GlmImageImageProcessor, those of CLIP.
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)

_CODES = "quantizer.codebook.codes"
_OWN = ("quantizer.", "judged.", "decoder.", "pixels.")  # what theirs have not
_PARTS = ("visual.", "vqmodel.")
_GELU = {"gelu": "none", "gelu_pytorch_tanh": "tanh"}
_THEIRS = (
    (r"^quantizer\.codebook\.codes$", "vqmodel.quantize.embedding.weight"),
    (r"^encoder\.patches\.project\.", "visual.patch_embed.proj."),
    (r"^encoder\.positions\.table$", "visual.embeddings.position_embedding.weight"),
    (r"^encoder\.blocks\.", "visual.blocks."),
    (r"^down\.", "vqmodel.quant_conv."),
    (r"^up\.", "vqmodel.post_quant_conv."),
)


def glm_image_section(
    config: GlmImageConfig, size: int = 512, mean: Sequence[float] = MEAN, deviation: Sequence[float] = DEVIATION
) -> tuple[dict[str, Any], ImageFormat]:
    """(the tokenizer section of a recipe, the pictures it is for). Of pictures of any `size` that the patches divide;
    `mean` and `deviation` as in their processor's configuration."""
    vision, vq = _checked(config)
    section = {
        "type": "semantic_vq",
        "patch": vision.patch_size,
        "depth": vision.depth,
        "width": vision.hidden_size,
        "heads": vision.num_heads,
        "hidden": vision.intermediate_size,
        "gelu": _GELU[vision.hidden_act],
        "positions": vision.image_size // vision.patch_size,
        "mean": list(mean),
        "deviation": list(deviation),
        "dim": vq.embed_dim,
        "quantizer": {
            "type": "vq",
            "codebook_size": vq.num_embeddings,
            "codebook": {"type": "learned"},
            "assignment": {"type": "cosine"},
            "revival": None,
        },
    }
    return section, ImageFormat(size, 3 if vision.in_channels == 3 else 1)


def from_tensors(section: dict[str, Any], image: ImageFormat, theirs: Mapping[str, Tensor]) -> Tokenizer:
    """The tokenizer of a section with the tensors of `GlmImageModel` that begin with 'visual.' and 'vqmodel.'. Its
    `decode` refuses."""
    tokenizer = registry.build(Tokenizer, section, image).eval()
    _load(tokenizer, theirs)
    tokenizer.__dict__["decode"] = refuse_to_draw
    return tokenizer


def start(tokenizer: nn.Module, section: Mapping[str, Any], config: Mapping[str, Any], weights: Weights) -> None:
    """The tensors of a whole GLM-Image model that are its tokenizer, into one that was built from `section`; its
    decoder stays as it was: training makes one."""
    from transformers import GlmImageConfig

    if section["type"] != "semantic_vq" or section["quantizer"]["type"] != "vq":
        raise ConversionError(
            f"a '{config['model_type']}' is a 'semantic_vq' with a 'vq'; the section has '{section['type']}' with "
            f"'{section['quantizer']['type']}'"
        )
    there, _ = glm_image_section(GlmImageConfig.from_dict(dict(config)))
    for name in ("heads", "gelu"):  # what changes no shape
        if section[name] != there[name]:
            raise ConversionError(f"{name}: expected {there[name]} as there, got {section[name]}")
    if section["quantizer"]["assignment"]["type"] != "cosine":
        raise ConversionError(
            f"quantizer.assignment: expected 'cosine', got '{section['quantizer']['assignment']['type']}'"
        )
    codes = [name for name in weights if name.endswith("vqmodel.quantize.embedding.weight")]
    prefix = codes[0].removesuffix("vqmodel.quantize.embedding.weight") if codes else ""
    _load(tokenizer, {part + n: t for part in _PARTS for n, t in weights.below(prefix + part).items()})


def to_tensors(tokenizer: nn.Module) -> dict[str, Tensor]:
    """Its tensors under their names, those of its decoder left out."""
    state = tokenizer.state_dict()
    found = {}
    for ours, their in _names(state).items():
        tensor = state[ours].clone()
        found[their] = tensor[:, :, None, None] if _convolution(their) else tensor
    return found


def _load(tokenizer: nn.Module, theirs: Mapping[str, Tensor]) -> None:
    compare(to_tensors(tokenizer), theirs)
    names = _names(tokenizer.state_dict())
    tensors = {
        ours: theirs[their][:, :, 0, 0] if _convolution(their) else theirs[their] for ours, their in names.items()
    }
    tokenizer.load_state_dict(tensors, strict=False)


def _names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Our names -> theirs."""
    names = {}
    for name in state:
        if name == _CODES or not name.startswith(_OWN):
            their = name
            for pattern, replacement in _THEIRS:
                their = re.sub(pattern, replacement, their)
            names[name] = their
    return names


def _convolution(their: str) -> bool:
    return their.endswith("quant_conv.weight")


def _checked(config: GlmImageConfig) -> tuple[Any, Any]:
    """The configurations of the two models. Raises ConversionError naming the setting that cannot be had."""
    vision: Any = config.vision_config
    vq: Any = config.vq_config
    if vision.in_channels not in (1, 3):
        raise ConversionError(f"vision_config.in_channels: expected 1 or 3, got {vision.in_channels}")
    if vision.hidden_act not in _GELU:
        raise ConversionError(
            f"vision_config.hidden_act: expected {' or '.join(map(repr, _GELU))}, got '{vision.hidden_act}'"
        )
    for name in ("image_size", "patch_size"):
        if not isinstance(getattr(vision, name), int):
            raise ConversionError(f"vision_config.{name}: expected one number, got {list(getattr(vision, name))}")
    for name, found, expected in (
        ("vision_config.attention_bias", vision.attention_bias, True),
        ("vision_config.layer_norm_eps", vision.layer_norm_eps, 1e-6),
        ("vision_config.spatial_merge_size", vision.spatial_merge_size, 1),
        ("vq_config.latent_channels", vq.latent_channels, vision.hidden_size),
    ):
        if found != expected:
            raise ConversionError(f"{name}: expected {expected}, got {found}")
    return vision, vq
