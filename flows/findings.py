"""What was found in data, for people: a table in the terminal, and the words that the page of a data set uses as well."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape

from flows.terminal import console, table
from infra.validation import SEVERITIES, Finding


def show(title: str, findings: Sequence[Finding]) -> None:
    """A table of findings, those that failed first, and one line that sums up."""
    colors = {"passed": "green", "failed": "red", "warning": "yellow", "quarantine": "magenta", "not applicable": "dim"}
    rows = [
        [f"[{colors[word]}]{word}[/]", f.expectation, escape(columns), escape(f.wanted), escape(evidence(f))]
        for word, columns, f in lines(findings)
    ]
    table(title, ["", "expectation", "column", "wanted", "seen"], rows)
    console.print(summary(findings))


def lines(findings: Sequence[Finding]) -> list[tuple[str, str, Finding]]:
    """(verdict, columns, finding), those that failed first; what is not applicable for one reason is one line."""
    found: dict[tuple[str, str], list[Finding]] = {}
    for number, finding in enumerate(sorted(findings, key=lambda f: (f.passed, f.not_applicable))):
        why = finding.observed if finding.not_applicable else str(number)
        found.setdefault((finding.expectation, why), []).append(finding)
    return [(verdict(same[0]), ", ".join(f.column for f in same), same[0]) for same in found.values()]


def summary(findings: Sequence[Finding]) -> str:
    """`15 passed, 3 failed (2 warning, 1 quarantine), 5 not applicable`"""
    failed = [f for f in findings if not f.passed and not f.not_applicable]
    skipped = sum(f.not_applicable for f in findings)
    counts = [f"{n} {s}" for s in SEVERITIES if (n := sum(f.severity == s for f in failed))]
    told = f"{len(findings) - len(failed) - skipped} passed, {len(failed)} failed"
    return told + (f" ({', '.join(counts)})" if counts else "") + (f", {skipped} not applicable" if skipped else "")


def verdict(finding: Finding) -> str:
    """A finding in a word: passed, failed, warning, quarantine or not applicable."""
    if finding.passed or finding.not_applicable:
        return "passed" if finding.passed else "not applicable"
    return {"critical": "failed", "warning": "warning", "quarantine": "quarantine"}[finding.severity]


def evidence(finding: Finding) -> str:
    """What was seen, and samples that show it."""
    seen = "" if finding.observed == "[]" else finding.observed
    if not finding.unexpected:
        return seen
    count = f"{finding.unexpected:,} sample{'s' if finding.unexpected > 1 else ''}"
    if finding.passed:
        return f"{count}, within what is allowed"
    named = ", ".join(finding.examples[:5]) + (", ..." if finding.unexpected > 5 else "")
    return f"{count}: {named} ({seen})"
