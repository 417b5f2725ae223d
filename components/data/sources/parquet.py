"""Samples in tables: Parquet, Arrow and Feather files, or a data set that Hugging Face's `save_to_disk` has left.

    {type: parquet, path: flowers, caption: text}                        pictures in the column `image`
    {type: parquet, path: "s3://bucket/wiki", modalities: [text]}        texts in the column `text`
    {type: parquet, path: calls, modalities: [audio], audio: recording}

Mechanism: 1. `modalities` says what is read, and for each the name of its column; pictures and sounds are bytes, or a
struct with `bytes` as the `datasets` library writes them, arrays are bytes in .npy format or lists of numbers; 2. the
content of a file decides what it is; 3. small files are read together, a large Parquet file is divided between row groups;
4. labels that `datasets` keeps as numbers get their names back; 5. a row that cannot be used is `Broken`, and of a damaged
file the row group. The key is the file and the number of the row: `train.parquet#17`.
Absent on purpose: pictures that are named by path only, and columns inside of others.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Annotated, Any

from pydantic import Field

from components.data import locations
from components.data.sources import _parts, _tables
from components.data.sources._checked import checked, plain
from components.interfaces import Broken, Modality, Part, Sample, Source

if TYPE_CHECKING:
    import pyarrow as pa

_ENDINGS = (".parquet", ".pq", ".arrow", ".feather")


class Parquet(Source):
    """Rows of the tables of a file, a folder or a URL; `image`, `text`, ... are names of columns. A `label` or `caption`
    that is not there is none.

    >>> import tempfile, pandas
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pandas.DataFrame({"text": ["one", "two"]}).to_parquet(f"{folder}/x.parquet")
    ...     [sample.key for sample in Parquet(path=folder, modalities=("text",)).samples()]
    ['x.parquet#0', 'x.parquet#1']
    """

    def __init__(
        self,
        *,
        path: str,
        modalities: Annotated[tuple[Modality, ...], Field(min_length=1)] = ("image",),
        image: str = "image",
        text: str = "text",
        audio: str = "audio",
        array: str = "array",
        label: str = "label",
        caption: str = "caption",
    ) -> None:
        names = {"image": image, "text": text, "audio": audio, "array": array}
        self.path, self.modalities = path, modalities
        self.columns: dict[str, str] = {modality: names[modality] for modality in modalities}
        self.also = {"label": label, "caption": caption}

    def parts(self) -> Sequence[Part]:
        found = locations.listing(self.path, "tables (Parquet, Arrow, Feather)")
        tables = _parts.of_kind(self.path, found, _ENDINGS, "tables")
        stale = _tables.stale(self.path, found)
        parts: list[Part] = []
        small: list[tuple[list[str], int]] = []
        for entry in tables:
            if entry.name in stale:
                continue
            if entry.size > _parts.BYTES and (groups := self._row_groups(entry.name)):
                parts += [*_parts.divide(small), *groups]
                small = []
            else:
                small.append(([entry.name], entry.size))
        return parts + _parts.divide(small)

    def _row_groups(self, name: str) -> list[Part]:
        """Row groups of a large file, neighbours together up to the size of a part; none where it has no readable index."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with locations.open(self.path, name) as file:
                about = pq.read_metadata(file)
        except (pa.ArrowException, OSError):
            return []  # not Parquet, or damaged: reading says which
        parts: list[Part] = []
        start = stop = size = 0
        for number in range(about.num_row_groups):
            group = about.row_group(number)
            if size and size + group.total_byte_size > _parts.BYTES:
                parts.append(Part((name,), start, stop))
                start, size = stop, 0
            stop, size = stop + group.num_rows, size + group.total_byte_size
        return [*parts, Part((name,), start, stop)]

    def read(self, part: Part) -> Iterator[Sample | Broken]:
        for name in part.files:
            key = _parts.key_of(self.path, name)
            try:
                with locations.open(self.path, name) as file:
                    yield from self._file(key, file, part)
            except OSError as error:
                yield Broken(key, locations.why(error))

    def _file(self, key: str, file: IO[bytes], part: Part) -> Iterator[Sample | Broken]:
        import pyarrow as pa

        try:
            schema, batches = _tables.opened(file, part, [*self.columns.values(), *self.also.values()])
        except (pa.ArrowException, OSError) as error:
            yield Broken(key, f"damaged: {error}")
            return
        except _tables.Unusable as error:
            yield Broken(key, str(error))
            return
        for modality, column in self.columns.items():
            if reason := _wrong(schema, modality, column):
                yield Broken(key, reason)
                return
        names = _tables.class_names(schema, self.also["label"])
        types = {modality: schema.field(column).type for modality, column in self.columns.items()}
        for first, batch in batches:
            if isinstance(batch, str):
                yield Broken(f"{key}#{first}", batch)
                continue
            for start in range(0, batch.num_rows, _tables.ROWS):
                for number, row in enumerate(_tables.rows(batch.slice(start, _tables.ROWS)), first + start):
                    yield self._sample(f"{key}#{number}", row, types, names)

    def _sample(
        self, key: str, row: dict[str, Any], types: dict[str, pa.DataType], names: Sequence[str]
    ) -> Sample | Broken:
        content: dict[str, Any] = {}
        for modality, column in self.columns.items():
            value = row[column]
            if isinstance(value, dict):
                if value.get("bytes") is None and value.get("path"):
                    return Broken(key, f"'{column}' names the file {value['path']}, but holds no bytes")
                value = value.get("bytes")
            if isinstance(value, list):
                try:
                    value = _npy(value, types[modality])
                except ValueError as error:
                    return Broken(key, f"'{column}' is no array: {error}")
            if value is not None:
                content[modality] = value
        if not content:
            return Broken(key, f"there is nothing in {', '.join(self.columns.values())}")
        label = row.get(self.also["label"])
        if names and isinstance(label, int):
            label = names[label] if 0 <= label < len(names) else None  # -1: `datasets` says so where there is none
        return checked(Sample(key, label=plain(label), caption=plain(row.get(self.also["caption"])), **content))


def _wrong(schema: pa.Schema, modality: str, column: str) -> str | None:
    """Why a column cannot be that modality."""
    import pyarrow.types as kinds

    if column not in schema.names:
        return f"there is no column '{column}' for {modality} (there are: {', '.join(schema.names)})"
    kind = schema.field(column).type
    kind = getattr(kind, "storage_type", kind)
    binary = kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_binary_view(kind)
    if modality == "text":
        fits = kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)
        expected = "string"
    elif modality == "array":
        fits = binary or kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)
        expected = "binary (.npy) or a list of numbers"
    else:
        fits = binary or (kinds.is_struct(kind) and kind.get_field_index("bytes") >= 0)
        expected = "binary or struct<bytes, path>"
    return None if fits else f"the column '{column}' is {kind}; for {modality} expected {expected}"


def _npy(value: list[Any], kind: pa.DataType) -> bytes:
    import numpy as np

    kind = getattr(kind, "storage_type", kind)
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.array(value, dtype=kind.to_pandas_dtype()), allow_pickle=False)
    return buffer.getvalue()
