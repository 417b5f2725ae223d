"""The promotion ledger over a real MLflow registry: a chain of create-only records, the aliases its view."""

from __future__ import annotations

import json
import threading
from datetime import date, timedelta
from pathlib import Path

import pytest

from infra import ledger, registry
from infra.settings import Settings
from infra.storage import open_store
from infra.tracking import Tracking

MODEL = "tiny"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """An MLflow store with its tables; making them takes seconds."""
    settings = Settings(project=tmp_path_factory.mktemp("project"), home=Path(".tessera"))
    Tracking(settings)
    return settings


@pytest.fixture
def settings(empty: Settings, tmp_path: Path) -> Settings:
    """A registry with four versions of one model, and an empty ledger."""
    import shutil

    made = Settings(project=tmp_path, home=Path(".tessera"))
    made.home.mkdir()
    shutil.copy(empty.home / "mlflow.db", made.home / "mlflow.db")
    client = Tracking(made).client
    client.create_registered_model(MODEL)
    for number in range(1, 5):
        tags = {"tessera.data": f"data{number}", "tessera.commit": "c0ffee", "tessera.run": f"run{number}"}
        client.create_model_version(MODEL, f"file:///bundle/{number}", tags=tags)
    return made


def promote(settings: Settings, version: str, expected: str | None, who: str = "ada") -> dict[str, object]:
    gates = [{"gate": "psnr > 20", "passed": True}]
    return ledger.promote(settings, MODEL, version, who=who, why="better", gates=gates, expected=expected)


def alias(settings: Settings, name: str) -> str | None:
    return registry.get_alias(settings, MODEL, name)


def test_a_promotion_is_a_record_and_the_alias_its_view(settings: Settings) -> None:
    assert ledger.champion(settings, MODEL) is None
    assert ledger.check(settings, MODEL) == []
    promote(settings, "1", None)
    record = promote(settings, "3", "1")
    assert {k: record[k] for k in ("number", "from", "to", "who", "why", "data", "commit", "run")} == {
        "number": 2, "from": "1", "to": "3", "who": "ada", "why": "better",
        "data": "data3", "commit": "c0ffee", "run": "run3",
    }  # fmt: skip
    assert (alias(settings, "champion"), alias(settings, "previous")) == ("3", "1")
    assert [r["to"] for r in ledger.history(settings, MODEL)] == ["1", "3"]
    assert ledger.check(settings, MODEL) == []


def test_rollbacks_go_back_one_by_one(settings: Settings) -> None:
    for version, before in (("1", None), ("2", "1"), ("3", "2")):
        promote(settings, version, before)
    assert ledger.rollback(settings, MODEL, who="bob", why="worse")["to"] == "2"
    assert ledger.rollback(settings, MODEL, who="bob", why="worse")["to"] == "1"
    with pytest.raises(ledger.LedgerError, match="no earlier champion"):
        ledger.rollback(settings, MODEL, who="bob", why="worse")
    promote(settings, "4", "1")
    assert ledger.rollback(settings, MODEL, who="bob", why="worse")["to"] == "1"
    assert alias(settings, "champion") == "1"
    assert len(ledger.history(settings, MODEL)) == 7


def test_a_promotion_over_an_unexpected_champion_is_refused(settings: Settings) -> None:
    promote(settings, "1", None)
    promote(settings, "2", "1")
    with pytest.raises(ledger.LedgerError, match="version 2 by now, not 1"):
        promote(settings, "3", "1")
    assert alias(settings, "champion") == "2"


def test_of_promoters_at_the_same_moment_one_succeeds(settings: Settings) -> None:
    promote(settings, "1", None)
    start = threading.Barrier(3)
    results: dict[str, str] = {}

    def attempt(version: str) -> None:
        start.wait()
        try:
            promote(settings, version, "1", who=version)
            results[version] = "promoted"
        except ledger.LedgerError as error:
            results[version] = str(error)

    threads = [threading.Thread(target=attempt, args=(version,)) for version in ("2", "3", "4")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [version for version, result in results.items() if result == "promoted"]
    assert ledger.champion(settings, MODEL) == winner == alias(settings, "champion")
    assert len(ledger.history(settings, MODEL)) == 2
    assert ledger.check(settings, MODEL) == []


def test_who_was_champion_on_a_day(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    day = 86400.0
    for number, version, before in ((0, "1", None), (2, "2", "1")):
        monkeypatch.setattr("infra.ledger.time.time", lambda number=number: 1_777_000_000.0 + number * day)
        promote(settings, version, before)
    first = date.fromisoformat(ledger.history(settings, MODEL)[0]["when"][:10])
    days = [ledger.champion(settings, MODEL, first + timedelta(days=n)) for n in (-1, 0, 1, 2, 30)]
    assert days == [None, "1", "1", "2", "2"]
    assert len(ledger.history(settings, MODEL, on=first)) == 1


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_changed_record_is_found(settings: Settings, number: int) -> None:
    for version, before in (("1", None), ("2", "1"), ("3", "2")):
        promote(settings, version, before)
    path = Path(settings.ledger) / "promotions" / MODEL / f"{number:06d}.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"ada"', '"eve"'))
    assert "tampered" in ledger.check(settings, MODEL)[0]
    with pytest.raises(ledger.LedgerError, match="tampered"):
        promote(settings, "4", "3")


@pytest.mark.parametrize("gone", [[1], [2], [3], [2, 3], [1, 2, 3]])
def test_a_removed_record_is_found(settings: Settings, gone: list[int]) -> None:
    for version, before in (("1", None), ("2", "1"), ("3", "2")):
        promote(settings, version, before)
    for number in gone:
        (Path(settings.ledger) / "promotions" / MODEL / f"{number:06d}.json").unlink()
    assert "tampered" in ledger.check(settings, MODEL)[0]


def test_garbage_in_the_ledger_is_a_message(settings: Settings) -> None:
    open_store(settings.ledger).put_if_absent(f"promotions/{MODEL}/000001.json", b"{not json")
    with pytest.raises(ledger.LedgerError, match=r"tampered .*000001\.json"):
        ledger.history(settings, MODEL)


def test_an_alias_moved_by_hand_is_found_and_put_back(settings: Settings) -> None:
    promote(settings, "1", None)
    promote(settings, "2", "1")
    Tracking(settings).client.set_registered_model_alias(MODEL, "champion", "4")
    assert ledger.check(settings, MODEL) == [f"{MODEL}: the alias champion is at version 4, the ledger says 2"]
    ledger.rebuild_alias(settings, MODEL)
    assert alias(settings, "champion") == "2"
    assert ledger.check(settings, MODEL) == []


def test_killed_between_record_and_alias(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(settings, "1", None)
    with monkeypatch.context() as killed:
        killed.setattr(ledger, "rebuild_alias", lambda *_: None)
        promote(settings, "2", "1")
    assert alias(settings, "champion") == "1"
    assert "the ledger says 2" in ledger.check(settings, MODEL)[0]
    ledger.rebuild_alias(settings, MODEL)
    assert alias(settings, "champion") == "2"
    promote(settings, "3", "2")
    assert ledger.check(settings, MODEL) == []


def test_a_version_that_is_not_there(settings: Settings) -> None:
    with pytest.raises(registry.RegistryError, match=r"no version 9 \(there are: 4, 3, 2, 1\)"):
        promote(settings, "9", None)
    assert ledger.history(settings, MODEL) == []


def test_only_the_three_aliases(settings: Settings) -> None:
    with pytest.raises(registry.RegistryError, match="not an alias"):
        registry.set_alias(settings, MODEL, "Champion", "1")


def test_the_record_is_readable_json(settings: Settings) -> None:
    promote(settings, "1", None)
    data = open_store(settings.ledger).get(f"promotions/{MODEL}/000001.json")
    assert data is not None
    assert json.loads(data)["gates"] == [{"gate": "psnr > 20", "passed": True}]
