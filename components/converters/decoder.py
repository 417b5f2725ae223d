"""A plain next-token decoder as the Transformers architecture it is, and back.

1. RMSNorm, rotary positions, SwiGLU, queries and keys normalized per head, no biases: that is Qwen3 with float32 norms.
2. Its vocabulary is the codes, then the classes and the null class: generation starts with a class as the first token.
3. Tensors that are one here and several there (queries, keys, values; gate and up) are cut and joined, never computed:
   out and back is the same to the last bit.
4. The output layer there has rows for the classes, too; they are zero and suppressed by the generation settings.

Refused: whatever that architecture cannot say (positions of several codes, two rotary axes, captions, other heads).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from components import registry
from components.backbones._blocks import EPSILON
from components.backbones.transformer import Transformer
from components.conditioners.class_label import ClassLabel
from components.converters._tensors import ConversionError, load
from components.generators.next_token import NextToken
from components.heads.categorical import Categorical
from components.interfaces import Generator, TokenSpec

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

    from components.initial import Weights


def to_transformers(model: Generator) -> Qwen3ForCausalLM:
    """The same function of token ids as `Qwen3ForCausalLM`, float32."""
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    decoder, backbone = _plain(model)
    depth, kv_heads, dim = backbone.cache_shape
    codes, classes = decoder.spec.vocabulary, decoder.classes + 1
    config = Qwen3Config(
        vocab_size=codes + classes,
        hidden_size=backbone.width,
        intermediate_size=backbone.blocks[0].mlp.out.in_features,  # type: ignore[union-attr, arg-type]
        num_hidden_layers=depth,
        num_attention_heads=backbone.width // dim,
        num_key_value_heads=kv_heads,
        head_dim=dim,
        max_position_embeddings=backbone.shape.length,
        rms_norm_eps=EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": backbone.rope_base},
        tie_word_embeddings=False,
        attention_bias=False,
        attention_dropout=0.0,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=decoder.spec.end,
        pad_token_id=None,
    )
    twin = Qwen3ForCausalLM(config)
    twin.load_state_dict(to_tensors(decoder, backbone))
    twin.generation_config = GenerationConfig(
        max_new_tokens=decoder.spec.length,
        suppress_tokens=list(range(codes, codes + classes)),
        eos_token_id=decoder.spec.end,
        pad_token_id=codes + classes - 1,
    )
    return twin.eval()


def from_transformers(twin: Qwen3ForCausalLM, spec: TokenSpec, classes: int) -> Generator:
    """What `to_transformers` was given. `spec` and `classes` say what its vocabulary is made of."""
    config = twin.config
    if config.vocab_size != spec.vocabulary + classes + 1:
        raise ConversionError(
            f"{spec.vocabulary} codes, {classes} classes and the null class are {spec.vocabulary + classes + 1} tokens, the "
            f"model has {config.vocab_size}"
        )
    backbone = {
        "type": "transformer",
        "depth": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "rope_base": (config.rope_parameters or {})["rope_theta"],
    }
    choice = {"type": "next_token", "backbone": backbone, "head": {"type": "categorical"}}
    model = registry.build(Generator, choice, spec, classes).eval()
    model.load_state_dict(from_tensors(twin.state_dict(), spec.vocabulary))
    return model


def start(model: nn.Module, section: Mapping[str, Any], config: Mapping[str, Any], weights: Weights) -> None:
    """The weights of a Qwen3ForCausalLM into a generator that was built from `section`."""
    decoder, backbone = _plain(model)
    theirs = (config.get("rope_parameters") or config).get("rope_theta")
    if theirs != backbone.rope_base:
        raise ConversionError(f"backbone.rope_base: expected {theirs} as there, got {backbone.rope_base}")
    load(decoder, from_tensors(dict(weights), decoder.spec.vocabulary))


def to_tensors(decoder: NextToken, backbone: Transformer) -> dict[str, Tensor]:
    """Tessera's tensors under Qwen3's names."""
    depth, kv_heads, dim = backbone.cache_shape
    own = decoder.state_dict()
    heads = [backbone.width, kv_heads * dim, kv_heads * dim]
    project = own["head.project.weight"]
    tensors = {
        "model.embed_tokens.weight": torch.cat([own["token_embedding.weight"], own["conditioner.embedding.weight"]]),
        "model.norm.weight": own["backbone.norm.weight"],
        "lm_head.weight": torch.cat([project, project.new_zeros(decoder.classes + 1, project.shape[1])]),
    }
    for layer in range(depth):
        ours, theirs = f"backbone.blocks.{layer}.", f"model.layers.{layer}."
        query, key, value = own[ours + "attention.project.weight"].split(heads)
        gate, up = own[ours + "mlp.gate_up.weight"].chunk(2)
        tensors |= {theirs + name: own[ours + name_here] for name_here, name in _SAME.items()}
        tensors |= {
            theirs + "self_attn.q_proj.weight": query,
            theirs + "self_attn.k_proj.weight": key,
            theirs + "self_attn.v_proj.weight": value,
            theirs + "mlp.gate_proj.weight": gate,
            theirs + "mlp.up_proj.weight": up,
        }
    return {name: tensor.clone() for name, tensor in tensors.items()}


def from_tensors(theirs: dict[str, Tensor], codes: int) -> dict[str, Tensor]:
    """Qwen3's tensors under Tessera's names; ConversionError for one that is missing."""
    try:
        embedding = theirs["model.embed_tokens.weight"]
        tensors = {
            "token_embedding.weight": embedding[:codes],
            "conditioner.embedding.weight": embedding[codes:],
            "backbone.norm.weight": theirs["model.norm.weight"],
            "head.project.weight": theirs["lm_head.weight"][:codes],
        }
        layers = {int(name.split(".")[2]) for name in theirs if name.startswith("model.layers.")}
        for layer in sorted(layers):
            at, to = f"model.layers.{layer}.", f"backbone.blocks.{layer}."
            tensors |= {to + name_here: theirs[at + name] for name_here, name in _SAME.items()}
            joined = [theirs[f"{at}self_attn.{part}_proj.weight"] for part in "qkv"]
            tensors[to + "attention.project.weight"] = torch.cat(joined)
            tensors[to + "mlp.gate_up.weight"] = torch.cat(
                [theirs[f"{at}mlp.{part}_proj.weight"] for part in ("gate", "up")]
            )
    except KeyError as error:
        raise ConversionError(f"the model has no tensor {error}; is it a Qwen3ForCausalLM?") from error
    return {name: tensor.clone() for name, tensor in tensors.items()}


#: tensors of a layer that are the same in both, ours -> theirs
_SAME = {
    "attention.out.weight": "self_attn.o_proj.weight",
    "attention.query_norm.weight": "self_attn.q_norm.weight",
    "attention.key_norm.weight": "self_attn.k_norm.weight",
    "mlp.out.weight": "mlp.down_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
}


def _plain(model: nn.Module) -> tuple[NextToken, Transformer]:
    if not isinstance(model, NextToken):
        raise ConversionError(
            f"only a next_token generator is a causal language model, this is a {type(model).__name__}"
        )
    parts = [(model.backbone, Transformer), (model.head, Categorical), (model.conditioner, ClassLabel)]
    for part, kind in parts:
        if type(part) is not kind:
            raise ConversionError(f"expected {kind.__name__} to be exported, the generator has {type(part).__name__}")
    backbone = model.backbone
    assert isinstance(backbone, Transformer)
    if backbone.axes != 1:
        raise ConversionError("expected one rotary axis to be exported, the backbone has two (backbone.axes)")
    return model, backbone
