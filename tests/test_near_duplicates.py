"""Near-duplicate texts: signatures estimate the Jaccard similarity, groups are those of a search through all pairs."""

from __future__ import annotations

import random
import re
import time

import numpy as np
import pytest

from components.data.near_duplicates import Signer, near_duplicates


def shingles(text: str, size: int) -> set[str]:
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + size]) for i in range(len(words) - size + 1)}


def jaccard(a: str, b: str, size: int) -> float:
    one, two = shingles(a, size), shingles(b, size)
    return len(one & two) / len(one | two)


def text(seed: int, words: int = 300) -> str:
    rng = random.Random(seed)
    return " ".join(f"word{rng.randrange(5000)}" for _ in range(words))


def edited(original: str, share: float, seed: int) -> str:
    """A share of the words replaced, in one run."""
    words = original.split()
    count = int(share * len(words))
    start = random.Random(seed).randrange(len(words) - count)
    return " ".join([*words[:start], *text(seed + 10_000, count).split(), *words[start + count :]])


def groups_of_all_pairs(signatures: np.ndarray, threshold: float) -> list[int]:
    first = list(range(len(signatures)))
    changed = True
    while changed:
        changed = False
        for i in range(len(signatures)):
            for j in range(i):
                if (signatures[i] == signatures[j]).mean() >= threshold and first[i] != first[j]:
                    low, high = sorted((first[i], first[j]))
                    first = [low if f == high else f for f in first]
                    changed = True
    return first


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_a_signature_estimates_the_jaccard_similarity(share: float) -> None:
    signer = Signer(shingle=3, permutations=1024)
    errors = []
    for seed in range(12):
        one = text(seed)
        other = edited(one, share, seed)
        estimate = (signer.sign(one) == signer.sign(other)).mean()
        errors.append(float(estimate) - jaccard(one, other, 3))
    # the standard error of one estimate is below 1 / (2 sqrt(1024)) = 0.016
    assert abs(np.mean(errors)) < 4 * 0.016 / np.sqrt(len(errors))
    assert np.abs(errors).max() < 5 * 0.016


def test_groups_are_those_of_a_search_through_all_pairs() -> None:
    signer = Signer(shingle=2)
    texts = [text(seed, 80) for seed in range(30)]
    texts += [edited(texts[i % 30], 0.05 * (1 + i % 3), i) for i in range(60)]
    random.Random(0).shuffle(texts)
    signatures = np.stack([signer.sign(t) for t in texts])
    found = near_duplicates(signatures, 0.7).tolist()
    expected = groups_of_all_pairs(signatures, 0.7)
    missed = sum(a != b for a, b in zip(found, expected, strict=True))
    assert missed <= 1, (found, expected)  # banding may miss a pair at the threshold, by its nature
    assert len(set(found)) < 60


def test_a_group_is_named_by_its_first_text_and_strangers_stay_alone() -> None:
    signer = Signer(shingle=1)
    texts = ["alpha beta gamma delta", "one two three four", "Alpha, beta gamma delta!", "five six seven eight"]
    assert near_duplicates(np.stack([signer.sign(t) for t in texts])).tolist() == [0, 1, 0, 3]


def test_short_and_empty_texts_are_signed() -> None:
    signer = Signer(shingle=5)
    assert (signer.sign("two words") == signer.sign("two  words.")).all()
    assert (signer.sign("") == signer.sign("?!")).all()
    assert not (signer.sign("") == signer.sign("word")).any()


def test_a_signature_survives_as_bytes_and_depends_on_nothing_but_the_text() -> None:
    signer = Signer()
    signature = signer.sign(text(1))
    assert (signer.read(signature.tobytes()) == signature).all()
    assert (Signer().sign(text(1)) == signature).all()
    assert not (Signer(seed=2).sign(text(1)) == signature).all()


def test_signing_is_fast_enough_for_a_corpus() -> None:
    signer, long = Signer(), text(3)
    signer.sign(long)
    started = time.perf_counter()
    for _ in range(50):
        signer.sign(long)
    assert (time.perf_counter() - started) / 50 < 0.02  # 300 words; measured: about a millisecond
