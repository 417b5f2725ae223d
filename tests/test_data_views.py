"""`tessera data show | diff` and `tessera lineage --sample`: true to the index, quick, and safe with whatever is in the data."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from components import yamlio
from components.data.files import Folder
from components.data.shards import content_hash
from components.interfaces import Broken, ImageFormat, Sample
from flows import data_index, data_views, samples
from flows.data_index import DataViewError, compare
from flows.data_terminal import content, drawn, envelope, line
from infra import datasets
from infra.expectations import drift
from infra.settings import Settings
from tests import _data

NASTY = "[bold]\x1b[2Jx[/bold]"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(project=tmp_path / "project", home=Path(".tessera"))


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is printed on a terminal without colours, 300 letters wide."""
    file = io.StringIO()
    for module in (data_views, samples):
        monkeypatch.setattr(module, "console", Console(file=file, width=300, highlight=False))
    monkeypatch.setattr("flows.terminal.console", Console(file=file, width=300, highlight=False))
    return file


def pictures(numbers: Sequence[int], label: str | None = None) -> list[Sample | Broken]:
    return [Sample(f"n/{n}.png", _data.picture(n), label=label or ("cat" if n % 3 else "dog")) for n in numbers]


def image_data(folder: Path, given: Sequence[Sample | Broken], **options: Any) -> Path:
    return _data.write(folder, given, image=ImageFormat(16, 3), **options)


def commit(settings: Settings, name: str, data: Path, here: bool = True, **stages: dict[str, Any]) -> str:
    """A run with this data set in the store, and in its folder too if it is `here`; further stages with deps and outs,
    path -> hash, of which "data" stands for that of the data set. Returns that hash."""
    run = settings.runs / name
    store, files = datasets.store(settings), Folder(data)
    tree = datasets.seal(store, [store.put_file(part, files.path(part)) for part in files.names()]).md5
    (run / "outputs").mkdir(parents=True, exist_ok=True)
    source = {"type": "image_folder", "path": "pictures"}
    (run / "recipe.yaml").write_text(yamlio.dump({"system": "s", "dataset": {"source": source, "target": None}}))
    (run / "dvc.yaml").write_text(yamlio.dump({"stages": {stage: {"cmd": "true"} for stage in ("dataset", *stages)}}))
    entries = {"dataset": {"outs": {"outputs/dataset": tree}}, **stages}
    lock = {
        stage: {
            side: [{"path": path, "md5": tree if digest == "data" else digest} for path, digest in ends.items()]
            for side, ends in entry.items()
        }
        for stage, entry in entries.items()
    }
    (run / "dvc.lock").write_text(yamlio.dump({"stages": lock}))
    shutil.rmtree(run / "outputs" / "dataset", ignore_errors=True)
    if here:
        shutil.copytree(data, run / "outputs" / "dataset")
    return tree


def earlier(settings: Settings, name: str, stage: str, inputs: dict[str, str], outputs: dict[str, str]) -> None:
    """A lineage event of a run, of what it has done once."""
    path = settings.runs / name / "events" / f"{stage}-{len(outputs)}{next(iter(outputs.values()))[:8]}.json"
    path.parent.mkdir(exist_ok=True)
    ends = {
        side: [{"name": digest, "facets": {"tessera": {"path": where}}} for where, digest in given.items()]
        for side, given in (("inputs", inputs), ("outputs", outputs))
    }
    path.write_text(json.dumps({"job": {"name": stage}, "eventTime": "2026-01-01", **ends}))


# --------------------------------------------------------------------------------------------------------- opening


def test_a_data_set_is_a_folder_or_a_run_by_name_or_folder(settings: Settings, tmp_path: Path) -> None:
    data = image_data(tmp_path / "data", pictures(range(20)))
    commit(settings, "here", data)
    commit(settings, "there", data, here=False)
    names = Folder(data).names()
    for what in (str(data), "here", "there", str(settings.runs / "here"), str(settings.runs / "there")):
        files = data_views.open_data(settings, what)
        assert list(files.names()) == names
        assert files.path("dataset.json").read_bytes() == (data / "dataset.json").read_bytes()


def test_what_is_no_data_set_is_refused_with_what_to_do(settings: Settings, tmp_path: Path) -> None:
    commit(settings, "flowers-tiny", image_data(tmp_path / "data", pictures(range(20))))
    with pytest.raises(DataViewError, match=r"no data set 'flower-tiny'.*flowers-tiny.*`tessera runs`"):
        data_views.open_data(settings, "flower-tiny")
    with pytest.raises(DataViewError, match="no data set '../Some Thing'"):
        data_views.open_data(settings, "../Some Thing")
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataViewError, match=r"photos holds no data set.*--data"):
        data_views.open_data(settings, str(tmp_path / "photos"))
    shutil.rmtree(tmp_path / "data" / "index")
    with pytest.raises(DataViewError, match="no index"):
        compare(Folder(tmp_path / "data"), Folder(tmp_path / "data"))


# ------------------------------------------------------------------------------------------------------------ show


def test_show_says_what_there_is(settings: Settings, tmp_path: Path, printed: io.StringIO) -> None:
    refused = [Broken(f"{n}.txt", f"not UTF-8: byte {n} is 0x8{n}") for n in range(7)]
    given = [*pictures(range(60)), *pictures(range(5)), *refused, Broken("x.png", "the file is empty")]
    data = image_data(tmp_path / "data", given)
    commit(settings, "run", data)
    data_views.show(settings, "run", None)
    text = printed.getvalue()
    about = json.loads((data / "dataset.json").read_text())
    assert "pictures, seen as 16 x 16 in colour" in text
    assert "source  type: image_folder, path: pictures" in text
    for name, split in about["splits"].items():
        assert [name, str(split["rows"]), str(split["shards"])] in [row.split()[:3] for row in text.splitlines()]
    assert "2 classes: cat 40, dog 20" in text
    assert "73 read, 5 duplicates left out, 8 broken, 0 in quarantine" in text
    assert "7  not UTF-8: byte … is …: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt, …\n" in text
    assert "1  the file is empty: x.png\n" in text
    assert "mode  RGB 100.0%" in text
    assert any(row.split() == ["width", "24", "24", "24", "24"] for row in text.splitlines())


def test_quantiles_are_those_of_the_facts(tmp_path: Path) -> None:
    given = [Sample(f"{n}", _data.picture(n, (8 + n, 20))) for n in range(50)]
    files = Folder(image_data(tmp_path, given))
    found = data_index.summary(data_index.column(files, "width"))
    widths = np.arange(8, 58)
    assert found == {
        "mean": widths.mean(),
        "5%": pytest.approx(np.quantile(widths, 0.05)),
        "median": np.median(widths),
        "95%": pytest.approx(np.quantile(widths, 0.95)),
        "without": 0,
    }
    assert data_index.summary(data_index.column(files, "caption_length")) == {"without": 50}
    assert data_index.summary(pd.Series(["RGB", "RGB", "L", None])) == {
        "shares": {"RGB": 2 / 3, "L": 1 / 3},
        "without": 1,
    }


def test_only_one_shard_a_split_is_read_to_show_and_none_to_compare(
    settings: Settings, tmp_path: Path, printed: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = _data.Counting(Folder(image_data(tmp_path, pictures(range(500)))))
    monkeypatch.setattr(data_views, "open_data", lambda *_: files)
    data_views.show(settings, str(tmp_path), None)
    assert (files.asked["train"], files.asked["held_out"]) == (1, 1)
    compare(files, files)
    assert (files.asked["train"], files.asked["held_out"]) == (1, 1)


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        (Sample("a", text="First line,\n\n  second\tline."), "First line, second line."),
        (Sample("a", text=NASTY), "[bold]·[2Jx[/bold]"),
        (Sample("a", text="word " * 100), "word " * 19 + "word…"),
        (Sample("a", array=_data.array(np.array([[1.0, -2.5, np.nan]]))), "1 x 3, -2.5 to 1"),
        (Sample("a", array=b"nothing"), "cannot be shown: not an array of numbers"),
        (Sample("a", audio=b"nothing"), "cannot be shown: not a sound"),
        (Sample("a", image=b"x", caption="a cat"), "a cat"),
    ],
)
def test_a_sample_is_a_line(sample: Sample, told: str) -> None:
    from components.data.shards import row_of

    assert content(row_of(sample, content_hash(sample), "source")).rstrip() == told


def test_a_sound_is_drawn_as_its_envelope() -> None:
    """A tone whose amplitude halves at each sixth: a step of 6 dB down."""
    parts = [np.full(8000, 0.999 * 0.5**n) * np.sign(np.sin(np.arange(8000) * 0.05)) for n in range(6)]
    assert envelope(_data.sound(np.concatenate(parts), 8000), 6) == "█▇▆▅▄▃"
    assert envelope(_data.sound(np.zeros(8000)), 4) == "    "


def test_pictures_are_drawn_in_half_blocks() -> None:
    """What a true-colour terminal shows has the colours of the picture, two pixels a letter."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    picture = _data.encoded(Image.fromarray(pixels))
    text = drawn([picture, b"damaged"], width=36)  # 16 letters each
    rows = text.plain.splitlines()
    assert rows == ["▀" * 16 + "  " + "▀" * 16 + "  "] * 8
    shown = np.array([[*span.style.color.triplet, *span.style.bgcolor.triplet] for span in styled(text)])
    shown = shown.reshape(8, 32, 2, 3)  # rows of letters, letters, upper and lower pixel, colour
    assert (shown[:, :16].transpose(0, 2, 1, 3).reshape(16, 16, 3) == pixels).all()
    assert not shown[:, 16:].any()
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system="truecolor", width=80).print(text)
    assert f"38;2;{';'.join(map(str, pixels[0, 0]))};48;2;{';'.join(map(str, pixels[1, 0]))}m▀" in file.getvalue()


def styled(text: Any) -> list[Any]:
    from rich.style import Style

    return [span._replace(style=Style.parse(span.style)) for span in text.spans]


@pytest.mark.parametrize(("terminal", "drawn_"), [(True, True), (False, False)])
def test_pictures_are_drawn_on_terminals_only(
    terminal: bool, drawn_: bool, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    monkeypatch.setattr(
        data_views, "console", Console(file=file, force_terminal=terminal, color_system="truecolor", width=200)
    )
    monkeypatch.setattr("flows.terminal.console", Console(file=io.StringIO()))
    data_views.show(settings, str(image_data(tmp_path, pictures(range(20)))), None)
    assert ("▀" in file.getvalue()) == drawn_


def test_names_that_look_like_markup_are_shown_as_they_are(
    settings: Settings, tmp_path: Path, printed: io.StringIO
) -> None:
    given = [Sample(f"{NASTY}/{n}", text=f"text {n} {NASTY}", label=NASTY) for n in range(30)]
    data = _data.write(tmp_path / "a", [*given, Broken(NASTY, NASTY)])
    data_views.show(settings, str(data), None)
    other = _data.write(
        tmp_path / "b", given[:20] + [Sample(f"x{n}", text=f"more {n}", label="[x]") for n in range(10)]
    )
    data_views.diff(settings, str(data), str(other), as_json=False)
    text = printed.getvalue()
    assert "\x1b" not in text
    assert f"1 classes: {line(NASTY)} 30" in text
    assert any(row.split()[0] == "[x]" for row in text.splitlines() if row.strip())


def test_the_page_is_written_whole(settings: Settings, tmp_path: Path, printed: io.StringIO) -> None:
    data = image_data(tmp_path / "data", pictures(range(20)))
    data_views.show(settings, str(data), tmp_path / "pages" / "page.html")
    assert (tmp_path / "pages" / "page.html").read_text().rstrip().endswith("</html>")
    assert str(tmp_path / "pages" / "page.html") in printed.getvalue()


# ------------------------------------------------------------------------------------------------------------ diff


def test_a_data_set_and_itself_are_the_same(settings: Settings, tmp_path: Path, printed: io.StringIO) -> None:
    data = image_data(tmp_path, pictures(range(40)))
    found = compare(Folder(data), Folder(data))
    assert found["rows"] == {"a": 40, "b": 40, "kept": 40}
    assert all(found[what] == {"count": 0, "some": []} for what in ("added", "removed", "moved", "relabelled"))
    assert (found["labels"], found["new_reasons"]) == ({}, {})
    assert found["facts"]
    assert all(fact["psi"] == 0 and fact["a"] == fact["b"] for fact in found["facts"].values())
    data_views.diff(settings, str(data), str(data), as_json=False)
    assert "the samples are the same" in printed.getvalue()


def test_diff_counts_each_kind_of_change(tmp_path: Path) -> None:
    before = image_data(tmp_path / "a", [*pictures(range(60)), Broken("0.png", "the file is empty")])
    renamed = [Sample(f"renamed/{n}.png", _data.picture(n), label="cat") for n in (1, 2)]
    relabelled = [Sample("n/3.png", _data.picture(3), label="bird")]
    refused = [Broken(f"{n}.png", f"damaged: ends at byte {n}") for n in range(3)] + [Broken("y", "the file is empty")]
    given = [*renamed, *relabelled, *pictures(range(4, 50)), *pictures(range(100, 130)), *refused]
    after = image_data(tmp_path / "b", given, held_out=0.5)
    found = compare(Folder(before), Folder(after))
    a, b = (data_index.columns(Folder(folder), ["hash", "split", "label"]).to_pandas() for folder in (before, after))
    assert found["rows"] == {"a": 60, "b": 79, "kept": 49}
    assert found["added"]["count"] == 30
    assert set(found["added"]["some"]) <= {f"n/{n}.png" for n in range(100, 130)}
    assert found["removed"]["count"] == 11  # 0, and 50 to 59
    assert found["relabelled"] == {"count": 1, "some": ["n/3.png: dog -> bird"]}
    split_a, split_b = (dict(zip(frame["hash"], frame["split"], strict=True)) for frame in (a, b))
    assert found["moved"]["count"] == sum(split_a[h] != split_b[h] for h in split_a.keys() & split_b.keys()) > 0
    assert all(entry.endswith(": train -> held_out") for entry in found["moved"]["some"])
    assert found["splits"] == {
        split: [int((a["split"] == split).sum()), int((b["split"] == split).sum())] for split in ("train", "held_out")
    }
    labels_a, labels_b = Counter(a["label"]), Counter(b["label"])
    assert found["labels"] == {name: [labels_a[name], labels_b[name]] for name in ("bird", "cat", "dog")}
    assert found["new_reasons"] == {"damaged: ends at byte …": {"count": 3, "some": ["0.png", "1.png", "2.png"]}}
    assert found["refused"] == [1, 4]


def test_distributions_are_compared_by_their_stability_index(
    settings: Settings, tmp_path: Path, printed: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    before = image_data(tmp_path / "a", [Sample(f"{n}", _data.picture(n, (20 + n % 20, 24))) for n in range(200)])
    wider = [Sample(f"{n}", _data.picture(1000 + n, (33 + n % 16, 24)), caption="a picture") for n in range(200)]
    after = image_data(tmp_path / "b", wider)
    data_views.diff(settings, str(before), str(after), as_json=True)
    found = json.loads(capsys.readouterr().out)
    a, b = (data_index.column(Folder(folder), "width") for folder in (before, after))
    width = found["facts"]["width"]
    assert width["psi"] == drift(a, b).psi > 0.25
    assert width["psi"] != drift(b, a).psi
    assert (width["a"]["mean"], width["b"]["mean"]) == (29.5, pytest.approx(40.34))
    assert found["facts"]["caption_length"]["a"] == {"without": 200}  # what only one of them has has changed, too
    assert found["facts"]["caption_length"]["psi"] > 1
    data_views.diff(settings, str(before), str(after), as_json=False)
    rows = [row.split() for row in printed.getvalue().splitlines()]
    assert next(row for row in rows if row[:1] == ["width"])[-1] == "much"
    assert next(row for row in rows if row[:1] == ["contrast"])[-1] not in ("some", "much")


def test_what_was_left_out_as_like_another_is_one_reason(tmp_path: Path) -> None:
    refused = [Broken(f"{n}", f"near-duplicate of essays/{'abc'[n]}.txt") for n in range(3)]
    data = _data.write(tmp_path, [*(Sample(f"t{n}", text=f"text {n}") for n in range(20)), *refused])
    assert data_index.reasons(Folder(data)) == {"near-duplicate of …": {"count": 3, "some": ["0", "1", "2"]}}


# ------------------------------------------------------------------------------------------------- who saw a sample

STAGES: dict[str, dict[str, dict[str, str]]] = {
    "mixture": {"deps": {"outputs/dataset": "data"}, "outs": {"outputs/mixture": "m1.dir"}},
    "tokenizer": {
        "deps": {"outputs/dataset": "data", "outputs/mixture": "m1.dir"},
        "outs": {"outputs/tokenizer": "t1.dir"},
    },
    "generator": {"deps": {"outputs/tokenizer": "t1.dir"}, "outs": {"outputs/generator": "g1.dir"}},
}


def file(tmp_path: Path, data: bytes, name: str = "holiday.bin") -> str:
    (tmp_path / name).write_bytes(data)
    return str(tmp_path / name)


def places(found: dict[str, Any]) -> list[str]:
    return sorted(place["key"] for data in found["data"] for place in data["places"])


def test_a_file_is_found_by_its_content_in_every_stage_that_used_it(settings: Settings, tmp_path: Path) -> None:
    with_it = commit(settings, "with", image_data(tmp_path / "a", pictures(range(20))), **STAGES)
    commit(settings, "without", image_data(tmp_path / "b", pictures(range(30, 50))), **STAGES)
    found = samples.find(settings, file(tmp_path, _data.picture(7)))
    assert found["hash"] == content_hash(Sample("", image=_data.picture(7)))
    (data,) = found["data"]
    (place,) = data["places"]
    assert (data["tree"], place["key"], place["source"], place["match"]) == (with_it, "n/7.png", "source", "content")
    index = data_index.columns(Folder(tmp_path / "a"), ["key", "split"]).to_pandas()
    assert place["split"] == dict(zip(index["key"], index["split"], strict=True))["n/7.png"]
    # the mixture of the other run has the same hash, but read other data
    assert data["runs"] == [{"run": "with", "now": True, "stages": ["mixture", "tokenizer", "generator"]}]
    assert (data["versions"], found["unreadable"]) == ([], [])
    assert samples.find(settings, file(tmp_path, _data.picture(99)))["data"] == []


def test_a_hundred_runs_that_share_a_data_set_read_it_once(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = image_data(tmp_path / "a", pictures(range(20)))
    for n in range(100):
        commit(settings, f"run-{n:03d}", data, here=False, **STAGES)
    looked: list[str] = []
    search = samples.places_in
    monkeypatch.setattr(samples, "places_in", lambda files, wanted: looked.append(wanted.what) or search(files, wanted))
    found = samples.find(settings, file(tmp_path, _data.picture(7)))
    assert len(looked) == 1
    assert [run["run"] for run in found["data"][0]["runs"]] == [f"run-{n:03d}" for n in range(100)]


def test_of_the_index_one_column_is_read_where_nothing_is_found(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    commit(settings, "run", image_data(tmp_path / "a", pictures(range(20))))
    read: list[list[str] | None] = []
    original = pq.read_table
    monkeypatch.setattr(
        pq, "read_table", lambda path, columns=None: read.append(columns) or original(path, columns=columns)
    )
    samples.find(settings, "no/such.png")
    assert read == [["key"]]
    samples.find(settings, "n/3.png")
    assert read[1:] == [["key"], ["key", "split", "source"]]


def test_what_a_run_was_made_of_once_counts_too(settings: Settings, tmp_path: Path) -> None:
    old = commit(settings, "run", image_data(tmp_path / "a", pictures(range(20))))
    earlier(settings, "run", "dataset", {}, {"outputs/dataset": old})
    earlier(settings, "run", "tokenizer", {"outputs/dataset": old}, {"outputs/tokenizer": "t1.dir"})
    earlier(settings, "run", "generator", {"outputs/tokenizer": "t1.dir"}, {"outputs/generator": "g1.dir"})
    new = image_data(tmp_path / "b", pictures([n for n in range(20) if n != 7]))  # 7 was taken down
    later = {"deps": {"outputs/dataset": "data"}, "outs": {"outputs/tokenizer": "t2.dir"}}
    now = commit(settings, "run", new, tokenizer=later, generator=STAGES["generator"])
    (data,) = samples.find(settings, file(tmp_path, _data.picture(7)))["data"]
    assert data["tree"] == old
    assert data["runs"] == [{"run": "run", "now": False, "stages": ["tokenizer", "generator"]}]
    assert [d["tree"] for d in samples.find(settings, file(tmp_path, _data.picture(8)))["data"]] == [now, old]


def test_weights_that_stayed_the_same_do_not_lead_from_the_old_data_to_the_new(
    settings: Settings, tmp_path: Path
) -> None:
    old = commit(settings, "run", image_data(tmp_path / "a", pictures(range(20))))
    earlier(settings, "run", "dataset", {}, {"outputs/dataset": old})
    earlier(settings, "run", "mixture", {"outputs/dataset": old}, {"outputs/mixture": "m1.dir"})
    commit(settings, "run", image_data(tmp_path / "b", pictures(range(30, 50))), **STAGES)
    (data,) = samples.find(settings, file(tmp_path, _data.picture(7)))["data"]
    assert data["runs"] == [{"run": "run", "now": False, "stages": ["mixture"]}]


def test_a_committed_data_set_whose_run_is_gone_is_looked_through(settings: Settings, tmp_path: Path) -> None:
    from infra import records

    tree = commit(settings, "gone", image_data(tmp_path / "a", pictures(range(20))))
    outs = {"outputs/dataset": tree}
    records.put(
        settings, "0" * 64, stage="dataset", run="gone", system="s", outs=outs, metrics={}, seconds=1, started=0
    )
    shutil.rmtree(settings.runs / "gone")
    sample = file(tmp_path, _data.picture(7))
    (data,) = samples.find(settings, sample)["data"]
    assert (data["tree"], data["runs"]) == (tree, [])
    shutil.rmtree(settings.home / "remote")  # nobody has it any more: neither found nor promised
    assert samples.find(settings, sample)["data"] == samples.find(settings, sample)["unreadable"] == []


def test_a_store_that_does_not_answer_is_the_reason(settings: Settings, tmp_path: Path) -> None:
    """The tree is in this machine's cache as well, without its files; that is not what went wrong."""
    tree = commit(settings, "run", image_data(tmp_path / "a", pictures(range(20))), here=False)
    store, cache = datasets.store(settings), datasets.store(settings, str(settings.home / "cache"))
    cache.objects.put(tree, store.objects.get(tree))
    shutil.rmtree(settings.home / "remote")
    (entry,) = samples.find(settings, file(tmp_path, _data.picture(7)))["unreadable"]
    assert f"{settings.home / 'remote'} has lost the data set {tree}" in entry["reason"]


def test_a_damaged_folder_of_a_run_is_read_from_the_store(settings: Settings, tmp_path: Path) -> None:
    commit(settings, "run", image_data(tmp_path / "a", pictures(range(20))))
    (settings.runs / "run" / "outputs" / "dataset" / "index" / "part-00000.parquet").write_bytes(b"garbage")
    found = samples.find(settings, file(tmp_path, _data.picture(7)))
    assert (places(found), found["unreadable"]) == (["n/7.png"], [])


def test_data_that_are_lost_are_named_and_hide_no_others(
    settings: Settings, tmp_path: Path, printed: io.StringIO
) -> None:
    lost = commit(settings, "lost", image_data(tmp_path / "a", pictures(range(20))), here=False)
    kept = commit(settings, "kept", image_data(tmp_path / "b", pictures(range(5, 30))))
    store = datasets.store(settings)
    store.objects.remove(datasets.tree(store, lost)["index/part-00000.parquet"])
    found = samples.find(settings, sample := file(tmp_path, _data.picture(7)))
    assert [data["tree"] for data in found["data"]] == [kept]
    assert [(entry["tree"], entry["runs"]) for entry in found["unreadable"]] == [(lost, ["lost"])]
    samples.seen(settings, sample, as_json=False)
    assert f"could not be looked through: data set {lost[:12]} of lost" in printed.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"A text,\nof two lines.", ["t/1"]),
        (b"\xef\xbb\xbfA text,\nof two lines.", ["t/1"]),  # as some editors write it
        (b"\xef\xbb\xbfA text,\nof two lines.\r\n", ["t/1"]),
        (b"A text,\nof two lines.\n\n", []),
        ("Ein Prüftext.\n".encode(), ["t/2"]),
        (b"\xef\xbb\xbfA whole line.\n", ["t/3"]),
        (b"essay, second part", ["essay.txt#1"]),
    ],
)
def test_texts_are_found_as_editors_save_them(
    data: bytes, expected: list[str], settings: Settings, tmp_path: Path
) -> None:
    texts = {"t/1": "A text,\nof two lines.", "t/2": "Ein Prüftext.", "t/3": "A whole line.\n"}
    texts |= {"essay.txt#0": "essay, first part", "essay.txt#1": "essay, second part"}
    texts |= {f"other/{n}": f"text number {n}" for n in range(20)}
    commit(settings, "run", _data.write(tmp_path / "a", [Sample(key, text=text) for key, text in texts.items()]))
    assert places(samples.find(settings, file(tmp_path, data))) == expected


def test_a_key_is_found_with_all_that_came_out_of_its_file_or_folder(settings: Settings, tmp_path: Path) -> None:
    keys = [
        "essay.txt#0",
        "essay.txt#1",
        "essay.txt.bak",
        "scans/essay.txt",
        "scans/7.png",
        "a.b",
        "axb",
        *map(str, range(20)),
    ]
    commit(settings, "run", _data.write(tmp_path / "a", [Sample(key, text=f"text {key}") for key in keys]))
    assert places(samples.find(settings, "essay.txt")) == ["essay.txt#0", "essay.txt#1"]
    assert places(samples.find(settings, "scans")) == ["scans/7.png", "scans/essay.txt"]
    assert places(samples.find(settings, "a.b")) == ["a.b"]
    assert places(samples.find(settings, "missing")) == []


def test_a_file_that_was_changed_or_cut_is_named_by_its_name(
    settings: Settings, tmp_path: Path, printed: io.StringIO
) -> None:
    texts = [Sample(f"letters/essay.txt#{n}", text=f"part {n}") for n in range(20)]
    commit(settings, "run", _data.write(tmp_path / "a", texts))
    sample = file(tmp_path, b"".join(b"part %d" % n for n in range(20)), "essay.txt")
    found = samples.find(settings, sample)
    assert {place["match"] for data in found["data"] for place in data["places"]} == {"name"}
    assert len(places(found)) == 20
    samples.seen(settings, sample, as_json=False)
    assert "no data set of this project holds a sample with this content" in printed.getvalue()
    assert "samples with other content came from files of this name" in printed.getvalue()


def test_each_modality_of_a_sample_of_several_is_found(settings: Settings, tmp_path: Path) -> None:
    def of(n: int) -> Sample:
        sound = _data.sound(np.sin(np.arange(800 + n)), 8000)
        return Sample(f"{n}", image=_data.picture(n), text=f"Number {n}", audio=sound)

    commit(settings, "run", image_data(tmp_path / "a", [of(n) for n in range(30)]))
    one = of(7)
    assert one.image and one.text and one.audio
    for data in (one.image, one.text.encode(), one.text.encode() + b"\n", one.audio):
        assert places(samples.find(settings, file(tmp_path, data))) == ["7"]
    assert places(samples.find(settings, file(tmp_path, _data.picture(99)))) == []
    assert places(samples.find(settings, file(tmp_path, b"Number 777"))) == []


def test_a_folder_is_no_sample(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(DataViewError, match="is a folder; give one file"):
        samples.find(settings, str(tmp_path))


@pytest.mark.slow
def test_model_versions_and_their_champion_are_named(
    settings: Settings, tmp_path: Path, printed: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    from infra import ledger, registry
    from infra.tracking import Tracking

    tree = commit(settings, "run", image_data(tmp_path / "a", pictures(range(20))), **STAGES)
    other = commit(settings, "other", image_data(tmp_path / "b", pictures(range(30, 50))))
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "config.json").write_text("{}")
    tracking = Tracking(settings)
    for number, data in enumerate((tree, tree, other)):
        key = str(number) * 64
        run_id = tracking.child("m", tracking.parent("m", "run", {}), "run", "registration", key)
        facts = {"tessera.data": data}
        registry.register(settings, "m", bundle, key=key, run="run", run_id=run_id, facts=facts)
    ledger.promote(settings, "m", "2", who="ada", why="first", gates=[], expected=None)
    sample = file(tmp_path, _data.picture(7))
    (data,) = samples.find(settings, sample)["data"]
    assert [(version["model"], version["aliases"]) for version in data["versions"]] == [
        ("models:/m/2", ["champion"]),
        ("models:/m/1", []),
    ]
    assert data["versions"][0]["champion_since"] == ledger.history(settings, "m")[-1]["when"]
    assert data["versions"][1]["champion_since"] is None
    samples.seen(settings, sample, as_json=False)
    assert "run run: mixture, tokenizer, generator" in printed.getvalue()
    assert f"models:/m/2 of run run  champion since {data['versions'][0]['champion_since'][:10]}" in printed.getvalue()
    samples.seen(settings, sample, as_json=True)
    assert json.loads(capsys.readouterr().out) == samples.find(settings, sample)


@pytest.mark.slow
def test_of_data_on_s3_the_index_is_fetched_once_and_of_the_samples_those_that_are_shown(
    tmp_path: Path, printed: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import _s3

    with _s3.serve() as fresh:
        bucket = fresh(monkeypatch)
        settings = Settings(project=tmp_path / "project", home=Path(".tessera"), remote=f"{bucket.url}/store")
        for name in ("one", "two"):
            monkeypatch.setenv("TESSERA_PROJECT", str(settings.project))
            monkeypatch.setenv("TESSERA_REMOTE", settings.remote)
            tree = commit(settings, name, image_data(tmp_path / name, pictures(range(500))), here=False)
        entries = datasets.tree(datasets.store(settings), tree)
        names = {digest[2:]: name for name, digest in entries.items()}

        def fetched() -> Counter[str]:
            """Files of the data set that were asked for since the last time."""
            got = [request.removeprefix("GET ") for request in bucket.proxy.requests if request.startswith("GET ")]
            paths = [path.partition("?")[0].rpartition("/")[2] for path in got]
            bucket.proxy.requests.clear()
            return Counter(names[path] for path in paths if path in names)

        fetched()
        sample = file(tmp_path, _data.picture(7))
        assert places(samples.find(settings, sample)) == ["n/7.png"]
        assert fetched() == {"dataset.json": 1} | {f"index/part-{n:05d}.parquet": 1 for n in range(5)}
        data_views.show(settings, "one", None)
        assert fetched() == {"train/part-00000-000.parquet": 1, "held_out/part-00000-000.parquet": 1}
        bucket.proxy.fault = lambda method, path: _s3.DENIED
        shutil.rmtree(settings.home / "shards")
        assert [entry["runs"] for entry in samples.find(settings, sample)["unreadable"]] == [["one", "two"]]
