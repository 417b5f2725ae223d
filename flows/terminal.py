"""What a person sees in the terminal while a run goes on: one line a stage, with progress where there is some."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from flows.runs import main_figures

_WIDE = None if sys.stdout.isatty() else 200  # a file or a pipe has no width of its own
console = Console(highlight=False, width=_WIDE)
errors = Console(stderr=True, highlight=False)

_SHOWN = 3  # metrics on a stage's line


class Board:
    """A `flows.walk.Watch` that draws. Where the output is no terminal, one line when a stage starts and ends."""

    def __init__(self) -> None:
        self.live = console.is_terminal
        self.bars: dict[str, TaskID] = {}
        self.progress = Progress(
            TextColumn("  {task.fields[stage]:<13}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.description}"),
            console=console,
            transient=True,
        )
        self.last = 0.0

    def __enter__(self) -> Board:
        if self.live:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.progress.stop()

    def watch(self, stage: str, event: dict[str, Any]) -> None:
        state = event.get("state")
        if state == "running":
            reason = next(iter(f"{k}: {v}" for k, v in event.get("why", {}).items()), "")
            if self.live:
                self.bars[stage] = self.progress.add_task(reason, total=None, stage=stage)
            else:
                console.print(f"  {stage:<13} running   {reason}", soft_wrap=True)
        elif state:
            self._ended(stage, state, event)
        elif event.get("total") and stage in self.bars:
            note = event.get("note", "")
            self.progress.update(self.bars[stage], completed=event["done"], total=event["total"], description=note)
        elif event.get("total") and not self.live and time.monotonic() - self.last > 15:
            self.last = time.monotonic()
            console.print(f"  {stage:<13} {event['done']}/{event['total']} {event.get('note', '')}", soft_wrap=True)

    def _ended(self, stage: str, state: str, event: dict[str, Any]) -> None:
        if stage in self.bars:
            self.progress.remove_task(self.bars.pop(stage))
        mark = {
            "ran": "[green]done[/]",
            "cached": "[cyan]cached[/]",
            "restored": "[cyan]restored[/]",
            "kept": "[yellow]kept[/]",
        }
        metrics = main_figures(event.get("metrics", {}))
        shown = "  ".join(f"{k} {number(v)}" for k, v in list(metrics.items())[:_SHOWN])
        seconds = f"{event['seconds']:6.1f} s" if "seconds" in event else " " * 8
        console.print(
            f"  {stage:<13} {mark.get(state, state):<17} {seconds}  [dim]{event.get('text', shown)}[/]", soft_wrap=True
        )


def number(value: float) -> str:
    """A figure for people: whole numbers whole, the rest with four digits."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e12 else f"{value:.4g}"


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A plain table; cells are shown as they are."""
    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*("" if cell is None else str(cell) for cell in row))
    console.print(drawn)


def fail(message: str, code: int) -> None:
    """Says what went wrong and ends the process: 2 for the user's mistake, 1 for a failure."""
    errors.print(f"[bold red]error[/] {message}", soft_wrap=True, markup=True)
    sys.exit(code)
