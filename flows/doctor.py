"""`tessera doctor`: is the installation whole, does every configured service answer, do registry and ledger agree.

Each check is a generator of findings; a finding that is not in order says what to do. `--repair` moves the registry's
aliases to what the promotion ledger says, which is the truth about them.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rich.markup import escape

from flows import runs
from flows.terminal import console
from infra.settings import Settings

_SPACE = 2.0  # GB that a small run needs with its caches
_MARK = {"ok": "[green]ok[/]     ", "hint": "[yellow]note[/]   ", "bad": "[bold red]broken[/] "}


@dataclass(frozen=True)
class Finding:
    """`hint`: works, but a person may want to know; `bad`: something will not work."""

    state: Literal["ok", "hint", "bad"]
    what: str
    remedy: str = ""


def run(settings: Settings, repair: bool = False) -> int:
    """Prints every finding; returns 1 if something is broken, else 0."""
    broken = False
    for check in (installation, machine, project, services, remote, registry):
        try:
            found = list(check(settings, repair) if check is registry else check(settings))
        except Exception as error:
            found = [Finding("bad", f"{check.__name__}: {error}", "TESSERA_DEBUG=1 tessera doctor shows the cause")]
            if os.environ.get("TESSERA_DEBUG"):
                raise
        for finding in found:
            broken |= finding.state == "bad"
            console.print(_MARK[finding.state] + escape(finding.what), soft_wrap=True)
            if finding.remedy and finding.state != "ok":
                console.print(f"        -> {escape(finding.remedy)}", soft_wrap=True)
    return int(broken)


def installation(settings: Settings) -> Iterator[Finding]:
    """Python, and every package that the installed extras want, in a version they allow."""
    from packaging.requirements import Requirement

    version = sys.version.split()[0]
    yield Finding("ok" if sys.version_info >= (3, 11) else "bad", f"Python {version}", "install Python 3.11 or newer")
    wrong: dict[str, list[str]] = {}
    extras = ("", "platform")
    count = 0
    for text in metadata.requires("tessera-tokens") or []:
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        count += 1
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.setdefault("is missing", []).append(str(requirement.name))
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.setdefault("has another version", []).append(
                f"{requirement.name} {installed} ({requirement.specifier})"
            )
    if not wrong:
        yield Finding("ok", f"{count} packages as required")
    for how, names in wrong.items():
        yield Finding("bad", f"{', '.join(names)}: {how}", "pip install -r requirements/cpu.txt")


def machine(settings: Settings) -> Iterator[Finding]:
    """Disk, processors, accelerators, git."""
    settings.home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(settings.home).free / 2**30
    yield Finding(
        "ok" if free >= _SPACE else "bad",
        f"{free:.0f} GB free below {settings.home}",
        f"a run needs about {_SPACE:.0f} GB: make room, or set TESSERA_HOME to a folder on another disk",
    )
    if not os.access(settings.home, os.W_OK):
        yield Finding("bad", f"{settings.home} cannot be written", f"chown -R {os.getuid()} {settings.home}")
    if shutil.which("git") is None:
        yield Finding("hint", "git is not installed: lineage cannot name the commit", "install git")
    import torch

    gpus = torch.cuda.device_count()
    yield Finding("ok", f"torch {torch.__version__}, {os.cpu_count()} processors, {gpus or 'no'} GPUs")


def project(settings: Settings) -> Iterator[Finding]:
    """The stage graph, every recipe, and every run's lock."""
    from flows import recipes
    from infra import graph

    names = recipes.list_recipes(settings.project)
    for name in names:
        try:
            scales = recipes.load(settings.project, name).get("scales") or {}
            recipes.resolve(settings.project, name, next(iter(scales), "paper"), [])
        except (recipes.RecipeError, runs.RunError) as error:
            yield Finding("bad", str(error), f"mend recipes/{name}.yaml")
    yield Finding("ok" if names else "bad", f"{len(names)} recipes in {settings.project}", "tessera init DIR")
    torn = [run.name for run in runs.all_runs(settings.project) if graph.lock_torn(run)]
    if torn:
        yield Finding(
            "hint", f"a torn dvc.lock was set aside in {', '.join(torn)}", "run them again: what was made is found"
        )


def services(settings: Settings) -> Iterator[Finding]:
    """Those of this project that run, and those that the settings name."""
    import httpx

    from infra import services as local

    found = local.status(settings)
    for entry in found:
        state: Literal["ok", "bad"] = "ok" if entry.state == "running" else "bad"
        log = settings.home / "logs" / f"{entry.name}.log"
        yield Finding(state, f"{entry.name} {entry.state} {entry.address}", f"{entry.detail} (see {log})")
    if not found:
        yield Finding("ok", "no service runs here; `tessera run` starts what it needs, `tessera up` everything")
    named = (("Prefect", "prefect_api", "/health"), ("MLflow", "tracking_uri", "/health"))
    for what, setting, path in named:
        url = getattr(settings, setting)
        if url.startswith("http"):
            remedy = f"check TESSERA_{setting.upper()} and whether the server runs"
            try:
                answer = httpx.get(url.rstrip("/") + path, timeout=10)
                yield Finding("ok" if answer.is_success else "bad", f"{what} at {url}: {answer.status_code}", remedy)
            except httpx.HTTPError as error:
                yield Finding("bad", f"{what} at {url} does not answer: {error}", remedy)
    if settings.ray_address:
        import socket

        host, _, port = settings.ray_address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            yield Finding("ok", f"Ray at {settings.ray_address}")
        except (OSError, ValueError) as error:
            yield Finding("bad", f"Ray at {settings.ray_address} does not answer: {error}", "check TESSERA_RAY_ADDRESS")


def remote(settings: Settings) -> Iterator[Finding]:
    """Whether data can be written where it belongs."""
    if settings.remote.startswith("s3://"):
        from infra.storage import open_store

        store = open_store(settings.remote)
        store.get(".tessera-doctor")
        yield Finding("ok", f"DVC remote {settings.remote} answers")
    else:
        folder = Path(settings.remote)
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
        yield Finding("ok" if writable else "bad", f"DVC remote {folder}", f"make {folder} writable")


def registry(settings: Settings, repair: bool = False) -> Iterator[Finding]:
    """The ledger's chain, and the aliases, which are a view of it."""
    from infra import ledger
    from infra import registry as models

    names = models.models(settings)
    for model in names:
        wrong = ledger.check(settings, model)
        if wrong and repair:
            ledger.rebuild_alias(settings, model)
            wrong = ledger.check(settings, model)
        for what in wrong:
            yield Finding("bad", what, "tessera doctor --repair moves the aliases to what the ledger says")
    yield Finding("ok", f"{len(names)} registered models; their ledgers were read")
