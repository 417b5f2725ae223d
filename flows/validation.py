"""`tessera validate`: a data set, or token data, against a suite of expectations, with the champion's data as reference.

Read is the index alone (of tokens the arrays, a block at a time), never the samples. The suite is a built-in one
(`components/data/expectations/`) or a YAML file of one's own. What a person sees is a table; the exit code is the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components import yamlio
from components.data.files import Folder
from components.registry import nearest
from flows import outputs, recipes, runs
from flows.context import StageFailed
from flows.findings import show
from infra.settings import Settings
from infra.validation import Finding, SuiteError, validate

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from components.interfaces import Files

TOKENS = "tokens"  # the suite of token data, and the stage that makes them
_EXPECTATIONS = Path(__file__).resolve().parent.parent / "components" / "data" / "expectations"
_BLOCK = 1 << 22  # tokens that are looked at together
_SIGNATURE = "signature"
_IDENTITY = ("key", "hash", "shard", "row", _SIGNATURE)  # columns of the index that have no distribution


class ValidationError(ValueError):
    """Data that are not there; the message says what to do."""

    user_error = True


@dataclass(frozen=True)
class _Data:
    """What is validated, and by what."""

    files: Files
    suite: str
    system: str | None = None  # whose champion's data are the reference
    near: Mapping[str, Any] | None = None  # how near-duplicates were looked for, as in the recipe


def validate_data(settings: Settings, what: str, suite: str | None = None) -> list[Finding]:
    """Checks data and prints what was found. `what` is a run (its data set; with the suite `tokens` its tokens), a recipe
    (its run at the default scale), or the folder of a data set or of token data.

    `suite` is a built-in's name or a YAML file; by default that of the run's recipe, else that of the modality. Raises
    SuiteError, ValidationError, RunError."""
    data = _find(settings, what, suite)
    entries = load_suite(data.suite)
    is_tokens = "tokens.json" in data.files.names()
    frame = token_frame(data.files) if is_tokens else index_frame(data.files, near=data.near)
    reference = reference_frame(settings, data.system) if data.system and not is_tokens else None
    findings = validate(frame, entries, reference=reference)
    show(f"{what}: {len(frame):,} samples against the suite {data.suite}", findings)
    return findings


def _find(settings: Settings, what: str, suite: str | None) -> _Data:
    folder = Path(what)
    if (folder / "tokens.json").is_file():
        return _Data(Folder(folder), suite or TOKENS)
    if (folder / "dataset.json").is_file():
        from components.data.shards import describe
        from flows.sections import SUITES

        return _Data(Folder(folder), suite or SUITES[describe(folder)["modalities"][0]])
    if folder.is_dir() and not (folder / "recipe.yaml").is_file():
        raise ValidationError(
            f"{what} holds no data set: dataset.json is missing; `tessera run tokenizer --data {what}` makes one of your files"
        )
    run = _run(settings, what)
    recipe = yamlio.load(run / "recipe.yaml")
    section = recipe["dataset"]
    suite = suite or section["expectations"]
    files = outputs.files(run, TOKENS if suite == TOKENS else "dataset")
    return _Data(files, suite, recipe["system"], section.get("near_duplicates"))


def _run(settings: Settings, what: str) -> Path:
    """The run of that name, else the run of the recipe of that name at its default scale."""
    if what in recipes.list_recipes(settings.project) and not (settings.runs / what).is_dir():
        name = runs.run_name(what, None, [])
        if not (settings.runs / name).is_dir():
            raise ValidationError(f"the recipe '{what}' has no run '{name}' yet; `tessera run {what} --until dataset`")
        what = name
    return runs.find(settings.project, what)


def load_suite(name: str) -> list[dict[str, Any]]:
    """A built-in suite by its name, or the one in a YAML file. Raises SuiteError."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else _EXPECTATIONS / f"{name}.yaml"
    if not path.is_file():
        there = sorted(p.stem for p in _EXPECTATIONS.glob("*.yaml"))
        raise SuiteError(
            f"there is no suite '{name}'{nearest(name, there)} (there are: {', '.join(there)}; or name a .yaml file)"
        )
    try:
        suite = yamlio.load(path)
    except yamlio.YAMLError as error:
        raise SuiteError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(suite, list):
        raise SuiteError(f"{path}: expected a list of {{type, kwargs, severity}}, got {type(suite).__name__}")
    return suite


def judged(findings: Sequence[Finding], what: str) -> int:
    """The number of warnings. Raises StageFailed with what must hold and does not."""
    failed = [f for f in findings if not f.passed and not f.not_applicable]
    stopping = [f for f in failed if f.severity == "critical"]
    if stopping:
        lines = [f"  {f.expectation}({f.column}): {_said(f)}" for f in stopping]
        raise StageFailed(f"{what} does not meet its expectations:\n" + "\n".join(lines))
    return sum(f.severity == "warning" for f in failed)


def _said(finding: Finding) -> str:
    if not finding.examples:
        return f"observed {finding.observed}"
    return f"{finding.unexpected} of the samples, e.g. {', '.join(finding.examples[:5])} (values {finding.observed})"


# ----------------------------------------------------------------------------------------------------------- frames


def index_frame(files: Files | Path, near: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """The index of a data set as a frame, one row a sample, with what the suites ask beyond it: `splits_of_content`, the
    number of splits that hold the same content; and `near_duplicate_of`, with `near` (the section `near_duplicates` of its
    recipe). Raises ValidationError."""
    import pandas as pd

    from components.data import shards

    parts = list(shards.index(files))
    if not parts:
        raise ValidationError(f"{files} has no index: it was made by an earlier version; `tessera run` makes it again")
    signatures = [
        row for part in parts if _SIGNATURE in part.column_names for row in part.column(_SIGNATURE).to_pylist()
    ]
    kept = [part.drop_columns([_SIGNATURE] if _SIGNATURE in part.column_names else []) for part in parts]
    frame = pd.concat([part.to_pandas() for part in kept], ignore_index=True)
    frame["splits_of_content"] = frame.groupby("hash")["split"].transform("nunique")
    if near and any(signatures):
        frame["near_duplicate_of"] = _near(frame["key"], signatures, near)
    return frame


def _near(keys: pd.Series, signatures: Sequence[bytes | None], near: Mapping[str, Any]) -> pd.Series:
    """The key of the first text that each is like, null where there is none."""
    import numpy as np
    import pandas as pd

    from components.data.near_duplicates import Signer, near_duplicates

    signer = Signer.of(near)
    texts = np.array([row for row, signature in enumerate(signatures) if signature is not None])
    first = near_duplicates(np.stack([signer.read(signatures[row]) for row in texts]), near["threshold"])
    later = first != np.arange(len(first))
    like = pd.Series(None, index=range(len(keys)), dtype="str")
    like[texts[later]] = keys.to_numpy()[texts[first[later]]]
    return like


def reference_frame(settings: Settings, system: str) -> pd.DataFrame | None:
    """The index of the data that the champion of a system was trained on, without what tells samples apart. None without
    a champion, or when no run of this project has its data any more."""
    import pandas as pd

    from components.data import shards
    from infra import ledger

    records = ledger.history(settings, system)
    if not records:
        return None
    made = records[-1]
    everyone = sorted(runs.all_runs(settings.project), key=lambda run: run.name != made["run"])  # that run first
    run = next((run for run in everyone if _data_of(run) == made["data"]), None)
    if run is None or not outputs.present(run, "dataset"):
        return None
    tables = [
        part.drop_columns([name for name in part.column_names if name in _IDENTITY]).to_pandas()
        for part in shards.index(outputs.files(run, "dataset"))
    ]
    return pd.concat(tables, ignore_index=True) if tables else None


def _data_of(run: Path) -> str | None:
    """The content hash of a run's data set as it is committed."""
    lock = run / "dvc.lock"
    stages = (yamlio.load(lock) or {}).get("stages", {}) if lock.is_file() else {}
    outs = stages.get("dataset", {}).get("outs", [])
    return next((out["md5"] for out in outs if out["path"] == "outputs/dataset"), None)


def token_frame(files: Files, end: int | None = None) -> pd.DataFrame:
    """Token data as a frame, one row a sequence: length, minimum, maximum, distinct tokens, whether it has ended (null
    without an `end` token); vocabulary, codebook_usage, dead_codes and perplexity of the training tokens in every row."""
    import numpy as np
    import pandas as pd
    import torch

    from components.interfaces import TokenSpec
    from components.tokenizers._tokens import Counts

    spec = TokenSpec.of(json.loads(files.path("tokens.json").read_text())["spec"])
    counts = Counts(spec)
    parts = []
    for name, first, tokens in _blocks(files):
        split = name.partition("/")[0]
        if split == "train":
            counts.see(torch.from_numpy(tokens))
        ordered = np.sort(tokens, axis=1)
        ended = None if end is None else (tokens == end).any(axis=1).astype(float)
        parts.append(
            pd.DataFrame(
                {
                    "key": [f"{name}#{first + row}" for row in range(len(tokens))],
                    "split": split,
                    "length": tokens.shape[1],
                    "minimum": ordered[:, 0],
                    "maximum": ordered[:, -1],
                    "distinct": 1 + (np.diff(ordered, axis=1) != 0).sum(axis=1),
                    "ended": ended,
                }
            )
        )
    share, perplexity = counts.usage()
    whole = {"vocabulary": spec.vocabulary, "codebook_usage": share, "perplexity": perplexity}
    return pd.concat(parts, ignore_index=True).assign(**whole, dead_codes=counts.dead())


def _blocks(files: Files) -> Iterator[tuple[str, int, np.ndarray]]:
    """(shard, its first row here, tokens int64 [n, L]) of every shard, a block at a time."""
    import numpy as np

    for name in files.names():
        if name.endswith(".tokens.npy"):
            tokens = np.load(files.path(name), mmap_mode="r")
            step = max(1, _BLOCK // tokens.shape[1])
            for first in range(0, len(tokens), step):
                yield name, first, np.asarray(tokens[first : first + step], dtype=np.int64)
