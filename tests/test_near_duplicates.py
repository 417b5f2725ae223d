"""Near-duplicate texts: signatures estimate the Jaccard similarity, groups are those of a search through all pairs."""

from __future__ import annotations

import itertools
import random
import re
import time

import numpy as np
import pytest

from components.data.near_duplicates import Signer, near_duplicates
from components.data.sources.pydoc_text import PydocText


def shingles(text: str, size: int) -> set[str]:
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}


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


def scattered(original: str, share: float, vocabulary: list[str], rng: random.Random) -> str:
    """A share of the words replaced, left out or added, anywhere."""
    words = original.split(" ")
    for _ in range(max(1, int(share * len(words)))):
        place = rng.randrange(len(words))
        match rng.choice(("replace", "leave out", "add")):
            case "replace":
                words[place] = rng.choice(vocabulary)
            case "leave out":
                del words[place]
            case _:
                words.insert(place, rng.choice(vocabulary))
    return " ".join(words)


def signed(texts: list[str], signer: Signer) -> np.ndarray:
    return np.stack([signer.sign(t) for t in texts])


def joined(pairs: list[tuple[int, int]], count: int) -> list[int]:
    """The first of each set that hangs together by these pairs."""
    first = list(range(count))
    for i, j in pairs:
        low, high = sorted((first[i], first[j]))
        first = [low if f == high else f for f in first]
    return first


def groups_of_all_pairs(signatures: np.ndarray, threshold: float) -> list[int]:
    pairs = itertools.combinations(range(len(signatures)), 2)
    like = [(i, j) for i, j in pairs if (signatures[i] == signatures[j]).mean() >= threshold]
    return joined(like, len(signatures))


@pytest.fixture(scope="module")
def prose() -> list[str]:
    """Pieces of real English prose."""
    samples = PydocText(piece=2000).samples()
    return [s.text for s in samples if hasattr(s, "text") and s.text is not None and len(s.text) > 1000]


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


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_groups_are_those_of_a_search_through_all_pairs(threshold: float) -> None:
    signer = Signer(shingle=2)
    texts = [text(seed, 80) for seed in range(30)]
    texts += [edited(texts[i % 30], 0.05 * (1 + i % 3), i) for i in range(60)]
    random.Random(0).shuffle(texts)
    signatures = signed(texts, signer)
    found = near_duplicates(signatures, threshold).tolist()
    assert found == groups_of_all_pairs(signatures, threshold)
    assert 20 < len(set(found)) < 90


def test_groups_are_those_of_the_true_jaccard_similarity_where_it_is_far_from_the_threshold() -> None:
    texts = [text(seed, 200) for seed in range(20)]
    texts += [edited(texts[i], 0.02, i) for i in range(10)] + [edited(texts[i], 0.5, i) for i in range(10, 20)]
    pairs = list(itertools.combinations(range(40), 2))
    similar = {pair: jaccard(texts[pair[0]], texts[pair[1]], 3) for pair in pairs}
    assert all(value > 0.93 or value < 0.4 for value in similar.values())
    expected = joined([pair for pair in pairs if similar[pair] > 0.9], 40)
    assert near_duplicates(signed(texts, Signer(shingle=3))).tolist() == expected
    assert expected == [*range(20), *range(10), *range(30, 40)]


def test_the_same_texts_give_the_same_groups_in_any_parts_and_any_order(prose: list[str]) -> None:
    rng, vocabulary = random.Random(3), text(0).split()
    texts = prose[:60] + [scattered(t, 0.015, vocabulary, rng) for t in prose[:60]]
    whole = signed(texts, Signer())
    for size in (1, 7, 50):
        parts = [signed(texts[start : start + size], Signer()) for start in range(0, len(texts), size)]
        assert np.array_equal(np.concatenate(parts), whole)
    found = near_duplicates(whole)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(texts))
        again = near_duplicates(whole[order])  # [i]: a place in `order`
        sets = {frozenset(order[again == name].tolist()) for name in set(again.tolist())}
        assert sets == {frozenset(np.flatnonzero(found == name).tolist()) for name in set(found.tolist())}
        assert (again <= np.arange(len(again))).all()


def test_edited_copies_of_real_prose_are_found(prose: list[str]) -> None:
    """From one word in two hundred to one in five is changed in copies of real texts; each pair of a text and its copy is
    judged by its true similarity."""
    signer, vocabulary = Signer(), sorted({word for t in prose for word in t.split()})
    found: list[bool] = []
    true: list[float] = []
    for share in (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2):
        rng = random.Random(int(1000 * share))
        copies = [scattered(t, share, vocabulary, rng) for t in prose]
        first = near_duplicates(signed(prose + copies, signer), 0.8)
        found += (first[: len(prose)] == first[len(prose) :]).tolist()
        true += [jaccard(one, other, 5) for one, other in zip(prose, copies, strict=True)]
    hit, similarity = np.array(found), np.array(true)
    alike = similarity >= 0.8
    recall, precision = (hit & alike).sum() / alike.sum(), (hit & alike).sum() / hit.sum()
    print(f"{len(hit)} pairs, {alike.sum()} of them alike: recall {recall:.3f}, precision {precision:.3f}")
    assert hit[similarity >= 0.9].all()  # a signature of 128 places errs by 0.035 at 0.8, and by less further up
    assert not hit[similarity < 0.65].any()
    assert recall > 0.9
    assert precision > 0.9


def test_a_group_is_named_by_its_first_text_and_strangers_stay_alone() -> None:
    texts = ["alpha beta gamma delta", "one two three four", "Alpha, beta gamma delta!", "five six seven eight"]
    assert near_duplicates(signed(texts, Signer(shingle=1))).tolist() == [0, 1, 0, 3]


def test_what_is_like_the_same_text_is_one_group() -> None:
    row = np.arange(128, dtype=np.uint32)
    second, third = row.copy(), row.copy()
    second[:80:5] += 1000  # of the 23 bands of five, sixteen tell all three apart, and seven none of them
    third[:80:5] += 1000
    third[1:80:5] += 1000  # agrees with the second in 112 of 128 places, with the first in 96
    assert near_duplicates(np.stack([third, row, second]), 0.8).tolist() == [0, 0, 0]
    assert near_duplicates(np.stack([third, row]), 0.8).tolist() == [0, 1]


def test_there_may_be_none_one_or_very_many_alike() -> None:
    assert near_duplicates(np.empty((0, 128), np.uint32)).tolist() == []
    assert near_duplicates(Signer().sign("alone")[None]).tolist() == [0]
    started = time.perf_counter()
    many = np.repeat(Signer().sign(text(1))[None], 20_000, axis=0)
    assert not near_duplicates(many).any()
    assert time.perf_counter() - started < 30  # all pairs would take minutes


def test_short_and_empty_texts_are_signed() -> None:
    signer = Signer(shingle=5)
    assert (signer.sign("two words") == signer.sign("two  words.")).all()
    assert (signer.sign("") == signer.sign(" \n")).all()
    assert not (signer.sign("") == signer.sign("word")).any()
    assert not (signer.sign("?!") == signer.sign("--- * ---")).any()  # without words: by their characters
    assert signer.sign("half a pair \ud83d").shape == (128,)


def test_languages_without_spaces_are_told_apart() -> None:
    one = "統計的機械学習の理論と応用について述べる文書である。" * 2
    assert (Signer().sign(one) == Signer().sign(one.replace("文書", "文章"))).mean() > 0.4
    thai = "ภาษาไทยไม่มีช่องว่างระหว่างคำในประโยคเดียวกัน"
    letters = Signer(unit="character", shingle=4)
    assert (letters.sign(thai) == letters.sign(thai[:-3] + "ปี")).mean() > 0.5
    assert (letters.sign(thai) == letters.sign(one)).mean() < 0.1


def test_shingles_of_characters_ignore_case_and_space_only() -> None:
    letters = Signer(unit="character", shingle=6)
    assert (letters.sign("A  b\nc d e f") == letters.sign("a b c d e f")).all()
    assert not (letters.sign("a b, c d e f") == letters.sign("a b c d e f")).all()
    with_words = Signer(shingle=6).sign("word " * 50)
    assert (with_words == Signer(shingle=6).sign("word " * 7)).all()  # one shingle, however often


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
    assert (time.perf_counter() - started) / 50 < 0.01  # 300 words; a fiftieth of that on a machine that is free
