"""A decoder as Transformers has it: the same logits, the same tokens, and back to the last bit."""

from __future__ import annotations

import pytest
import torch

from components import registry
from components.converters._tensors import ConversionError
from components.converters.decoder import from_transformers, to_transformers
from components.interfaces import Generator, TokenSpec
from components.sampling.engine import generate
from components.sampling.rules import Greedy

transformers = pytest.importorskip("transformers")
SPEC, CLASSES = TokenSpec((11,), 9, "sequence"), 3
SMALL = {"type": "transformer", "depth": 2, "width": 32, "heads": 4}


def build(backbone: dict = SMALL, spec: TokenSpec = SPEC, **config: object) -> Generator:
    torch.manual_seed(0)
    choice = {"type": "next_token", "backbone": backbone, "head": {"type": "categorical"}, **config}
    model = registry.build(Generator, choice, spec, CLASSES).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 2}, {"rope_base": 500.0}])
class TestDecoder:
    @torch.no_grad()
    def test_the_same_log_probabilities(self, changes: dict) -> None:
        model = build(SMALL | changes)
        tokens = torch.randint(11, (5, 9), generator=torch.Generator().manual_seed(1))
        labels = torch.tensor([0, 1, 2, 3, 0])
        logits = to_transformers(model)(torch.cat([11 + labels[:, None], tokens[:, :-1]], 1)).logits[..., :11]
        found = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        torch.testing.assert_close(found, model.log_probs(tokens, labels), atol=1e-5, rtol=1e-5)

    def test_the_same_greedy_tokens(self, changes: dict) -> None:
        model, labels = build(SMALL | changes), torch.tensor([0, 2, 3])
        theirs = to_transformers(model).generate(11 + labels[:, None], attention_mask=torch.ones(3, 1).long())
        assert torch.equal(theirs[:, 1:], generate(model, labels, torch.Generator(), [Greedy()]))

    def test_out_and_back_through_files_is_the_same_to_the_last_bit(self, changes: dict, tmp_path) -> None:
        model = build(SMALL | changes)
        to_transformers(model).save_pretrained(tmp_path)
        assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
        again = from_transformers(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), SPEC, CLASSES)
        before, after = model.state_dict(), again.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: build(SMALL | {"axes": 2}, TokenSpec((11,), 9, "grid", (3, 3))), "one rotary axis"),
        (lambda: build(conditioner={"type": "caption", "length": 4}), "ClassLabel"),
        (lambda: build(spec=TokenSpec((11, 3), 9, "sequence"), head={"type": "factorised"}), "Categorical"),
    ],
)
def test_what_that_architecture_cannot_say_is_refused(model, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        to_transformers(model())


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(ConversionError, match="the model has 15"):
        from_transformers(to_transformers(build()), SPEC, CLASSES + 1)
