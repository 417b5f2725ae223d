"""Material for the tests of sources: small pictures, sounds and arrays, and for every source a place that it can read."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image

from components.interfaces import Broken, Sample, Source


def picture(size: tuple[int, int] = (20, 14), kind: str = "PNG", mode: str = "RGB", seed: int = 0, **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def sound(
    seconds: float = 0.1, kind: str = "WAV", rate: int = 8000, seed: int = 0, subtype: str | None = None
) -> bytes:
    samples = 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate)).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def array(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values))
    return buffer.getvalue()


def tar(members: Mapping[str, bytes] | list[tuple[str, bytes]], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:  # type: ignore[call-overload]
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def table(columns: Mapping[str, Any], rows_of_a_group: int = 3) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), buffer, row_group_size=rows_of_a_group)
    return buffer.getvalue()


def page(words: str) -> bytes:
    return gzip.compress(f".TH X 1\n.SH NAME\nx \\- {words}\n".encode())


def put(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def read(source: Source) -> dict[str, Sample | Broken]:
    """key -> what the source yields; keys are unique."""
    found = list(source.samples())
    assert len({sample.key for sample in found}) == len(found)
    return {sample.key: sample for sample in found}


def broken(found: Mapping[str, Sample | Broken]) -> dict[str, str]:
    return {key: sample.reason for key, sample in found.items() if isinstance(sample, Broken)}


# ------------------------------------------------------------------------------------- a small one of every source


def _pictures(folder: Path) -> dict[str, Any]:
    files = {f"{label}/{n} é.png": picture(seed=n) for n, label in enumerate(["cat", "cat", "dog", "dog", "dog"])}
    put(folder, files | {"dog/4 é.txt": "a dog", "cat/late.jpg": picture(kind="JPEG")})
    return {"path": str(folder)}


def _sounds(folder: Path) -> dict[str, Any]:
    kinds = {"wav": "WAV", "flac": "FLAC", "ogg": "OGG"}
    put(folder, {f"rain/{ending}.{ending}": sound(kind=kind) for ending, kind in kinds.items()})
    put(folder, {f"wind/{n}.wav": sound(seed=n) for n in range(3)})
    return {"path": str(folder)}


def _tables(folder: Path) -> dict[str, Any]:
    files = {}
    for n in range(3):
        images = [{"bytes": picture(seed=10 * n + row), "path": None} for row in range(7)]
        files[f"{n}.parquet"] = table(
            {"image": images, "label": list("aabbabc"), "text": [f"row {i}" for i in range(7)]}
        )
    put(folder, files)
    return {"path": str(folder), "modalities": ["image", "text"]}


def _tars(folder: Path) -> dict[str, Any]:
    for n in range(3):
        samples = [(f"{row:03d}.{ending}", data) for row in range(4) for ending, data in
                   (("png", picture(seed=10 * n + row)), ("txt", b"two words"), ("cls", b"3"))]  # fmt: skip
        put(folder, {f"{n}.tar": tar(samples)})
    return {"path": str(folder)}


def _texts(folder: Path) -> dict[str, Any]:
    put(folder, {f"{label}/{n}.txt": f"Number {n}.\n\n" * (n + 2) for n, label in enumerate("aabbb")})
    return {"path": str(folder), "piece": 40}


def _lines(folder: Path) -> dict[str, Any]:
    for n in range(3):
        lines = "".join(json.dumps({"text": f"line {row} of {n} é", "label": row % 2}) + "\n" for row in range(9))
        put(folder, {f"{n}.jsonl": lines, f"{n}.jsonl.gz": gzip.compress(lines.encode())})
    return {"path": str(folder)}


def _arrays(folder: Path) -> dict[str, Any]:
    values = np.arange(9 * 4, dtype=np.float32).reshape(9, 4)
    buffer = io.BytesIO()
    np.savez(buffer, x=values, y=np.arange(9))
    put(
        folder,
        {"a.npy": array(values), "b.npy": array(values + 1), "c.npz": buffer.getvalue(), "y.npy": array(range(9))},
    )
    return {"path": str(folder), "array": "x", "labels": "y"}


def _pages(folder: Path) -> dict[str, Any]:
    put(folder, {f"man{n % 8 + 1}/x{n}.1.gz": page(f"do this {n}") for n in range(5)})
    put(folder, {f"de/man1/x{n}.1": f".TH X 1\n.SH BEZEICHNUNG\ntu dies {n}\n" for n in range(3)})
    return {"root": str(folder), "languages": ["en", "de"], "least": 3}


def _config(**config: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: config


#: name of a source -> makes in a folder what it reads, and gives its configuration; what is not here needs neither
SMALL: dict[str, Callable[[Path], dict[str, Any]]] = {
    "image_folder": _pictures,
    "audio_folder": _sounds,
    "parquet": _tables,
    "webdataset": _tars,
    "text_files": _texts,
    "jsonl": _lines,
    "numpy_archive": _arrays,
    "man_pages": _pages,
    "glyphs": _config(characters="Ag3", variants=2, size=12),
    "photos": _config(count=3, size=16),
    "python_stdlib": _config(packages=["json", "abc", "email"], piece=4000),
    "pydoc_text": _config(piece=5000),
    "several": _config(
        sources={"help": {"type": "pydoc_text"}, "code": {"type": "python_stdlib", "packages": ["abc"]}}
    ),
}


def small(name: str, folder: Path) -> dict[str, Any]:
    """The specification of a source of that name, after what it reads has been put into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return {"type": name, **SMALL.get(name, _config())(folder)}
