"""Text tokenizers: no text is lost, the vocabulary follows from the texts, and others read the same file alike."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components import registry
from components.artifact import ArtifactError
from components.interfaces import TextTokenizer, TokenSpec
from components.registry import ComponentError
from components.text_tokenizers import stored
from components.text_tokenizers._texts import END, byte_letters

tokenizers = pytest.importorskip("tokenizers")
ROOT = Path(__file__).parent.parent
TEXTS = [*(ROOT / "README.md").read_text().splitlines(keepends=True), "naïve Ω ≈ 東京 🙂\r\n" * 3]
BPE, PLAIN = {"type": "bpe", "vocabulary": 400}, {"type": "bytes"}
#: every code point that UTF-8 has, and the end token's name more often than chance would write it
ANY = st.lists(st.text() | st.just(END) | st.sampled_from(["  ", "\0", "\r\n", "'s", "e\u0301"])).map("".join)


def fitted(spec: dict, texts: list[str] = TEXTS) -> TextTokenizer:
    made = registry.build(TextTokenizer, spec)
    made.fit(iter(texts))
    return made


FITTED = {spec["type"]: fitted(spec) for spec in (BPE, PLAIN)}
every = pytest.mark.parametrize("tokenizer", [pytest.param(made, id=name) for name, made in FITTED.items()])


class TestEveryTokenizer:
    def test_all_built_ins_are_tested(self) -> None:
        assert set(registry.names(TextTokenizer)) == set(FITTED)

    @every
    @given(texts=st.lists(ANY))
    def test_no_text_is_lost_and_none_has_the_end_in_it(self, tokenizer: TextTokenizer, texts: list[str]) -> None:
        tokens = tokenizer.encode(texts)
        assert tokenizer.decode(tokens) == texts
        for one in tokens:
            assert one.dtype == torch.int64 and one.ndim == 1
            assert ((one >= 0) & (one < tokenizer.vocabulary) & (one != tokenizer.end)).all()

    @every
    @given(ids=st.lists(st.integers(0, 256)))
    def test_whatever_is_drawn_is_text_up_to_the_end(self, tokenizer: TextTokenizer, ids: list[int]) -> None:
        before = ids[: ids.index(tokenizer.end)] if tokenizer.end in ids else ids
        theirs = tokenizers.Tokenizer.from_str(tokenizer.dump()).decode(before)
        assert tokenizer.decode([torch.tensor(ids, dtype=torch.int64)]) == [theirs]

    @every
    def test_its_spec(self, tokenizer: TextTokenizer) -> None:
        expected = TokenSpec((tokenizer.vocabulary,), 32, "sequence", end=tokenizer.end)
        assert tokenizer.spec(32) == expected
        assert 0 <= tokenizer.end < tokenizer.vocabulary

    @every
    def test_nothing_gives_nothing(self, tokenizer: TextTokenizer) -> None:
        assert tokenizer.encode([]) == [] == tokenizer.decode([])
        assert [one.shape for one in tokenizer.encode([""])] == [(0,)]

    @every
    def test_what_cannot_be_is_refused(self, tokenizer: TextTokenizer) -> None:
        with pytest.raises(ValueError, match=r"text 1, character 2: '\\ud800' alone is no text"):
            tokenizer.encode(["whole", "ab\ud800"])
        for wrong in (torch.tensor([-1]), torch.tensor([tokenizer.vocabulary])):
            with pytest.raises(ValueError, match=f"from 0 to {tokenizer.vocabulary - 1}"):
                tokenizer.decode([wrong])
        for wrong in (torch.zeros(1, 2).long(), torch.zeros(2)):
            with pytest.raises(ValueError, match=r"\[T\] int64"):
                tokenizer.decode([wrong])


class TestFiles:
    @every
    @given(text=ANY)
    @settings(max_examples=30, deadline=None)
    def test_others_read_the_same_ids(self, tokenizer: TextTokenizer, text: str, tmp_path_factory) -> None:
        transformers = pytest.importorskip("transformers")
        path = tmp_path_factory.mktemp("other") / "tokenizer.json"
        path.write_text(tokenizer.dump(), encoding="utf-8")
        expected = tokenizer.encode([text])[0].tolist()
        raw = tokenizers.Tokenizer.from_file(str(path))
        # both take the end's name for the end unless they are told that it is text
        raw.encode_special_tokens = True
        fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), split_special_tokens=True)
        assert raw.encode(text).ids == expected == fast(text)["input_ids"]
        assert raw.token_to_id(END) == tokenizer.end == fast.convert_tokens_to_ids(END)
        assert raw.get_vocab_size() == tokenizer.vocabulary == len(fast)
        if END not in text:
            plain = tokenizers.Tokenizer.from_file(str(path))
            assert plain.encode(text).ids == expected and plain.decode(expected) == text

    @every
    def test_out_and_back_is_the_same_to_the_last_bit(self, tokenizer: TextTokenizer, tmp_path: Path) -> None:
        name = next(key for key, made in FITTED.items() if made is tokenizer)
        spec = registry.resolve(TextTokenizer, {"bpe": BPE, "bytes": PLAIN}[name]).dump()
        stored.save(tmp_path / "a", spec, tokenizer)
        again = stored.load(tmp_path / "a")
        stored.save(tmp_path / "b", spec, again)
        assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(stored.FILES)
        for file in stored.FILES:
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        texts = [*TEXTS, END]
        assert all(map(torch.equal, again.encode(texts), tokenizer.encode(texts)))

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("config.json", None, "config.json is missing"),
            ("tokenizer.json", None, "tokenizer.json is missing"),
            ("config.json", "{", "not the configuration of a component"),
            ("config.json", '{"format": 1, "kind": "Tokenizer", "spec": {}}', "expected a TextTokenizer, found a Tokenizer"),
            ("config.json", '{"format": 9, "kind": "TextTokenizer", "spec": {}}', "format 9 is newer"),
            ("tokenizer.json", "{}", "not readable by tokenizers"),
            ("tokenizer.json", FITTED["bytes"].dump(), "expected '<|end|>' to be token 0, it is 256"),
        ],
    )  # fmt: skip
    def test_what_is_damaged_is_named(self, tmp_path: Path, file: str, content: str | None, message: str) -> None:
        stored.save(tmp_path, BPE, FITTED["bpe"])
        (tmp_path / file).unlink()
        if content is not None:
            (tmp_path / file).write_text(content)
        with pytest.raises(ArtifactError, match=re.escape(message)):
            stored.load(tmp_path)

    def test_a_file_of_another_size_is_named(self, tmp_path: Path) -> None:
        stored.save(tmp_path, BPE | {"vocabulary": 300}, FITTED["bpe"])
        with pytest.raises(ArtifactError, match="expected 300 tokens, there are 400"):
            stored.load(tmp_path)

    def test_bytes_are_only_bytes(self, tmp_path: Path) -> None:
        stored.save(tmp_path, PLAIN, FITTED["bpe"])
        with pytest.raises(ArtifactError, match="not the vocabulary of plain bytes"):
            stored.load(tmp_path)


def learnt(words: Counter[str], vocabulary: int, least: int) -> list[tuple[str, str]]:
    """Byte-pair encoding by counting everything anew before each merge; of equal counts the lower pair of ids."""
    letters = byte_letters()
    ids = {letter: number for number, letter in enumerate(sorted(letters), start=1)}
    pieces = {word: [letters[byte] for byte in word.encode()] for word in words}
    merges: list[tuple[str, str]] = []
    while len(ids) + 1 < vocabulary:
        counts: Counter[tuple[str, str]] = Counter()
        for word, found in pieces.items():
            for pair in pairwise(found):
                counts[pair] += words[word]
        best = min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]), default=None)
        if best is None or counts[best] < least:
            break
        merges.append(best)
        ids.setdefault("".join(best), len(ids) + 1)
        pieces = {word: merged(found, best) for word, found in pieces.items()}
    return merges


def merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """From left to right, every place where the pair stands becomes one piece."""
    found: list[str] = []
    at = 0
    while at < len(pieces):
        width = 2 if tuple(pieces[at : at + 2]) == pair else 1
        found.append("".join(pieces[at : at + width]))
        at += width
    return found


SOME = st.lists(st.text("abcde ", max_size=40), min_size=1, max_size=6)
CUT = re.compile(r" ?[a-e]+|\s+(?!\S)|\s+")


class TestBPE:
    @given(texts=SOME, extra=st.integers(0, 25), least=st.integers(1, 3))
    @settings(max_examples=150, deadline=None)
    def test_it_learns_and_encodes_as_brute_force_does(self, texts: list[str], extra: int, least: int) -> None:
        words = Counter(word for text in texts for word in CUT.findall(text))
        expected = learnt(words, 257 + extra, least)
        size = 257 + len({"".join(pair) for pair in expected})
        tokenizer = fitted({"type": "bpe", "vocabulary": size, "min_frequency": least}, texts)
        model = json.loads(tokenizer.dump())["model"]
        assert [tuple(pair) for pair in model["merges"]] == expected
        letters = byte_letters()
        for text, tokens in zip(texts, tokenizer.encode(texts), strict=True):
            pieces: list[str] = []
            for word in CUT.findall(text):
                found = [letters[byte] for byte in word.encode()]
                for pair in expected:
                    found = merged(found, pair)
                pieces += found
            assert tokens.tolist() == [model["vocab"][piece] for piece in pieces]

    def test_the_vocabulary_is_as_large_as_asked(self) -> None:
        for size in (257, 258, 300, 511):
            vocabulary = json.loads(fitted({"type": "bpe", "vocabulary": size}).dump())["model"]["vocab"]
            assert sorted(vocabulary.values()) == list(range(size))
        assert max(int(tokens.max()) for tokens in FITTED["bpe"].encode(TEXTS)) == 399

    def test_without_merges_tokens_are_bytes(self) -> None:
        tokenizer = fitted({"type": "bpe", "vocabulary": 257})
        assert [len(tokens) for tokens in tokenizer.encode(TEXTS)] == [len(text.encode()) for text in TEXTS]

    def test_the_order_of_the_texts_and_the_process_change_nothing(self) -> None:
        expected = FITTED["bpe"].dump()
        assert fitted(BPE, TEXTS[::-1]).dump() == expected
        code = (
            "import json, sys; from components import registry; from components.interfaces import TextTokenizer\n"
            "spec, texts = json.load(sys.stdin.buffer); made = registry.build(TextTokenizer, spec); made.fit(texts)\n"
            "sys.stdout.buffer.write(made.dump().encode())"
        )
        given = json.dumps([BPE, TEXTS[3:] + TEXTS[:3]]).encode()
        for threads in ("1", "3"):
            environment = {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
            done = subprocess.run(
                [sys.executable, "-c", code], input=given, cwd=ROOT, env=environment, capture_output=True
            )
            assert done.stdout.decode() == expected, done.stderr

    def test_more_is_learnt_where_more_is_asked_and_nothing_else(self) -> None:
        small, large = (json.loads(fitted(BPE | {"vocabulary": size}).dump())["model"]["merges"] for size in (300, 400))
        assert large[: len(small)] == small

    @pytest.mark.parametrize(
        ("spec", "texts", "message"),
        [
            ({"type": "bpe", "vocabulary": 256}, TEXTS, "at least 257 tokens (the 256 bytes and the end), got 256"),
            ({"type": "bpe", "vocabulary": 300}, ["abab"], "expected 300 tokens, there are 258"),
            ({"type": "bpe", "vocabulary": 258}, [], "expected 258 tokens, there are 257"),
            ({"type": "bpe", "vocabulary": 258, "min_frequency": 3}, ["ab", "ab"], "with min_frequency 3"),
        ],
    )
    def test_a_vocabulary_that_cannot_be_is_refused(self, spec: dict, texts: list[str], message: str) -> None:
        with pytest.raises(ComponentError, match=re.escape(message)) as raised:
            fitted(spec, texts)
        assert raised.value.path == ("vocabulary",)

    def test_before_it_is_fitted_it_says_so(self) -> None:
        for use in (lambda t: t.encode(["a"]), lambda t: t.decode([torch.tensor([1])]), lambda t: t.dump()):
            with pytest.raises(ValueError, match="no vocabulary yet"):
                use(registry.build(TextTokenizer, BPE))

    def test_half_a_character_among_the_texts_is_named(self) -> None:
        with pytest.raises(ValueError, match="text 1, character 0"):
            fitted(BPE, ["a", "\udfff"])


def test_bytes_are_those_of_utf_8() -> None:
    text = "naïve 東京 🙂\0"
    assert FITTED["bytes"].encode([text])[0].tolist() == list(text.encode())
