"""A full disk, whichever library was the one to meet it, as one message that says where and what to do.

An error counts if it, or one that it was made from, is the operating system's, or SQLite's of the same meaning; one of
this product's own has its own words already. Nothing is cleaned up here: every write is atomic, so the same command goes
on once there is room again.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KIND = "DiskFull"  # how the record of a body names it
_TEXTS = ("database or disk is full", os.strerror(errno.ENOSPC))  # of SQLite; of safetensors, which has no errno
_OWN = ("infra", "flows", "components")


class DiskFull(RuntimeError):
    """There is no room for what has to be written; the message says where, and how to go on."""


@contextmanager
def explained(*places: Path) -> Iterator[None]:
    """Inside, an error of a full disk becomes DiskFull. It names that of `places` (the working directory and the folder for
    temporary files are among them) where the least is free."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if not met(error):
            raise
        free = {place: shutil.disk_usage(place).free for place in (*places, Path.cwd(), Path(tempfile.gettempdir()))}
        fullest = min(free, key=lambda place: free[place])
        raise DiskFull(
            f"the disk is full: {free[fullest] / 2**20:.1f} MB are free where {fullest} is; free some space and run the "
            "same command again, it goes on from here"
        ) from error


def met(error: BaseException) -> bool:
    """Whether a full disk is behind this error."""
    if getattr(error, "kind", None) == KIND:
        return True
    found: BaseException | None = error
    while found is not None and type(found).__module__.partition(".")[0] not in _OWN:
        if (isinstance(found, OSError) and found.errno in (errno.ENOSPC, errno.EDQUOT)) or any(
            text in str(found) for text in _TEXTS
        ):
            return True
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return False
