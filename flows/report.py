"""The report of a run: one self-contained HTML page, `runs/<run>/report.html`. No script, no network.

Everything on it is read from the run's folder (recipe, metrics, plots, figures, tables of the outputs, lineage events),
so that the page can be made anew at any time and says the same.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import yamlio
from flows import gates, outputs, runs
from flows.promotion import Decision
from flows.terminal import number
from infra.storage import write_bytes_atomic, write_json_atomic

#: figures that stand at the top of the page, in this order: stage, name, over the whole width, the sentence below
_HERO = (
    ("evaluation", "samples", False, "Samples drawn from the generator, one row a class"),
    (
        "evaluation",
        "reconstructions",
        False,
        "Held-out pictures, and below each what the tokenizer makes of its tokens",
    ),
    ("evaluation", "before_after", True, "Without guidance: before (left) and after post-training"),
    ("mixture", "clusters", True, "The pool's clusters and the weight the search gave each"),
)
_WIDTH, _HEIGHT = 420, 180  # of a chart, in pixels


@dataclass(frozen=True)
class Chart:
    """A line chart as SVG, ready to stand in the page."""

    title: str
    svg: str


def write(run: Path, decision: Decision | None) -> Path:
    """Makes the page of a run; without a decision, with that of the last time."""
    kept = run / "work" / "decision.json"
    if decision is not None:
        write_json_atomic(kept, decision.as_json())
    last = json.loads(kept.read_text()) if kept.is_file() else {"verdicts": [], "against": None, "text": ""}
    page = render(run, last["verdicts"], last["against"], last["text"])
    path = run / "report.html"
    write_bytes_atomic(path, page.encode())
    return path


def render(run: Path, verdicts: list[dict[str, Any]], champion: dict[str, float] | None, text: str) -> str:
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(loader=PackageLoader("flows", "templates"), autoescape=select_autoescape(default=True))
    environment.filters["number"] = number
    recipe = yamlio.load(run / "recipe.yaml")
    stages = [name for name in runs.stage_list(run) if outputs.present(run, name)]
    metrics = {name: runs.metrics(run, name) for name in stages}
    hero = [(caption, wide, picture) for stage, name, wide, caption in _HERO if (picture := _picture(run, stage, name))]
    shown = {(stage, name) for stage, name, _, _ in _HERO}
    more = [
        (stage, name, _uri(path))
        for stage in stages
        for name, path in outputs.figures(run, stage).items()
        if (stage, name) not in shown
    ]
    return environment.get_template("report.html.j2").render(
        run=run.name,
        data_page=(run / "outputs" / "dataset" / "data.html").is_file(),
        recipe=recipe,
        title=recipe.get("title") or recipe["system"],
        hero=hero,
        figures=more,
        headline=_headline(metrics),
        metrics=metrics,
        evaluation=_against(metrics.get("evaluation", {}), champion),
        has_champion=champion is not None,
        charts=[chart for name in stages if (chart := loss_chart(run, name))],
        tables=[(stage, name, _table(path)) for stage in stages for name, path in outputs.tables(run, stage).items()],
        verdicts=verdicts,
        claims=[verdict.row() for verdict in gates.shown(recipe["claims"], runs.all_metrics(run))],
        decision=text,
        graph=graph_svg(run, stages, metrics),
        settings=yamlio.dump({k: v for k, v in recipe.items() if k != "code"}),
    )


def _headline(metrics: dict[str, dict[str, float]]) -> list[tuple[str, str]]:
    """The few figures that a colleague asks for first."""
    evaluation = metrics.get("evaluation", {})
    names = ("class_accuracy", "fd_judge", "diversity", "psnr", "ssim", "codebook_usage", "rl.error_removed")
    return [(name, number(evaluation[name])) for name in names if name in evaluation]


def _against(evaluation: dict[str, float], champion: dict[str, float] | None) -> list[dict[str, Any]]:
    before = champion or {}
    shown = runs.main_figures(evaluation).items()
    return [{"metric": name, "value": value, "champion": before.get(name)} for name, value in shown]


def _picture(run: Path, stage: str, name: str) -> str | None:
    found = outputs.figures(run, stage)
    return _uri(found[name]) if name in found else None


def _uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _table(path: Path) -> dict[str, Any]:
    rows = json.loads(path.read_text())
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows[:200]]
    return {"columns": columns, "rows": cells, "more": max(0, len(rows) - 200)}


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, (int, float)):
        return number(float(value))
    return json.dumps(value) if isinstance(value, (list, dict)) else str(value)


def loss_chart(run: Path, stage: str) -> Chart | None:
    """The loss of a training over its steps, from the versioned plot of the stage."""
    path = run / "plots" / f"{stage}.csv"
    if not path.is_file():
        return None
    series: dict[str, list[tuple[float, float]]] = {}
    for row in csv.DictReader(io.StringIO(path.read_text())):
        for name, value in row.items():
            if value and (name == "loss" or name.endswith("/loss") or name in {"reward", "reward_mean"}):
                series.setdefault(name, []).append((float(row["step"]), float(value)))
    return Chart(stage, line_svg(series)) if series else None


_COLORS = ("#2f6f6a", "#c2703d", "#5a5fa8", "#8a8f3c")


def line_svg(series: dict[str, list[tuple[float, float]]]) -> str:
    """Lines over a common axis, each scaled to its own range, with first and last value written beside it."""
    xs = [x for points in series.values() for x, _ in points]
    left, right = min(xs), max(xs) or 1.0
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">']
    parts.append(f'<line x1="8" y1="{_HEIGHT - 22}" x2="{_WIDTH - 8}" y2="{_HEIGHT - 22}" class="axis"/>')
    parts.append(f'<text x="8" y="{_HEIGHT - 6}">step {left:.0f}</text>')
    parts.append(f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 6}" text-anchor="end">{right:.0f}</text>')
    for index, (name, points) in enumerate(series.items()):
        values = [y for _, y in points]
        low, high = min(values), max(values)
        span_x, span_y = (right - left) or 1.0, (high - low) or 1.0
        path = " ".join(
            f"{8 + (x - left) / span_x * (_WIDTH - 16):.1f},{_HEIGHT - 28 - (y - low) / span_y * (_HEIGHT - 60):.1f}"
            for x, y in points
        )
        color = _COLORS[index % len(_COLORS)]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        text = f"{name} {number(values[0])} → {number(values[-1])}"
        parts.append(f'<text x="{8 + 200 * (index % 2)}" y="{14 + 14 * (index // 2)}" fill="{color}">{text}</text>')
    return "".join([*parts, "</svg>"])


def graph_svg(run: Path, stages: list[str], metrics: dict[str, dict[str, float]]) -> str:
    """The run's stages as boxes in columns by depth, with their inputs as lines and the content hash of their output."""
    graph = yamlio.load(run / "dvc.yaml")["stages"]
    lock_path = run / "dvc.lock"
    lock = yamlio.load(lock_path)["stages"] if lock_path.is_file() else {}
    parents = {
        name: [Path(dep).name for dep in graph[name].get("deps", []) if Path(dep).name in stages] for name in stages
    }
    depth: dict[str, int] = {}
    for name in stages:
        depth[name] = 1 + max((depth[parent] for parent in parents[name]), default=-1)
    columns: dict[int, list[str]] = {}
    for name in stages:
        columns.setdefault(depth[name], []).append(name)
    box, gap, height = 118, 34, 46
    place = {
        name: (12 + column * (box + gap), 14 + row * (height + 26))
        for column, names in columns.items()
        for row, name in enumerate(names)
    }
    width = 12 + len(columns) * (box + gap)
    tall = 20 + max(len(names) for names in columns.values()) * (height + 26)
    parts = [f'<svg viewBox="0 0 {width} {tall}" style="max-width: {width}px" role="img">']
    for name in stages:
        x, y = place[name]
        for parent in parents[name]:
            px, py = place[parent]
            middle = (px + box + x) / 2
            curve = f"M{px + box},{py + height / 2} C{middle},{py + height / 2} {middle},{y + height / 2} {x},{y + height / 2}"
            parts.append(f'<path d="{curve}" class="edge"/>')
    for name in stages:
        x, y = place[name]
        outs = {out["path"]: out["md5"] for out in lock.get(name, {}).get("outs", [])}
        parts.append(f'<rect x="{x}" y="{y}" width="{box}" height="{height}" rx="6" class="box"/>')
        parts.append(f'<text x="{x + 10}" y="{y + 19}" class="name">{name}</text>')
        parts.append(f'<text x="{x + 10}" y="{y + 35}" class="hash">{outs.get(f"outputs/{name}", "")[:12]}</text>')
    return "".join([*parts, "</svg>"])
