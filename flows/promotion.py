"""From a registered version to a champion: gates, ledger record, alias.

The evaluation of champion and candidate is compared only where both were measured on the same held-out data; a champion
measured on other data is measured anew on the candidate's before it is compared.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components import yamlio
from flows import code, gates, runs
from flows.inputs import ServingError
from infra import ledger, lineage, registry
from infra.settings import Settings


@dataclass(frozen=True)
class Decision:
    """What became of a candidate. `version` is the model version, `champion` the version that holds the alias now."""

    model: str
    version: str
    champion: str | None
    promoted: bool
    text: str
    verdicts: list[gates.Verdict] = field(default_factory=list)
    against: dict[str, float] | None = None  # the champion's metrics

    def as_json(self) -> dict[str, Any]:
        return {"verdicts": [v.row() for v in self.verdicts], "against": self.against, "text": self.text}


class PromotionError(ValueError):
    """A promotion that cannot be judged; the message says what is missing."""

    user_error = True


def person() -> str:
    """Who is at the keyboard, as far as this machine knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def decide(settings: Settings, run: Path, *, who: str, why: str) -> Decision:
    """Judges the version that a run registered, and promotes it if every gate passes. Idempotent: the champion stays."""
    recipe = yamlio.load(run / "recipe.yaml")
    model = recipe["system"]
    version = registry.version_of(settings, run, model)
    if version is None:
        raise PromotionError(f"run '{run.name}' has not registered a model version; finish it with `tessera run`")
    current = ledger.champion(settings, model)
    if current == version:
        return Decision(model, version, current, False, f"{model} version {version} is the champion already")
    if not _reproducible(settings, run, model, version):
        text = (
            f"{model} version {version} stays a candidate: it was made from code or recipes that are not committed; "
            f"commit them, then `tessera promote {run.name}`"
        )
        return Decision(model, version, current, False, text)
    metrics = runs.metrics(run, "evaluation")
    against = registry.metrics(settings, model, current, data=heldout(run)) if current else None
    if current and against is None and any(gates.parse(gate).of_champion for gate in recipe["gates"]):
        try:
            against = _measure_again(settings, model, current, run)
        except ServingError as error:
            text = f"{model} version {version} stays a candidate: no comparison with champion {current} ({error})"
            return Decision(model, version, current, False, text)
    verdicts = gates.judge(recipe["gates"], metrics, against)
    failed = [verdict.gate for verdict in verdicts if not verdict.passed]
    if failed:
        text = f"{model} version {version} stays a candidate: {', '.join(failed)} not met"
        return Decision(model, version, current, False, text, verdicts, against)
    report = [verdict.row() for verdict in verdicts]
    ledger.promote(settings, model, version, who=who, why=why, gates=report, expected=current)
    before = f", version {current} is now `previous`" if current else ""
    return Decision(
        model, version, version, True, f"{model} version {version} is the champion{before}", verdicts, against
    )


def _reproducible(settings: Settings, run: Path, model: str, version: str) -> bool:
    """Whether a commit holds what made the version. One from an uncommitted tree gets the commit that came later, if by
    that nothing in the run would be made again."""
    if not registry.tags(settings, model, version).get("tessera.commit", "").endswith("+"):
        return True
    now = lineage.commit(settings.project)
    if now.get("dirty", True):
        return False
    recipe = yamlio.load(run / "recipe.yaml")
    if code.of_recipe(settings.project, recipe, runs.stage_list(run)) != recipe["code"]:
        return False
    registry.tag(settings, model, version, "tessera.commit", now["commit"])
    return True


def heldout(run: Path) -> str:
    """Content hash of the data set that the run's evaluation used."""
    outs = yamlio.load(run / "dvc.lock")["stages"]["dataset"]["outs"]
    return next(out["md5"] for out in outs if out["path"] == "outputs/dataset")


def _measure_again(settings: Settings, model: str, version: str, run: Path) -> dict[str, float]:
    """The champion's metrics on the held-out data of `run`."""
    from flows import evaluation

    bundle = registry.download(f"models:/{model}/{version}", settings)
    return evaluation.measure_bundle(bundle, run)
