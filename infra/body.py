"""A body and its record. The work is named by its key; `record.json` in its work folder is the truth about it: the result,
or the error as it was. Whatever process holds the body is only a handle, and may die.

A body writes what it reports into files of the same folder (`progress.json`, `metrics.jsonl`), and a worker what it prints
into `worker.log`; `Tail` follows them.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import full_disk
from infra.storage import write_json_atomic

#: errors that the user has to mend; known by name, because infra imports neither flows nor components
_USER_ERRORS = {"StageFailed", "RecipeError", "ComponentError", "ArtifactError"}

Record = dict[str, Any]


class BodyFailed(RuntimeError):
    """What a body raised, wherever it ran. `user_error` says that the user has to mend something."""

    def __init__(self, kind: str, message: str, trace: str, user_error: bool) -> None:
        super().__init__(message if user_error else f"{kind}: {message}")
        self.kind, self.message, self.trace, self.user_error = kind, message, trace, user_error


def result(record: Record) -> dict[str, Any]:
    """What the body returned; raises BodyFailed with what it raised."""
    if record["ok"]:
        return record["result"]
    error = record["error"]
    raise BodyFailed(error["kind"], error["message"], error["trace"], error["user_error"])


def stored(work: Path) -> Record | None:
    try:
        return json.loads((work / "record.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None


def finished(work: Path, key: str) -> Record | None:
    """The record of a body that ended well for this key; that of a failed attempt is put aside."""
    record = stored(work)
    if record and record["key"] == key and record["ok"]:
        return record
    with contextlib.suppress(FileNotFoundError):
        (work / "record.json").replace(work / "record.failed.json")
    return None


def perform(target: str, kwargs: dict[str, Any], key: str, work: Path) -> Record:
    """Runs `module:function(**kwargs)` here and writes its record: the body's commit point. Never raises what the body
    raised. One body at a time in a work folder, whichever process it is in: a second one waits, and takes the record."""
    with _alone(work):
        earlier = stored(work)
        if earlier and earlier["key"] == key and earlier["ok"]:
            return earlier
        started = time.time()
        record: Record = {"key": key, "pid": os.getpid(), "started": started}
        try:
            module, _, name = target.partition(":")
            returned = getattr(importlib.import_module(module), name)(**kwargs)
            record |= {"ok": True, "result": json.loads(json.dumps(returned))}
        except (Exception, SystemExit) as error:
            record |= {"ok": False, "error": describe(error)}
        record["seconds"] = time.time() - started
        try:
            write_json_atomic(work / "record.json", record)
        except OSError as error:
            record |= {"ok": False, "error": describe(error)}
        return record


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """The lock of a work folder. A record lock, not flock: processes that the body forked must not inherit it."""
    with open(work / "body.lock", "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            note = f"waits for process {file.read().strip() or '?'}, which still runs an earlier start of it"
            with contextlib.suppress(OSError):
                write_json_atomic(work / "progress.json", {"note": note, "time": time.time()})
            fcntl.lockf(file, fcntl.LOCK_EX)
        file.truncate(0)
        with contextlib.suppress(OSError):  # a full disk is the body's to report
            file.write(str(os.getpid()))
            file.flush()
        yield


def describe(error: BaseException) -> dict[str, Any]:
    """An error as plain data; of a wrapper, the error inside."""
    inner = getattr(error, "worker_failures", None)
    if isinstance(inner, dict) and inner:
        error = inner[min(inner)]
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    if isinstance(error, BodyFailed):
        return {"kind": error.kind, "message": error.message, "trace": error.trace, "user_error": error.user_error}
    kind = type(error).__name__
    user = bool(getattr(error, "user_error", False)) or any(c.__name__ in _USER_ERRORS for c in type(error).__mro__)
    text = "".join(traceback.format_exception(error))
    message = str(error) or kind
    if full_disk.met(error):
        kind = full_disk.KIND
    elif isinstance(error, SystemExit):
        message = f"the body ended the process (exit code {error.code})"
    return {"kind": kind, "message": message, "trace": text, "user_error": user}


@dataclass
class Seen:
    """How far somebody has read in a work folder: the last progress, and bytes of `metrics.jsonl` and `worker.log`."""

    progress: str = ""
    metrics: int = 0
    printed: int = 0


class Tail:
    """News of a work folder since the last look. What its log holds at the first look was printed for somebody else."""

    def __init__(self, work: Path, seen: Seen | None = None) -> None:
        log = work / "worker.log"
        self.work, self.log = work, log
        self.seen = seen or Seen(printed=log.stat().st_size if log.is_file() else 0)

    def news(self) -> dict[str, Any]:
        """The content of `progress.json` if it changed, {"metrics": rows} for new lines of `metrics.jsonl`, and
        {"printed": lines} for those of `worker.log`."""
        found: dict[str, Any] = {}
        with contextlib.suppress(OSError, json.JSONDecodeError):
            text = (self.work / "progress.json").read_text()
            if text != self.seen.progress:
                self.seen.progress = text
                found |= json.loads(text)
        lines, self.seen.metrics = _new_lines(self.work / "metrics.jsonl", self.seen.metrics)
        rows = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # what a killed process left of a line
                rows.append(json.loads(line))
        if rows:
            found["metrics"] = rows
        lines, self.seen.printed = _new_lines(self.log, self.seen.printed)
        if lines:
            found["printed"] = lines
        return found


def _new_lines(path: Path, offset: int) -> tuple[list[str], int]:
    """The lines that ended since `offset`, and where the next one begins. Of a line that was written over and over, as a
    progress bar is, its last state."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < offset:  # begun anew
                offset = 0
            file.seek(offset)
            text = file.read()
    except OSError:
        return [], offset
    whole = text[: text.rfind(b"\n") + 1]
    lines = whole.decode(errors="replace").split("\n")[:-1]
    return [line.rstrip("\r").rpartition("\r")[2] for line in lines], offset + len(whole)
