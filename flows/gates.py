"""Gates: what a model version must show to be promotable, as short comparisons in the recipe.

    class_accuracy >= 0.9
    fd_judge <= 1.02 * champion          against the champion's own value, on the same held-out data

Each gives a row with value, bound, slack (how much is left, in the gate's own unit; negative when it fails) and verdict.
A gate that looks at the champion passes when there is none yet. Intervals are deliberately absent: a verdict is on the
point estimate.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from components.registry import nearest

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_GATE = re.compile(
    rf"^\s*(?P<metric>[A-Za-z][\w.]*)\s*(?P<sign><=|>=|<|>)\s*"
    rf"(?:(?P<factor>{_NUMBER})\s*(?P<times>\*\s*champion)?|(?P<champion>champion))\s*$"
)


class GateError(ValueError):
    """A gate that cannot be read, or that names a metric the evaluation does not measure."""

    user_error = True


@dataclass(frozen=True)
class Gate:
    metric: str
    sign: Literal["<=", ">=", "<", ">"]
    factor: float
    of_champion: bool
    text: str


@dataclass(frozen=True)
class Verdict:
    gate: str
    value: float
    bound: float | None
    slack: float | None
    passed: bool
    note: str = ""

    def row(self) -> dict[str, Any]:
        return asdict(self)


def parse(text: str) -> Gate:
    """Reads one gate; raises GateError with the form that is expected."""
    match = _GATE.match(text)
    if not match:
        raise GateError(
            f"cannot read the gate '{text}'; write e.g. 'class_accuracy >= 0.9' or 'fd_judge <= 1.02 * champion'"
        )
    of_champion = bool(match["times"] or match["champion"])
    return Gate(match["metric"], match["sign"], float(match["factor"] or 1.0), of_champion, text.strip())  # type: ignore[arg-type]


def judge(gates: Sequence[str], metrics: Mapping[str, float], champion: Mapping[str, float] | None) -> list[Verdict]:
    """One verdict a gate. `champion` holds the champion's metrics on the same held-out data, None if there is none."""
    return [_judge(parse(text), metrics, champion) for text in gates]


def shown(claims: Sequence[str], metrics: Mapping[str, float]) -> list[Verdict]:
    """The claims of a recipe that can be judged yet; they name metrics as `stage.metric` and never the champion."""
    known = [text for text in claims if parse(text).metric in metrics]
    return judge(known, metrics, None)


def _judge(gate: Gate, metrics: Mapping[str, float], champion: Mapping[str, float] | None) -> Verdict:
    if gate.metric not in metrics:
        hint = nearest(gate.metric, sorted(metrics))
        raise GateError(f"gate '{gate.text}': the evaluation has no metric '{gate.metric}'{hint}")
    value = float(metrics[gate.metric])
    if gate.of_champion and champion is None:
        return Verdict(gate.text, value, None, None, True, "no champion yet")
    if gate.of_champion and champion is not None and gate.metric not in champion:
        return Verdict(gate.text, value, None, None, False, "the champion was not measured by this metric")
    bound = gate.factor * (float(champion[gate.metric]) if gate.of_champion and champion else 1.0)
    slack = bound - value if "<" in gate.sign else value - bound
    passed = math.isfinite(value) and (slack > 0 if gate.sign in ("<", ">") else slack >= 0)
    return Verdict(gate.text, value, bound, slack, passed)
