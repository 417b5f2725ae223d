"""Tables in files: Parquet, Arrow's two forms and Feather, opened by what is in them and read batch by batch.

Mechanism: 1. the first bytes say what a file is; 2. of Parquet only the wanted columns and row groups are read, Arrow files
one batch after another; 3. what cannot be read comes as a sentence in place of a batch, and the next row group follows;
4. what the `datasets` library keeps beside its columns: names of classes, and which files are the data set.
Absent on purpose: what a row means - that is `parquet`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

from components.data import locations
from components.interfaces import Part

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 128  # of Parquet read at a time


class Unusable(Exception):
    """A file of a format that is not read."""


def opened(
    file: IO[bytes], part: Part, columns: Sequence[str]
) -> tuple[pa.Schema, Iterator[tuple[int, pa.RecordBatch | str]]]:
    """The schema, and the batches with the number of their first row, or what is wrong from there on."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    head = file.read(8)
    file.seek(0)
    if not head:
        raise Unusable("the file is empty")
    if head.startswith(b"PAR1"):
        table = pq.ParquetFile(file)
        return table.schema_arrow, _parquet(table, part, columns)
    if head.startswith(b"FEA1"):
        raise Unusable("Feather of version 1; write it again with version 2")
    if head.startswith(b"ARROW1"):
        reader = pa.ipc.open_file(file)
        return reader.schema, _arrow(reader.get_batch(number) for number in range(reader.num_record_batches))
    stream = pa.ipc.open_stream(file)
    return stream.schema, _arrow(iter(stream))


def _parquet(table: Any, part: Part, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch | str]]:
    import pyarrow as pa

    there = [name for name in columns if name in table.schema_arrow.names]
    first = 0
    for number in range(table.metadata.num_row_groups):
        end = first + table.metadata.row_group(number).num_rows
        if part.start <= first and (part.stop is None or first < part.stop):
            at = first
            try:
                for batch in table.iter_batches(ROWS, row_groups=[number], columns=there):
                    yield at, batch
                    at += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                yield at, f"damaged: rows {at} to {end - 1} cannot be read: {error}"
        first = end


def _arrow(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch | str]]:
    import pyarrow as pa

    at = 0
    try:
        for batch in batches:
            yield at, batch
            at += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        yield at, f"damaged: from row {at} on it cannot be read: {error}"


def rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as plain values; columns of the `datasets` library's own types as what they are stored as."""
    import pyarrow as pa

    columns = [getattr(column, "storage", column) for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names).to_pylist()


def class_names(schema: pa.Schema, label: str) -> list[str]:
    """The names of the classes, as the `datasets` library keeps them beside a column of numbers."""
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):  # not written by that library, or no classes
        return []
    return [str(name) for name in names]


def stale(path: str, found: Sequence[locations.Entry]) -> set[str]:
    """Arrow files that lie in the folder of a saved data set but are not in its list: caches of what was done to it."""
    unlisted: set[str] = set()
    for entry in found:
        folder, _, base = entry.name.rpartition("/")
        if base != "state.json":
            continue
        try:
            files = json.loads(locations.read_bytes(path, entry.name))["_data_files"]
            names = {f"{folder}/{file['filename']}".lstrip("/") for file in files}
        except (KeyError, TypeError, ValueError):  # some other program's
            continue
        beside = {other.name for other in found if other.name.rpartition("/")[0] == folder}
        unlisted |= {name for name in beside if name.endswith(".arrow") and name not in names}
    return unlisted
