"""`tessera components`: everything the registry knows, without importing it, and the page is what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from components import registry
from components.interfaces import KINDS
from flows import parts

PAGE = Path(__file__).parent.parent / "docs" / "components.md"


def test_every_built_in_is_listed_with_what_it_is() -> None:
    found = parts.kinds()
    assert set(found) == set(KINDS)
    for kind, package in found.items():
        rows = parts.listed(package)
        built_in = set(registry.names(KINDS[kind]))
        assert {name for name, _ in rows} == built_in
        assert all(len(says) > 10 for _, says in rows), kind


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == parts.page(), "run: tessera components --markdown > docs/components.md"


def test_an_unknown_kind_is_answered_with_the_nearest() -> None:
    with pytest.raises(parts.UnknownKind, match="did you mean 'Quantizer'"):
        parts.show("Quantiser", markdown=False)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One thing. Another.", "One thing"),
        ("As Jegou et al. 2011 say (x.y). Then more", "As Jegou et al. 2011 say (x.y)"),
        ("No end\n\nBody.", "No end"),
        ("a | b.", "a / b"),
    ],
)
def test_the_first_sentence(text: str, sentence: str) -> None:
    assert parts._sentence(text) == sentence
