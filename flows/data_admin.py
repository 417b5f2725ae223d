"""`tessera data verify | repair | gc`: what they print. Each returns the exit code."""

from __future__ import annotations

from flows.terminal import console, table
from infra import datasets, upkeep
from infra.settings import Settings

_SHOWN = 50


def _print(problems: list[upkeep.Problem]) -> None:
    rows = [list(problem.row().values()) for problem in problems[:_SHOWN]]
    table("", list(problems[0].row()), rows)
    if len(problems) > _SHOWN:
        console.print(f"... and {len(problems) - _SHOWN} more")


def verify(settings: Settings, thorough: bool) -> int:
    """Says what the store has lost or damaged, and which runs and models that concerns."""
    with console.status("reading every object" if thorough else "looking for every object"):
        problems = upkeep.verify(settings, thorough)
    if not problems:
        console.print(f"everything that runs and models need is in {datasets.store(settings).url}", soft_wrap=True)
        return 0
    _print(problems)
    places = " and ".join(sorted({problem.url for problem in problems}))
    console.print(
        f"{len(problems)} objects of {places} are missing or damaged; `tessera data repair` mends what it can"
    )
    return 1


def repair(settings: Settings) -> int:
    """Puts back what this machine still has."""
    with console.status("reading every object"):
        problems = upkeep.verify(settings, thorough=True)
    if not problems:
        console.print("there is nothing to repair")
        return 0
    mended, left = upkeep.repair(settings, problems)
    console.print(f"{len(mended)} objects were put back")
    if not left:
        return 0
    _print(left)
    runs = sorted({run for problem in left for run in problem.runs})
    trees = len({problem.tree for problem in left})
    console.print(
        f"{len(left)} objects are nowhere on this machine. The lists of {trees} data sets are taken out of the store, so that "
        "nobody takes them for whole" + (f"; run again what made them: {', '.join(runs)}" if runs else "")
    )
    upkeep.forget(settings, left)
    return 1


def gc(settings: Settings, grace_hours: float, dry: bool) -> int:
    """Removes what nobody needs, or says what that would be."""
    with console.status("looking for what nobody needs"):
        found = upkeep.garbage(settings, grace_hours)
    size = sum(size for _, size in found) / 2**20
    if dry:
        console.print(f"{len(found)} objects ({size:.1f} MB) are not needed; `tessera data gc --yes` removes them")
    else:
        removed = upkeep.collect(settings, found, grace_hours)
        console.print(f"removed {len(removed)} objects ({sum(removed.values()) / 2**20:.1f} MB)")
    return 0
