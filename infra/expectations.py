"""The expectations that Great Expectations has not, as suites name them: drift, leakage, balance, all or none.

Each is a model whose fields are the entry's `kwargs`, and looks at a pandas frame, one row a sample.

Drift is the population stability index, the sum over bins of (p - q) ln(p / q) (Siddiqi, Credit Risk Scorecards, 2006),
between the frame and a reference. Bins are the reference's deciles with one more at each end for what lies outside, or its
values where there are few, and one for nulls. In small samples the index is large by chance: under no drift it behaves as
(1/n + 1/m) chi-square with bins - 1 degrees (Yurdakul & Naranjo, 2020), so what chance explains is no drift.
Absent on purpose: tests of the joint distribution of several columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_DECILES = 10
_FEW = 12  # distinct numbers that are bins of their own
_CATEGORIES = 100  # names that are bins of their own; the others are one
_CHANCE = 0.999  # quantile of the index without drift that a drift exceeds
_SMOOTH = 0.5  # added to each count, so that an empty bin is no infinite drift


class NotEvaluated(Exception):
    """The frame lacks what the expectation looks at."""


@dataclass(frozen=True)
class Outcome:
    """What an expectation found. `rows` are the positions of those that fail it."""

    passed: bool
    observed: str
    rows: Sequence[int] = field(default=(), repr=False)
    not_applicable: bool = False


class Own(BaseModel):
    """One of ours; `names_rows`: it tells which rows fail, so that they can be put into quarantine."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    names_rows: ClassVar[bool] = False
    column: str

    def check(self, frame: pd.DataFrame, reference: pd.DataFrame | None) -> Outcome:
        raise NotImplementedError

    def of(self, frame: pd.DataFrame) -> pd.Series:
        if self.column not in frame:
            raise NotEvaluated(f"the data have no column '{self.column}'")
        return frame[self.column]


class NoDrift(Own):
    """`column` is distributed as in the reference: an index of at most `max_psi` (customary: 0.1 is little, 0.25 much), or
    no larger than chance explains. Not applicable without a reference."""

    max_psi: float = Field(gt=0)

    def check(self, frame: pd.DataFrame, reference: pd.DataFrame | None) -> Outcome:
        if reference is None:
            return Outcome(False, "there are no data of a champion to compare with", not_applicable=True)
        values = self.of(frame)
        if self.column not in reference:
            return Outcome(False, f"the champion's data have no column '{self.column}'", not_applicable=True)
        before = reference[self.column]
        if not values.count() and not before.count():
            return Outcome(False, "no sample has one, here or in the champion's data", not_applicable=True)
        return drift(before, values).outcome(self.max_psi)


class NoLeakage(Own):
    """No held-out sample is nearly the same as one that is not held out. `column` holds the key of the first sample that a
    row is like, null where there is none; not applicable without it."""

    names_rows = True
    column: str = "near_duplicate_of"

    def check(self, frame: pd.DataFrame, reference: pd.DataFrame | None) -> Outcome:
        import numpy as np

        if self.column not in frame:
            return Outcome(False, "near-duplicates were not looked for", not_applicable=True)
        alike = frame[frame[self.column].notna()]
        held_out = dict(zip(frame["key"], frame["split"] == "held_out", strict=True))
        other = alike[self.column].map(held_out).to_numpy(dtype=bool)
        leaks = np.flatnonzero(frame[self.column].notna())[other != (alike["split"] == "held_out").to_numpy(dtype=bool)]
        return Outcome(not len(leaks), f"{len(leaks)} of {len(alike)} near-duplicates across splits", leaks.tolist())


class Balance(Own):
    """The rarest value of `column` has at least `min_ratio` times as many samples as the commonest. Not applicable where
    no sample has a value."""

    min_ratio: float = Field(gt=0, le=1)

    def check(self, frame: pd.DataFrame, reference: pd.DataFrame | None) -> Outcome:
        counts = self.of(frame).value_counts()
        if counts.empty:
            return Outcome(False, f"no sample has a {self.column}", not_applicable=True)
        ratio = counts.iloc[-1] / counts.iloc[0]
        told = f"'{counts.index[-1]}' {counts.iloc[-1]:,} samples, '{counts.index[0]}' {counts.iloc[0]:,}: {ratio:.2g}"
        return Outcome(bool(ratio >= self.min_ratio), told)


class AllOrNone(Own):
    """Where some samples have a value in `column`, at least the share `mostly` has one; with `by`, in each group of that
    column (a source without captions may stand beside one with)."""

    names_rows = True
    mostly: float = Field(default=1.0, gt=0, le=1)
    by: str | None = None

    def check(self, frame: pd.DataFrame, reference: pd.DataFrame | None) -> Outcome:
        import numpy as np

        there = self.of(frame).notna()
        if self.by is not None and self.by not in frame:
            raise NotEvaluated(f"the data have no column '{self.by}'")
        share = there.groupby(frame[self.by]).transform("mean") if self.by else there.mean() + 0.0 * there
        short = ((share > 0) & ~there).to_numpy()
        enough = bool((share[share > 0] >= self.mostly).all())
        return Outcome(enough, _told(there, short), np.flatnonzero(short).tolist())


def _told(there: pd.Series, short: np.ndarray) -> str:
    if not there.any():
        return "none has one"
    return f"{there.sum():,} have one, {short.sum():,} lack it" if short.any() else f"{there.sum():,} have one"


OWN: dict[str, type[Own]] = {
    "expect_no_drift": NoDrift,
    "expect_no_leakage": NoLeakage,
    "expect_balance": Balance,
    "expect_all_or_none": AllOrNone,
}

# ------------------------------------------------------------------------------------------------------------ drift


@dataclass(frozen=True)
class Drift:
    """`psi` between two samples, what it can be by chance alone, and the bin whose share moved most."""

    psi: float
    chance: float
    bin: str
    before: float  # share of that bin in the reference
    after: float

    def outcome(self, max_psi: float) -> Outcome:
        told = f"PSI {self.psi:.3g} (by chance up to {self.chance:.2g})"
        told += f", most at {self.bin}: {self.before:.1%} before, {self.after:.1%} now"
        return Outcome(self.psi <= max(max_psi, self.chance), told)


def drift(before: pd.Series, after: pd.Series) -> Drift:
    """How far `after` is from `before`, both of one kind: numbers or names, neither of them empty."""
    import numpy as np
    import pandas as pd
    from scipy.stats import chi2

    numbers = pd.api.types.is_numeric_dtype(before) and pd.api.types.is_numeric_dtype(after)
    if numbers and before.nunique() > _FEW:
        names, first, second = _deciles(before.to_numpy(dtype=float), after.to_numpy(dtype=float))
    else:
        names, first, second = _values(before, after)
    bins, n, m = len(names), first.sum(), second.sum()
    p, q = (first + _SMOOTH) / (n + _SMOOTH * bins), (second + _SMOOTH) / (m + _SMOOTH * bins)
    moved = int(np.argmax(np.abs(first / n - second / m)))
    return Drift(
        psi=float(((p - q) * np.log(p / q)).sum()),
        chance=float((1 / n + 1 / m) * chi2.ppf(_CHANCE, bins - 1)) if bins > 1 else 0.0,
        bin=names[moved],
        before=float(first[moved] / n),
        after=float(second[moved] / m),
    )


def _deciles(before: np.ndarray, after: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Bins by the reference's deciles: below its least, ten between, above its largest, null; empty ones left out."""
    import numpy as np

    edges = np.unique(np.quantile(before[~np.isnan(before)], np.linspace(0, 1, _DECILES + 1)))
    names = [f"less than {edges[0]:.4g}", *(f"{a:.4g} to {b:.4g}" for a, b in pairwise(edges))]
    names += [f"more than {edges[-1]:.4g}", "none"]
    edges[0] = np.nextafter(edges[0], -np.inf)  # the least belongs to the first decile

    def counts(values: np.ndarray) -> np.ndarray:
        missing = np.isnan(values)
        found = np.bincount(np.searchsorted(edges, values[~missing]), minlength=len(names) - 1)
        return np.append(found, missing.sum()).astype(float)

    return _used(names, counts(before), counts(after))


def _values(before: pd.Series, after: pd.Series) -> tuple[list[str], np.ndarray, np.ndarray]:
    """One bin a value: the reference's commonest, the others together, null; empty ones left out."""
    known = before.value_counts().index[:_CATEGORIES]
    names = [f"'{name}'" if isinstance(name, str) else f"{name:g}" for name in known] + ["others", "none"]

    def counts(values: pd.Series) -> np.ndarray:
        import numpy as np

        found = values.value_counts()
        own = found.reindex(known, fill_value=0).to_numpy(dtype=float)
        return np.append(own, [found.sum() - own.sum(), values.isna().sum()])

    return _used(names, counts(before), counts(after))


def _used(names: list[str], first: np.ndarray, second: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
    used = first + second > 0
    return [name for name, one in zip(names, used, strict=True) if one], first[used], second[used]
