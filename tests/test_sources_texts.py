"""Sources of texts: folders of files, JSON lines, and the texts that come with Python and Debian."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import registry
from components.data.locations import SourceError
from components.data.sources import _parts, _roff
from components.data.sources._text import pieces
from components.interfaces import Broken, Sample, Source
from tests._sources import broken, page, put, read


def of(kind: str, folder: Path, **config) -> dict[str, Sample | Broken]:
    return read(registry.build(Source, {"type": kind, "path": str(folder), **config}))


# ----------------------------------------------------------------------------------------------------------- pieces


@given(st.text(alphabet="ab \n\r\té", max_size=200), st.integers(min_value=1, max_value=60))
def test_pieces_are_the_text_and_none_is_too_long(text, size):
    found = list(pieces(text, size))
    assert "".join(found) == text
    assert all(0 < len(piece) <= size for piece in found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("one\n\ntwo\n\nthree", ["one\n\ntwo\n\n", "three"]),
        ("one\r\n\r\ntwo\r\nthree", ["one\r\n\r\n", "two\r\nthree"]),
        ("one\ntwo\nthree", ["one\ntwo\n", "three"]),
        ("one two three", ["one two ", "three"]),
        ("onetwothreefour", ["onetwothreef", "our"]),
        ("short", ["short"]),
        ("exactly 12 c", ["exactly 12 c"]),
    ],
)
def test_a_piece_ends_where_the_text_does(text, found):
    assert list(pieces(text, 12)) == found


# ------------------------------------------------------------------------------------------------------------ files


def test_a_file_is_a_document_and_its_folder_the_label(tmp_path):
    put(tmp_path, {"en/a b.txt": "one\r\ntwo", "de/ä/x.md": "\ufeffdrei", "top": "four", ".git/x": "hidden"})
    assert list(of("text_files", tmp_path).values()) == [
        Sample("de/ä/x.md", text="drei", label="de"),
        Sample("en/a b.txt", text="one\r\ntwo", label="en"),
        Sample("top", text="four"),
    ]


def test_only_files_with_these_endings(tmp_path):
    put(tmp_path, {"a.py": "1", "b.MD": "2", "c.txt": "3"})
    assert list(of("text_files", tmp_path, endings=[".py", ".md"])) == ["a.py", "b.MD"]
    with pytest.raises(SourceError, match=r"holds no texts \(\.rst\); found 'a.py'"):
        of("text_files", tmp_path, endings=[".rst"])


def test_pieces_of_a_file_are_numbered_and_nothing_but_space_is_left_out(tmp_path):
    put(tmp_path, {"d/a.txt": "one paragraph\n\n" + " " * 49 + "another one\n\nthird"})
    found = of("text_files", tmp_path, piece=16)
    assert [sample.text.strip() for sample in found.values()] == ["one paragraph", "another one", "third"]
    assert all(re.fullmatch(r"d/a\.txt#\d", key) and sample.label == "d" for key, sample in found.items())


def test_what_is_no_text_is_broken(tmp_path):
    put(tmp_path, {"empty": "", "space": " \n\t", "latin": "caf\xe9".encode("latin-1"), "wide": "text".encode("utf-16"),
                   "binary": b"MZ\x00\x01", "png": b"\x89PNG\r\n", "good": "é"})  # fmt: skip
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert broken(of("text_files", tmp_path)) == {
        "empty": "the file is empty",
        "space": "it holds no text",
        "latin": "not UTF-8: byte 3 is 0xe9",
        "wide": "the text is UTF-16; save it as UTF-8",
        "binary": "binary data, not text",
        "png": "not UTF-8: byte 0 is 0x89",
        "gone": "cannot be read: No such file or directory",
    }


def test_a_name_that_is_not_utf8_is_a_key_that_can_be_stored(tmp_path):
    Path(tmp_path, b"b\xff".decode("utf-8", "surrogateescape")).write_text("text")
    assert of("text_files", tmp_path) == {"b\\xff": Sample("b\\xff", text="text")}


@pytest.mark.slow
def test_ten_thousand_empty_files_take_seconds(tmp_path):
    import time

    for number in range(10_000):
        (tmp_path / f"{number:05d}.txt").touch()
    begun = time.perf_counter()
    for kind in ("text_files", "image_folder", "audio_folder"):
        found = of(kind, tmp_path)
        assert len(found) == 10_000 and set(broken(found).values()) == {"the file is empty"}
    assert time.perf_counter() - begun < 20
    assert len(registry.build(Source, {"type": "text_files", "path": str(tmp_path)}).parts()) == 10


# ------------------------------------------------------------------------------------------------------- JSON lines


def lines(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["x.jsonl", "x.ndjson", "x.json", "x.JSONL"])
@pytest.mark.parametrize("squeezed", [False, True])
def test_a_line_is_a_sample_and_its_key_the_byte_where_it_begins(tmp_path, name, squeezed):
    data = lines({"text": "é", "label": 1}, {"text": "two", "label": None}).encode()
    put(tmp_path, {name: gzip.compress(data) if squeezed else data})
    second = data.index(b"\n") + 1
    assert list(of("jsonl", tmp_path).values()) == [
        Sample(f"{name}#0", text="é", label="1"),
        Sample(f"{name}#{second}", text="two"),
    ]


def test_names_of_the_columns(tmp_path):
    put(tmp_path, {"x.jsonl": lines({"body": "a", "topic": "b", "text": "c"})})
    assert of("jsonl", tmp_path, text="body", label="topic") == {"x.jsonl#0": Sample("x.jsonl#0", text="a", label="b")}


@pytest.mark.parametrize("step", [1, 2, 7, 20, 64, 1000])
@pytest.mark.parametrize("end", ["\n", ""])
def test_a_large_file_is_divided_and_no_line_is_lost_or_read_twice(tmp_path, monkeypatch, step, end):
    rows = [{"text": "x" * (number % 30 + 1)} for number in range(40)]
    put(tmp_path, {"x.jsonl": "\n" + lines(*rows).replace("\n", "\r\n").rstrip() + end})
    whole = list(of("jsonl", tmp_path).values())
    monkeypatch.setattr(_parts, "BYTES", step)
    source = registry.build(Source, {"type": "jsonl", "path": str(tmp_path)})
    assert [sample for part in source.parts() for sample in source.read(part)] == whole
    assert [sample.text for sample in whole] == [row["text"] for row in rows]
    assert len(source.parts()) == -(-(tmp_path / "x.jsonl").stat().st_size // step)


def test_faults_of_single_lines(tmp_path):
    rows = [b'{"text": "good"}', b"{", b"3", b'{"txt": "x", "id": 1}', b'{"text": null}', b'{"text": ["a"]}', b'{"text": ""}',
            b'{"text": "\\ud800"}', b'{"text": "\xff"}', b"[" * 100_000, b"{}", b"   ", b'{"text": "end"}']  # fmt: skip
    found = of("jsonl", put(tmp_path, {"x.jsonl": b"\n".join(rows)}))
    assert [sample.text for sample in found.values() if isinstance(sample, Sample)] == ["good", "end"]
    reasons = list(broken(found).values())
    assert reasons[0].startswith("not JSON: Expecting property name")
    assert reasons[1:8] == [
        "expected an object, found int",
        "expected a text in 'text'; there is txt, id",
        "expected a text in 'text'; 'text' is null",
        "expected a text in 'text'; 'text' is [\"a\"]",
        "it holds no text",
        "it holds half a character (\\ud800 at 0)",
        "not UTF-8: byte 10 is 0xff",
    ]
    assert reasons[8].startswith("not JSON: ")
    assert reasons[9] == "expected a text in 'text'; the object is empty"


def test_faults_of_whole_files(tmp_path, monkeypatch):
    squeezed = gzip.compress(lines(*({"text": f"{n} {n * 7919 % 1000}"} for n in range(2000))).encode())
    put(tmp_path, {"empty.jsonl": "", "array.json": ' [{"text": "a"},\n{"text": "b"}]\n', "cut.jsonl.gz": squeezed[:-2000],
                   "torn.jsonl.gz": squeezed[:3000] + bytes(500) + squeezed[3500:], "not.jsonl.gz": lines({"text": "plain"}),
                   "bytes.jsonl": b"\x00\x01\x02", "ok.txt": "not read"})  # fmt: skip
    found = of("jsonl", tmp_path)
    reasons = broken(found)
    assert reasons["empty.jsonl"] == "the file is empty"
    assert reasons["array.json"].startswith("it holds one JSON array; expected one object a line")
    assert reasons["cut.jsonl.gz"].startswith("damaged after byte ")
    assert reasons["torn.jsonl.gz"].startswith("damaged after byte ")
    assert found["not.jsonl.gz#0"].text == "plain"
    assert 100 < len([key for key in found if key.startswith("cut.jsonl.gz#")]) < 2000
    assert not any(key.startswith("ok") for key in found)
    monkeypatch.setattr(_parts, "BYTES", 5)
    assert of("jsonl", tmp_path / "array.json").keys() == {"array.json"}, "said once, not once a piece"


def test_a_folder_without_lines(tmp_path):
    with pytest.raises(SourceError, match="holds no JSON lines"):
        of("jsonl", put(tmp_path, {"x.txt": "a"}))


# ---------------------------------------------------------------------------------------------- installed with Python


def test_the_standard_library_is_what_python_imports(tmp_path):
    import json.decoder as decoder

    found = read(registry.build(Source, {"type": "python_stdlib", "packages": ["json", "abc"]}))
    assert {sample.label for sample in found.values()} == {"json", "abc"}
    assert found["json/decoder.py"].text == Path(decoder.__file__).read_text()
    with pytest.raises(SourceError, match="has no source of jsn"):
        registry.build(Source, {"type": "python_stdlib", "packages": ["json", "jsn"]}).parts()


def test_the_whole_standard_library_without_what_others_installed():
    source = registry.build(Source, {"type": "python_stdlib"})
    files = [name for part in source.parts() for name in part.files]
    assert len(files) > 500 and files == sorted(set(files))
    assert not any("site-packages" in name or "dist-packages" in name for name in files)


def test_a_module_in_the_encoding_that_it_declares(tmp_path, monkeypatch):
    from components.data.sources import python_stdlib

    put(tmp_path, {"a.py": "# coding: latin-1\nx = '\xe9'\n".encode("latin-1"), "b.py": b"x = '\xe9'\n", "c/__init__.py": "",
                   "d.py": b"# coding: none-such\n", "site-packages/e.py": "x = 1", "c/f.py": "x = 'é'"})  # fmt: skip
    monkeypatch.setattr(python_stdlib, "_root", lambda: tmp_path)
    found = read(registry.build(Source, {"type": "python_stdlib"}))
    assert found["a.py"].text == "# coding: latin-1\nx = 'é'\n"
    assert set(broken(found)) == {"b.py", "d.py"}
    assert set(found) == {"a.py", "b.py", "c/f.py", "d.py"}
    assert found["c/f.py"].label == "c"


def test_the_topics_of_help_are_english_documents():
    found = read(registry.build(Source, {"type": "pydoc_text"}))
    assert len(found) > 50
    assert "assert" in found["pydoc/assert"].text
    assert sum(len(sample.text) for sample in found.values()) > 300_000


# ---------------------------------------------------------------------------------------------------- manual pages


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (".SH NAME\nls \\- list\n", "NAME\n\nls - list"),
        (".PP\none\ntwo\n.PP\nthree\n\nfour", "one two\n\nthree\n\nfour"),
        (".TP\n\\fB\\-a\\fR, \\fB\\-\\-all\\fR\nshow all\n.TP\n.B \\-b\nbytes", "-a, --all show all\n\n-b bytes"),
        (".BR ls (1),\n.IR file .txt\n.B bold words\n.I \"kept together\"", "ls(1), file.txt bold words kept together"),
        (".IP \\(bu 4\nfirst\n.IP \\[bu]\nsecond", "• first\n\n• second"),
        (".nf\nline 1\n    line 2\n.fi\nfilled\nagain", "line 1\n    line 2\n\nfilled again"),
        (".\\\" a comment\ntext \\\" and another\n'\\\" one more", "text"),
        (".de XX\nhidden\n..\n.ig\nhidden\n..\n.TS\nhidden\n.TE\nshown", "shown"),
        (".if n shown\n.if t hidden\n.ie n \\{\\\nyes\n.\\}\n.el \\{\\\nno\n.\\}\nend", "shown yes end"),
        (".if t \\{\nhidden\n.if n \\{ hidden \\}\nhidden \\}\nshown", "shown"),
        (".if !'po4a'hide' .BR -d , \\ --debug\nhelp", "-d, --debug help"),
        ("\\*(lqquoted\\*(rq \\(lqtoo\\(rq caf\\['e] \\[u00E9] na\\(:ive \\s+1big\\s0 \\f(CWcode\\fP \\e",
         "“quoted” “too” café é nave big code \\"),
        ("\\&.dot\n\\&'quote", ".dot 'quote"),
        ("line \\\ncontinued", "line continued"),
        (".Nm tool\n.Op Fl v Ar file\n.Sh SEE ALSO\n.Xr ls 1 ,\n.Fl Fl help", "tool -v file\n\nSEE ALSO\n\nls 1 , --help"),
        (".so man1/other.1", ""),
        (".TH ONLY 1", ""),
        (".B \"never closed\n.SH", "never closed\n\n"),
    ],
)  # fmt: skip
def test_a_pages_macros_go_and_its_words_stay(source, text):
    assert _roff.text(source) == text


@given(st.text(alphabet=".'\\\"{}[]()fBRIPSHielnt-* \nab", max_size=120))
def test_any_source_of_a_page_becomes_text(source):
    assert isinstance(_roff.text(source), str)


def test_pages_by_language(tmp_path):
    put(tmp_path, {"man1/a.1.gz": page("english"), "man7/b.7": ".SH NAME\nb \\- plain", "de/man1/a.1.gz": page("deutsch"),
                   "pt_BR/man1/a.1.gz": page("português"), "man1/alias.1": ".so man1/a.1", "man1/latin.1": b".SH N\n\xe9",
                   "man1/cut.1.gz": page("words " * 50)[:-20], "whatis": "no page", "cat1/a.1": "no page"})  # fmt: skip
    (tmp_path / "man1" / "link.1.gz").symlink_to("a.1.gz")
    found = read(
        registry.build(
            Source, {"type": "man_pages", "root": str(tmp_path), "languages": ["en", "de", "pt_BR"], "least": 1}
        )
    )
    assert [(key, sample.label) for key, sample in found.items() if isinstance(sample, Sample)] == [
        ("man1/a.1.gz", "en"), ("man7/b.7", "en"), ("de/man1/a.1.gz", "de"), ("pt_BR/man1/a.1.gz", "pt_BR"),
    ]  # fmt: skip
    assert found["de/man1/a.1.gz"].text == "NAME\n\nx - deutsch"
    assert set(broken(found)) == {"man1/latin.1", "man1/cut.1.gz"}
    sections = registry.build(Source, {"type": "man_pages", "root": str(tmp_path), "sections": "7", "least": 1})
    assert list(read(sections)) == ["man7/b.7"]


@pytest.mark.parametrize(
    ("language", "package"),
    [("de", "manpages-de"), ("pt_BR", "manpages-pt-br"), ("zh_CN", "manpages-zh"), ("en", "manpages")],
)
def test_a_language_that_is_not_installed_names_its_package(tmp_path, language, package):
    put(tmp_path, {"de/man1/one-page-of-some-program.1": page("x")})
    source = registry.build(Source, {"type": "man_pages", "root": str(tmp_path), "languages": [language]})
    with pytest.raises(
        SourceError, match=f"the language '{language}' is not installed .*apt-get install {package}\\)"
    ) as error:
        source.parts()
    assert error.value.user_error


def test_a_limit_takes_pages_from_everywhere(tmp_path):
    put(tmp_path, {f"man1/{n:03d}.1": page(str(n)) for n in range(100)})
    found = read(registry.build(Source, {"type": "man_pages", "root": str(tmp_path), "limit": 4}))
    assert list(found) == [f"man1/{n:03d}.1" for n in (0, 25, 50, 75)]


@pytest.mark.skipif(len(list(Path("/usr/share/man/man1").glob("*"))) < 100, reason="the manual pages are not installed")
def test_the_pages_of_this_machine_become_prose():
    found = read(registry.build(Source, {"type": "man_pages", "limit": 200}))
    texts = [sample.text for sample in found.values() if isinstance(sample, Sample)]
    assert len(texts) > 150
    words = " ".join(texts).split()
    assert sum(word in {"the", "of", "a", "to", "is"} for word in words) > 0.04 * len(words)
    escapes = sum(len(re.findall(r"\\f[BIRP(\[]|\\\(|\\&|\\-", text)) for text in texts)
    macros = sum(len(re.findall(r"^\.(SH|PP|TP|IP|B|I|BR)\b", text, re.MULTILINE)) for text in texts)
    assert escapes + macros < len(texts) / 20
