"""Where things came from: an OpenLineage run event for every stage, kept with its run, and the tree they make.

Events follow the OpenLineage specification (openlineage.io/spec/2-0-2); the namespace of data sets is the DVC remote,
their name the content hash, so that any OpenLineage backend can join the events of all runs. They are written as plain
JSON: what the official client adds is transport.
"""

from __future__ import annotations

import json
import platform
import subprocess
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.settings import Settings
from infra.storage import write_json_atomic

_PRODUCER = "https://github.com/tessera/tessera"
_SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"

#: what a result depends on; a changed text file makes no tree dirty, nor does the run that is being made
_MADE_OF = ("*.py", "*.yaml", "*.toml", ":(exclude)runs")


class LineageError(ValueError):
    """A run or version without events; the message says what to do."""

    user_error = True


def event_path(run: Path, stage: str, key: str) -> Path:
    return run / "events" / f"{stage}-{key[:16]}.json"


def emit(
    run: Path,
    settings: Settings,
    *,
    stage: str,
    key: str,
    state: str,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    sections: Mapping[str, Any],
    metrics: Mapping[str, float],
    facts: Mapping[str, Any],
    published: Mapping[str, str] | None = None,
) -> Path:
    """Writes the event of one stage run; the same stage key of a run always has the same file.

    `published` are inputs that no run made, where they came from -> SHA-256."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    event = {
        "eventType": "COMPLETE",
        "eventTime": now,
        "producer": _PRODUCER,
        "schemaURL": _SCHEMA,
        "run": {
            "runId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{run.name}/{key}")),
            "facets": {
                "tessera": {
                    "_producer": _PRODUCER,
                    "_schemaURL": _PRODUCER,
                    "stage": stage,
                    "key": key,
                    "state": state,
                    "sections": dict(sections),
                    "metrics": dict(metrics),
                    "host": platform.node(),
                    "python": platform.python_version(),
                    **commit(settings.project),
                    **facts,
                }
            },
        },
        "job": {"namespace": run.name, "name": stage},
        "inputs": [
            *(_dataset(settings.remote, path, digest) for path, digest in inputs.items()),
            *(_dataset(PUBLISHED, source, digest) for source, digest in (published or {}).items()),
        ],
        "outputs": [_dataset(settings.remote, path, digest) for path, digest in outputs.items()],
    }
    path = event_path(run, stage, key)
    write_json_atomic(path, event)
    return path


PUBLISHED = "published"  # the namespace of weights from outside


def _dataset(namespace: str, path: str, digest: str) -> dict[str, Any]:
    return {
        "namespace": namespace,
        "name": digest,
        "facets": {"tessera": {"_producer": _PRODUCER, "_schemaURL": _PRODUCER, "path": path}},
    }


def commit(project: Path) -> dict[str, Any]:
    """The project's git commit and whether code or recipes differ from it; empty where there is no git."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=project, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    return (
        {} if head is None else {"commit": head, "dirty": bool(git("status", "--porcelain", "-uall", "--", *_MADE_OF))}
    )


def _all_events(run: Path) -> list[dict[str, Any]]:
    """Every event of a run, oldest first."""
    found = [json.loads(path.read_text()) for path in (run / "events").glob("*.json")]
    return sorted(found, key=lambda event: event["eventTime"])


def events(run: Path) -> dict[str, dict[str, Any]]:
    """The event of each stage that describes what is committed now.

    That is not always the newest: a changed setting that was changed back brings the outputs of an older event back."""
    committed = _committed(run)
    found: dict[str, dict[str, Any]] = {}
    fits: dict[str, bool] = {}
    for event in _all_events(run):
        name = event["job"]["name"]
        items = [item for side in ("inputs", "outputs") for item in event[side]]
        ends = {item["name"] for item in items if item["namespace"] != PUBLISHED}
        now = name in committed and committed[name] == ends
        if now or not fits.get(name):
            found[name], fits[name] = event, now
    return found


def _committed(run: Path) -> dict[str, set[str]]:
    """The content hashes of each stage in the run's lock."""
    from ruamel.yaml import YAML

    lock = run / "dvc.lock"
    stages = (YAML(typ="safe").load(lock) or {}).get("stages", {}) if lock.is_file() else {}
    return {name: _hashes(entry) for name, entry in stages.items()}


def _hashes(entry: Mapping[str, Any]) -> set[str]:
    return {item["md5"] for side in ("deps", "outs") for item in entry.get(side, []) if "md5" in item}


def digests(run: Path) -> set[str]:
    """Every content hash that a run's lock and events name."""
    found = {item["name"] for event in _all_events(run) for side in ("inputs", "outputs") for item in event[side]}
    return found.union(*_committed(run).values())


def tree(run: Path, settings: Settings, key: str | None = None) -> dict[str, Any]:
    """A run as a tree from its last stage back to its data: each node has its stage, hash, facts and inputs.

    With `key`, from the stage run of that key (a model version's tag `tessera.key`) instead. Raises LineageError where the
    run has no events."""
    everything = _all_events(run)
    now = events(run)
    if not now:
        raise LineageError(f"run '{run.name}' has no lineage yet: no stage was committed; start it with `tessera run`")
    # by content; what is committed now before what was, and the newer before the older
    maker = {out["name"]: event for event in [*everything, *now.values()] for out in event["outputs"]}
    if key is not None:
        chosen = [event for event in everything if event["run"]["facets"]["tessera"]["key"] == key]
        if not chosen:
            raise LineageError(f"run '{run.name}' has no event of the stage key {key[:12]}...")
        last = chosen[-1]
    else:
        last = now.get("registration") or list(now.values())[-1]

    def node(event: dict[str, Any]) -> dict[str, Any]:
        facet = event["run"]["facets"]["tessera"]
        stage = event["job"]["name"]
        own = next((out for out in event["outputs"] if out["facets"]["tessera"]["path"].startswith("outputs/")), None)
        parents: dict[str, dict[str, Any]] = {}
        unknown = []
        for item in event["inputs"]:
            made = maker.get(item["name"])
            if made is None:
                unknown.append({"path": item["facets"]["tessera"]["path"], "md5": item["name"]})
            elif made is not event:
                parents[made["run"]["runId"]] = made
        found = {
            "stage": stage,
            "key": facet["key"],
            "output": own["name"] if own else "",
            "time": event["eventTime"],
            "state": facet["state"],
            "commit": facet.get("commit", "")[:12] + ("+" if facet.get("dirty") else ""),
            "host": facet["host"],
            "settings": facet["sections"],
            "metrics": facet["metrics"],
            "shards": _shards(settings, own["name"]) if stage == "dataset" and own else [],
            "inputs": [node(parent) for parent in parents.values()],
        }
        known = ("made_by", "mlflow_run", "flow_run", "ray_job", "model_version", "seconds", "kept")
        found |= {name: facet[name] for name in known if facet.get(name) is not None}
        if unknown:
            found["unknown"] = unknown
        if stage == "mixture" and (summary := _mixture(settings, own["name"] if own else "")):
            found["weights"] = summary
        return found

    return {"run": run.name, "tree": node(last)}


def of_version(ref: str, settings: Settings) -> dict[str, Any]:
    """The tree of `models:/name@alias` or `models:/name/version`, with the version and who made it champion."""
    from infra import ledger, registry

    name, version = registry.resolve(ref, settings)
    tags = registry.tags(settings, name, version)
    run = settings.runs / tags.get("tessera.run", "")
    if not tags.get("tessera.run") or not run.is_dir():
        raise LineageError(f"{ref} was made by run '{tags.get('tessera.run', '?')}', which is not in {settings.runs}")
    promotions = [record for record in ledger.history(settings, name) if record["to"] == version]
    return {"model": name, "version": version, "promotions": promotions, **tree(run, settings, tags["tessera.key"])}


def render(found: Mapping[str, Any]) -> str:
    """A tree as text, one stage a line and its facts below it; a stage that many read is written out once."""
    lines: list[str] = []
    if "model" in found:
        lines.append(f"models:/{found['model']}/{found['version']}  (run {found['run']})")
        lines += [f"  {r['action']} {r['when'][:19]} by {r['who']}: {r['why'] or '-'}" for r in found["promotions"]]
    else:
        lines.append(f"run {found['run']}")
    seen: set[str] = set()

    def draw(node: Mapping[str, Any], lead: str, last: bool) -> None:
        branch, inner = ("`- ", "   ") if last else ("|- ", "|  ")
        again = node["key"] in seen
        lines.append(f"{lead}{branch}{node['stage']}  {node['output'][:12]}" + ("  (above)" if again else ""))
        if again:
            return
        seen.add(node["key"])
        deeper = lead + inner + ("|  " if node["inputs"] else "   ")
        made_by = node.get("made_by")
        origin = f"  made by {made_by}" if made_by and made_by != found["run"] else ""
        lines.append(f"{deeper}{node['time'][:19]}  code {node['commit'] or 'no git'}  on {node['host']}{origin}")
        if kept := node.get("kept"):
            why = "; ".join(f"{what} {how}" for what, how in kept["why"].items())
            lines.append(f"{deeper}kept by {kept['who']}, not made anew: {why}")
        metrics = list(node["metrics"].items())
        if metrics:
            more = f", and {len(metrics) - 4} more" if len(metrics) > 4 else ""
            lines.append(deeper + ", ".join(f"{name} {value:.4g}" for name, value in metrics[:4]) + more)
        if node.get("weights"):
            lines.append(deeper + _short(node["weights"]))
        for shard in node["shards"][:5]:
            lines.append(f"{deeper}{shard['md5'][:12]}  {shard['path']}")
        if len(node["shards"]) > 5:
            lines.append(f"{deeper}and {len(node['shards']) - 5} more files")
        for item in node.get("unknown", []):
            lines.append(f"{deeper}{item['md5'][:12]}  {item['path']} (made outside this run)")
        for index, parent in enumerate(node["inputs"]):
            draw(parent, lead + inner, index == len(node["inputs"]) - 1)

    draw(found["tree"], "", True)
    return "\n".join(lines)


def _short(summary: Any) -> str:
    """The first figures of a summary on one line."""
    figures = [f"{k} {v:.4g}" for k, v in summary.items() if isinstance(v, (int, float))]
    return ", ".join(figures[:5])


def _leaves(settings: Settings, digest: str) -> list[dict[str, str]]:
    """The files of a tree object in the shared cache, [] if it is not there."""
    path = _cached(settings, digest)
    return json.loads(path.read_text()) if digest.endswith(".dir") and path.is_file() else []


def _cached(settings: Settings, digest: str) -> Path:
    return settings.home / "cache" / "files" / "md5" / digest[:2] / digest[2:]


def _shards(settings: Settings, digest: str) -> list[dict[str, str]]:
    """The files of a data set by hash."""
    return [{"path": entry["relpath"], "md5": entry["md5"]} for entry in _leaves(settings, digest)]


def _mixture(settings: Settings, digest: str) -> Any:
    """The summary that the mixture stage wrote beside its weights, read by content: the run may have another by now."""
    for entry in _leaves(settings, digest):
        path = _cached(settings, entry["md5"])
        if entry["relpath"] == "mixture.json" and path.is_file():
            return json.loads(path.read_text()).get("summary")
    return None


def users(settings: Settings, digest: str) -> list[str]:
    """Every run/stage of the project that read this content."""
    return [
        f"{run.name}/{event['job']['name']}"
        for run in (sorted(settings.runs.iterdir()) if settings.runs.is_dir() else [])
        for event in _all_events(run)
        if any(item["name"] == digest for item in event["inputs"])
    ]
