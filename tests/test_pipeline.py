"""The whole of it: from raw data to a champion by one command, and everything that a person does with the run after that.

The expensive run is made once; tests that change the project stand below those that only look at it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from infra import ledger, registry, services, supervisor
from infra.settings import Settings
from tests._project import (
    SMALLEST,
    STAGES,
    commit,
    contents,
    counted,
    dvc,
    in_git,
    locked,
    make,
    mlflow_runs,
    printed,
    sets,
    start,
    tessera,
)
from tests._services import traces

pytestmark = pytest.mark.slow

RUN = ("run", "quickstart", "--name", "q")
ONCE = dict.fromkeys(STAGES, 1)


@dataclass(frozen=True)
class Quickstart:
    settings: Settings
    done: subprocess.CompletedProcess[str]
    rollback: subprocess.CompletedProcess[str]

    @property
    def run(self) -> Path:
        return self.settings.runs / "q"


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quickstart]:
    settings = make(tmp_path_factory.mktemp("quickstart") / "p", git=True)
    try:
        done = tessera(settings, *RUN, *sets())
        yield Quickstart(settings, done, tessera(settings, "rollback", "quickstart"))
    finally:
        services.down(settings)


# -------------------------------------------------------------------------------------------- what one command makes


def test_one_command_commits_all_stages_each_body_once(quickstart: Quickstart) -> None:
    assert quickstart.done.returncode == 0, quickstart.done.stderr
    assert tuple(locked(quickstart.run)) == STAGES
    assert counted(quickstart.settings, "q") == counted(quickstart.settings, "q", "ended") == ONCE


def test_the_model_is_registered_and_the_champion_and_the_ledger_holds(quickstart: Quickstart) -> None:
    settings = quickstart.settings
    (version,) = registry.versions(settings, "quickstart")
    assert version.tags["tessera.run"] == "q"
    assert registry.get_alias(settings, "quickstart", "champion") == str(version.version)
    records, _ = ledger.verify(settings, "quickstart")
    assert [(r["action"], r["to"], r["run"]) for r in records] == [("promote", str(version.version), "q")]
    assert records[0]["data"] == locked(quickstart.run)["dataset"]["outputs/dataset"]
    assert ledger.check(settings, "quickstart") == []


def test_a_rollback_without_an_earlier_champion_is_the_users_mistake(quickstart: Quickstart) -> None:
    assert quickstart.rollback.returncode == 2
    assert "no earlier champion" in quickstart.rollback.stderr


def test_mlflow_has_one_run_for_the_whole_and_one_for_each_stage(quickstart: Quickstart) -> None:
    found = mlflow_runs(quickstart.settings, "q")
    (parent,) = [run for run in found if run.data.tags["tessera.stage"] == "run"]
    children = {run.data.tags["tessera.stage"]: run for run in found if run is not parent}
    assert len(found) == 1 + len(STAGES)
    assert set(children) == set(STAGES)
    assert parent.data.params["tokenizer.train.steps"] == "8"
    assert "psnr" in parent.data.metrics
    for stage, child in children.items():
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.metrics, stage
        hashes = {json.loads(read.dataset.source)["md5"] for read in child.inputs.dataset_inputs}
        committed = {out for outs in locked(quickstart.run).values() for out in outs.values()}
        assert hashes <= committed
        assert bool(hashes) == (stage != "dataset"), stage


def test_every_stage_has_a_lineage_event_that_names_its_flow_and_mlflow_run(quickstart: Quickstart) -> None:
    events = [json.loads(path.read_text()) for path in (quickstart.run / "events").glob("*.json")]
    facts = {event["job"]["name"]: event["run"]["facets"]["tessera"] for event in events}
    assert len(events) == len(STAGES)
    assert set(facts) == set(STAGES)
    assert {fact["mlflow_run"] for fact in facts.values()} <= {
        run.info.run_id for run in mlflow_runs(quickstart.settings, "q")
    }
    assert all(len(fact["commit"]) == 40 for fact in facts.values())
    (flow,) = {fact["flow_run"] for fact in facts.values()}
    api = services.addresses(quickstart.settings).prefect
    tasks = httpx.post(f"{api}/task_runs/filter", json={"flow_runs": {"id": {"any_": [flow]}}}).json()
    assert {task["name"]: task["state"]["type"] for task in tasks} == dict.fromkeys([*STAGES, "promotion"], "COMPLETED")
    assert httpx.get(f"{api}/flow_runs/{flow}").json()["state"]["type"] == "COMPLETED"


def test_the_report_is_one_page_that_needs_no_network(quickstart: Quickstart) -> None:
    page = (quickstart.run / "report.html").read_text()
    references = re.findall(r"""(?:src|href|action|srcset)\s*=\s*["']?([^"'\s>]+)|url\(\s*["']?([^"')]+)""", page)
    assert len(references) >= 4  # its pictures
    assert [found for pair in references for found in pair if found and not found.startswith(("data:", "#"))] == []
    assert "<script" not in page
    assert all(f">{stage}<" in page for stage in STAGES)


# ------------------------------------------------------------------------------------------------ and everything again


def test_the_same_command_again_answers_at_once_and_imports_nothing_heavy(quickstart: Quickstart) -> None:
    seconds = []
    for _ in range(3):  # the quickest counts: other tests run at the same time
        began = time.monotonic()
        again = tessera(quickstart.settings, *RUN, *sets())
        seconds.append(time.monotonic() - began)
        assert again.returncode == 0
        assert "everything is up to date" in again.stdout
        assert again.stdout.count("cached") == len(STAGES)
    assert min(seconds) < 3
    watched = tessera(quickstart.settings, *RUN, *sets(), python=("-X", "importtime"))
    assert watched.returncode == 0
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in watched.stderr.splitlines()}
    assert "dvc" in imported
    assert not imported & {"torch", "ray", "prefect", "mlflow"}
    assert counted(quickstart.settings, "q") == ONCE


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("lineage", "q"), "posttraining"),
        (("lineage", "models:/quickstart@champion"), "promote"),
        (("plan", "quickstart", "--name", "q", *sets()), "cached"),
        (("compare", "q", "q"), "the recipes are the same"),
        (("history", "quickstart"), "promote"),
        (("report", "q", "--no-browser"), "report.html"),
        (("sample", "q", "-n", "4", "-o", "drawn.png"), "4 samples"),
        (("logs", "q"), ""),
        (("runs",), "9/9"),
        (("promote", "q"), "is the champion already"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_command_on_a_finished_run(quickstart: Quickstart, arguments: tuple[str, ...], says: str) -> None:
    done = tessera(quickstart.settings, *arguments)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    assert len(ledger.history(quickstart.settings, "quickstart")) == 1


def test_dvc_repro_finds_nothing_to_do(quickstart: Quickstart) -> None:
    before = (quickstart.run / "dvc.lock").read_bytes()
    done = dvc(quickstart.run, quickstart.settings, "repro", "--pull", "--allow-missing")
    assert done.returncode == 0, done.stderr
    assert "up to date" in done.stdout
    assert "Running stage" not in done.stdout
    assert (quickstart.run / "dvc.lock").read_bytes() == before
    assert counted(quickstart.settings, "q") == ONCE


def test_a_clone_pulls_the_same_bytes(quickstart: Quickstart, tmp_path: Path) -> None:
    commit(quickstart.settings.project)
    in_git(tmp_path, "clone", "-q", str(quickstart.settings.project), "clone")
    clone = Settings(project=tmp_path / "clone")
    run = clone.runs / "q"
    assert not (run / "outputs").exists()
    done = dvc(run, clone, "pull")
    assert done.returncode == 0, done.stderr
    for folder in ("outputs", "metrics", "plots"):
        assert contents(run / folder) == contents(quickstart.run / folder) != {}


def test_a_deleted_and_an_altered_output_come_back_and_no_body_runs(quickstart: Quickstart) -> None:
    before = contents(quickstart.run / "outputs"), locked(quickstart.run)
    shutil.rmtree(quickstart.run / "outputs" / "tokens")
    (quickstart.run / "metrics" / "networks.json").unlink()
    weights = quickstart.run / "outputs" / "mixture" / "sample_weights.npy"
    weights.write_bytes(bytes([*weights.read_bytes()[:-1], weights.read_bytes()[-1] ^ 1]))  # as long as before
    done = tessera(quickstart.settings, *RUN, *sets())
    assert done.returncode == 0, done.stderr
    assert re.findall(r"(\w+) +restored", done.stdout) == ["mixture", "networks", "tokens"]
    assert (contents(quickstart.run / "outputs"), locked(quickstart.run)) == before
    assert counted(quickstart.settings, "q") == ONCE
    assert len(registry.versions(quickstart.settings, "quickstart")) == 1


# ------------------------------------------------------------------------------------------- from here on it changes


def test_a_change_runs_only_what_reads_it(quickstart: Quickstart) -> None:
    before = counted(quickstart.settings, "q")
    changed: dict[str, object] = {"sampling.temperature": 0.9}
    sampling = tessera(quickstart.settings, *RUN, *sets(changed))
    assert sampling.returncode == 0, sampling.stderr
    between = counted(quickstart.settings, "q")
    assert between - before == {"evaluation": 1, "registration": 1}
    gates = tessera(quickstart.settings, *RUN, *sets({**changed, "gates": '["psnr >= 1000"]'}))
    assert gates.returncode == 0, gates.stderr
    assert counted(quickstart.settings, "q") - between == {"registration": 1}
    assert "stays a candidate: psnr >= 1000 not met" in gates.stdout
    numbers = [str(version.version) for version in registry.versions(quickstart.settings, "quickstart")]
    champion, candidate = (registry.get_alias(quickstart.settings, "quickstart", a) for a in ("champion", "candidate"))
    assert [numbers[0], numbers[1]] == [candidate, champion]


def test_what_dvc_repro_alone_made_is_cached_for_tessera_and_published(quickstart: Quickstart) -> None:
    settings, run = quickstart.settings, quickstart.settings.runs / "d"
    options = ("quickstart", "--name", "d", *sets({"evaluation.samples": 60}))
    planned = tessera(settings, "plan", *options)
    assert planned.returncode == 0, planned.stderr
    done = dvc(run, settings, "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert counted(settings, "d") == {"evaluation": 1, "registration": 1}  # the rest is another run's
    assert not (run / "events").exists()
    lock = (run / "dvc.lock").read_bytes()
    published = tessera(settings, "run", *options)
    assert published.returncode == 0, published.stderr
    assert len(re.findall(r"\w+ +cached", published.stdout)) == len(STAGES)
    assert counted(settings, "d") == {"evaluation": 1, "registration": 1}
    assert (run / "dvc.lock").read_bytes() == lock
    assert len(list((run / "events").glob("*-*.json"))) == len(STAGES)
    assert registry.version_of(settings, run, "quickstart") is not None
    assert (run / "report.html").is_file()


def test_a_second_run_of_the_same_is_restored_and_shares_the_version(quickstart: Quickstart) -> None:
    settings = quickstart.settings
    before = [version.version for version in registry.versions(settings, "quickstart")]
    done = tessera(settings, "run", "quickstart", "--name", "twin", *sets())
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"\w+ +restored", done.stdout)) == len(STAGES)
    assert counted(settings, "twin") == {}
    assert [version.version for version in registry.versions(settings, "quickstart")] == before
    assert registry.version_of(settings, settings.runs / "twin", "quickstart") == str(before[-1])  # what `q` was


def test_down_leaves_nothing_running(quickstart: Quickstart) -> None:
    assert supervisor.marked(quickstart.settings.home)
    assert tessera(quickstart.settings, "down").returncode == 0
    assert supervisor.marked(quickstart.settings.home) == []
    assert traces(quickstart.settings) == []


def test_two_runs_at_once_in_a_new_project_both_end_well(tmp_path: Path) -> None:
    settings = make(tmp_path / "p")
    seeds = {"one": 1, "two": 2}
    try:
        both = [
            start(settings, "run", "quickstart", "--name", name, *sets({"seed": seed}, SMALLEST))
            for name, seed in seeds.items()
        ]
        assert [process.wait(timeout=240) for process in both] == [0, 0], printed(settings)
        stages = [stage for stage in STAGES if stage not in ("mixture", "networks", "posttraining")]
        for name in seeds:
            assert list(locked(settings.runs / name)) == stages
            assert counted(settings, name) == dict.fromkeys(stages, 1)
            assert len(mlflow_runs(settings, name)) == 1 + len(stages)
        made = {version.tags["tessera.run"] for version in registry.versions(settings, "quickstart")}
        assert made == set(seeds)
        assert [record["run"] for record in ledger.verify(settings, "quickstart")[0]] in (
            ["one", "two"],
            ["two", "one"],
        )
        assert ledger.check(settings, "quickstart") == []
    finally:
        services.down(settings)
    assert traces(settings) == []
