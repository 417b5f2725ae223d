"""From a registered version to a champion and back, in a real project: gates, uncommitted code, other data, removal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows import evaluation
from infra import ledger, registry
from infra.settings import Settings
from tests import _project

pytestmark = pytest.mark.slow


def run(settings: Settings, name: str, changes: dict[str, object]) -> Path:
    options = _project.sets(changes, _project.SMALLEST)
    done = _project.tessera(settings, "run", "quickstart", "--inline", "--name", name, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return settings.runs / name


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A project under git with one run, `first`, whose version is the champion."""
    settings = _project.make(tmp_path_factory.mktemp("promotion") / "project", git=True)
    with open(settings.project / ".gitignore", "a") as ignored:
        ignored.write("/runs/\n")
    _project.commit(settings.project)
    run(settings, "first", {})
    done = _project.tessera(settings, "promote", "first", "--why", "it is the first")
    assert done.returncode == 0, done.stdout + done.stderr
    return settings


def champion(settings: Settings) -> str | None:
    return ledger.champion(settings, "quickstart")


def test_a_version_that_passes_is_the_champion_and_the_ledger_says_why(project: Settings) -> None:
    record = ledger.history(project, "quickstart")[0]
    assert (record["why"], record["run"], record["from"]) == ("it is the first", "first", None)
    assert len(record["commit"]) == 40
    assert registry.get_alias(project, "quickstart", "champion") == record["to"]
    again = _project.tessera(project, "promote", "first")
    assert again.returncode == 0
    assert "already" in again.stdout


def test_a_version_that_fails_a_gate_stays_a_candidate(project: Settings) -> None:
    before = champion(project)
    run(project, "failing", {"seed": 1, "gates": '["psnr >= 1000"]'})
    done = _project.tessera(project, "promote", "failing")
    assert done.returncode == 1
    assert "stays a candidate" in done.stdout
    assert champion(project) == before == registry.get_alias(project, "quickstart", "champion")


def test_a_bundle_measured_again_gives_what_its_own_run_measured(project: Settings) -> None:
    folder = project.runs / "first"
    own = json.loads((folder / "metrics" / "evaluation.json").read_text())
    assert evaluation.measure_bundle(folder / "outputs" / "registration", folder) == own


def test_a_champion_of_other_data_is_measured_on_the_candidates(project: Settings) -> None:
    changes = {"dataset.held_out": 0.3, "gates": '["psnr >= 0.5 * champion"]'}
    folder = run(project, "other-data", changes)
    done = _project.tessera(project, "promote", "other-data")
    bundle = registry.download("models:/quickstart@previous", project)
    expected = evaluation.measure_bundle(bundle, folder)["psnr"]
    assert done.returncode == 0, done.stdout + done.stderr
    gate = ledger.history(project, "quickstart")[-1]["gates"][0]
    assert gate["bound"] == pytest.approx(0.5 * expected)
    assert expected != json.loads((project.runs / "first" / "metrics" / "evaluation.json").read_text())["psnr"]


def test_what_uncommitted_code_made_is_promoted_only_after_the_commit(project: Settings) -> None:
    before = champion(project)
    module = project.project / "my_components.py"
    module.write_text(module.read_text() + "\nUNCOMMITTED = True\n")
    run(project, "uncommitted", {"seed": 2})
    refused = _project.tessera(project, "promote", "uncommitted")
    assert refused.returncode == 1
    assert "not committed" in refused.stdout
    assert champion(project) == before
    _project.commit(project.project)
    done = _project.tessera(project, "promote", "uncommitted")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not ledger.history(project, "quickstart")[-1]["commit"].endswith("+")


def test_doctor_finds_an_alias_that_left_the_ledger_and_puts_it_back(project: Settings) -> None:
    assert _project.tessera(project, "doctor").returncode == 0
    right = champion(project)
    wrong = next(str(v.version) for v in registry.versions(project, "quickstart") if str(v.version) != right)
    registry.set_alias(project, "quickstart", "champion", wrong)
    found = _project.tessera(project, "doctor")
    assert found.returncode == 1
    assert "the ledger says" in found.stdout
    assert _project.tessera(project, "doctor", "--repair").returncode == 0
    assert registry.get_alias(project, "quickstart", "champion") == right


def test_a_removed_run_takes_only_its_own_data_along(project: Settings) -> None:
    kept = run(project, "kept", {"seed": 3})
    gone = run(project, "gone", {"seed": 3, "tokenizer.train.steps": 9})
    refused = _project.tessera(project, "rm", ledger.history(project, "quickstart")[-1]["run"], "--yes")
    assert refused.returncode == 2
    assert "lineage would be lost" in refused.stderr
    shared = _project.locked(gone)["dataset"]["outputs/dataset"]
    own = _project.locked(gone)["tokenizer"]["outputs/tokenizer"]
    assert _project.tessera(project, "rm", "gone", "--yes").returncode == 0
    assert not gone.exists()
    for store in ("cache", "remote"):
        objects = project.home / store / "files" / "md5"
        assert (objects / shared[:2] / shared[2:]).is_file()
        assert not (objects / own[:2] / own[2:]).exists()
    assert "up to date" in _project.dvc(kept, project, "status").stdout
