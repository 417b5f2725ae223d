"""A project with services of its own, for tests that need Ray; its bodies are a module of the project."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from infra import supervisor
from infra.settings import Settings

BODIES = """
import json, os, pathlib, sys, time

class StageFailed(Exception):
    pass

def started(work):
    with open(pathlib.Path(work) / "starts", "a") as file:
        file.write(f"{os.getpid()}\\n")

def steps(work, count=3, pause=0.05):
    started(work)
    folder = pathlib.Path(work)
    for step in range(count):
        (folder / ".p").write_text(json.dumps({"done": step + 1, "total": count}))
        os.replace(folder / ".p", folder / "progress.json")
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "loss": 1 / (step + 1)}) + "\\n")
        time.sleep(pause)
    print("printed by the body")
    return {"sum": float(count)}

def fails(work, kind="ValueError"):
    started(work)
    raise {"ValueError": ValueError, "StageFailed": StageFailed, "SystemExit": SystemExit}[kind]("the codebook is empty")

def unwritable(work):
    return {"value": object()}

def once_killed(work):
    started(work)
    if len((pathlib.Path(work) / "starts").read_text().split()) == 1:
        os.kill(os.getpid(), 9)
    return {"ok": 1.0}

def ranks(work, broken=False):
    import torch, torch.distributed as dist
    total = torch.tensor([float(dist.get_rank() + 1)])
    if broken and dist.get_rank() == 1:
        raise StageFailed("rank 1 found no data")
    dist.all_reduce(total)
    return {"total": total.item(), "world": float(dist.get_world_size()), "rank": float(dist.get_rank())}
"""


def project(folder: Path, **options: object) -> Settings:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bodies.py").write_text(BODIES)
    return Settings(project=folder, **options)  # type: ignore[arg-type]


def driver(settings: Settings, code: str) -> subprocess.Popen[str]:
    """A process of its own that does what a command would."""
    root = Path(__file__).resolve().parent.parent
    variables = os.environ | {"PYTHONPATH": f"{root}:{settings.project}", "TESSERA_PROJECT": str(settings.project)}
    return subprocess.Popen([sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE, text=True)


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def traces(settings: Settings) -> list[str]:
    """Processes that name the project or its Ray session in command line or environment, except this one."""
    found = []
    names = (str(settings.home).encode(), str(supervisor.ray_folder(settings.home)).encode())
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and supervisor.started(int(entry.name)) is not None:
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                links = b" ".join(os.readlink(link).encode() for link in (entry / "fd").iterdir())
            except OSError:
                continue
            if any(name in text + links for name in names):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:120])
    return found
