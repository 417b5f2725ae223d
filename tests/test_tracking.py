"""MLflow over its embedded store: everything found before it is created, and a model version without a pickle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infra import registry
from infra.settings import Settings
from infra.tracking import Tracking, flatten, shorten

ROOT = Path(__file__).parent.parent
RECIPE = {
    "system": "tiny",
    "seed": 0,
    "tokenizer": {"type": "grid", "train": {"lr": 1e-3}},
    "code": {"tokenizer": "abc"},
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(project=tmp_path_factory.mktemp("project"), home=Path(".tessera"))


@pytest.fixture(scope="module")
def tracking(settings: Settings) -> Tracking:
    return Tracking(settings)


@pytest.mark.slow
def test_runs_are_found_before_they_are_created(tracking: Tracking, settings: Settings) -> None:
    parent = tracking.parent("tiny", "one", RECIPE)
    child = tracking.child("tiny", parent, "one", "tokenizer", "k" * 64)
    again = Tracking(settings)
    assert again.parent("tiny", "one", RECIPE) == parent
    assert again.child("tiny", parent, "one", "tokenizer", "k" * 64) == child
    assert again.child("tiny", parent, "two", "tokenizer", "k" * 64) != child
    run = tracking.client.get_run(parent)
    assert run.data.params == {"system": "tiny", "seed": "0", "tokenizer.type": "grid", "tokenizer.train.lr": "0.001"}
    assert tracking.client.get_run(child).data.tags["mlflow.parentRunId"] == parent


def test_a_changed_recipe_is_another_parent(tracking: Tracking) -> None:
    first = tracking.parent("tiny", "changing", RECIPE)
    changed = tracking.parent("tiny", "changing", RECIPE | {"seed": 1})
    assert changed != first
    assert tracking.client.get_run(changed).data.params["seed"] == "1"
    assert tracking.parent("tiny", "changing", RECIPE | {"code": {"tokenizer": "other"}}) == first


def test_parameters_missing_after_a_kill_are_added(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tracking, "_params", killed)
        with pytest.raises(KeyboardInterrupt):
            tracking.parent("tiny", "killed", RECIPE)
    parent = tracking.parent("tiny", "killed", RECIPE)
    assert tracking.client.get_run(parent).data.params["seed"] == "0"


@pytest.mark.slow
def test_metrics_inputs_and_artifacts_can_be_logged_again(tracking: Tracking, tmp_path: Path) -> None:
    parent = tracking.parent("tiny", "again", RECIPE)
    run = tracking.child("tiny", parent, "again", "tokenizer", "a" * 64)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "loss.png").write_bytes(b"png")
    rows = [{"step": step, "time": 1.7e9 + step, "loss": 1.0 / (step + 1)} for step in range(2000)]
    tree = "d41d8cd98f00b204e9800998ecf8427e.dir"
    for _ in range(2):
        tracking.steps(run, rows)
        tracking.metrics(run, {"psnr": 20.5, "fd_judge[raw]": 3.0})
        tracking.inputs(run, {"outputs/dataset": tree})
        tracking.folder(run, tmp_path / "figures", "figures")
        tracking.finish(run)
    found = tracking.client.get_run(run)
    assert len(tracking.client.get_metric_history(run, "loss")) == 2000
    assert len(tracking.client.get_metric_history(run, "psnr")) == 1
    assert found.data.metrics["fd_judge_raw_"] == 3.0
    assert found.inputs is not None
    assert [entry.dataset.digest for entry in found.inputs.dataset_inputs] == [tree]
    assert [entry.path for entry in tracking.client.list_artifacts(run, "figures")] == ["figures/loss.png"]
    assert found.info.status == "FINISHED"


def test_long_values_say_that_they_are_cut() -> None:
    assert shorten("x" * 500) == "x" * 500
    assert len(shorten("x" * 501)) == 500
    assert shorten("x" * 9000).endswith("... 9000 letters")


def test_flat_names() -> None:
    nested = {"a": {"b": [1, 2], "c": None}, "m": [{"type": "psnr"}], "e": {}, "t": True}
    assert dict(flatten(nested)) == {"a.b": "[1, 2]", "a.c": "null", "m.0.type": "psnr", "e": "{}", "t": "true"}


_FIRST = """
import sys
from pathlib import Path
from infra.settings import Settings
from infra.tracking import Tracking
tracking = Tracking(Settings(project=Path(sys.argv[1]), home=Path(".tessera")))
print(tracking.parent("tiny", "one", {"seed": 0}))
"""


@pytest.mark.slow
def test_first_clients_at_once_make_one_store_and_one_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FIRST, str(tmp_path)]
    clients = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    answers = []
    for client in clients:
        out, errors = client.communicate(timeout=120)
        assert client.returncode == 0, errors
        answers.append(out.strip())
    assert len(set(answers)) == 1


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "registration"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "bundle.json").write_text("{}")
    (folder / "tokenizer" / "model.safetensors").write_bytes(b"\x00" * 16)
    return folder


def register(settings: Settings, bundle: Path, key: str, model: str) -> str:
    tracking = Tracking(settings)
    run_id = tracking.child(model, tracking.parent(model, key[:4], {}), key[:4], "registration", key)
    facts = {"tessera.data": "data1", "tessera.commit": "c0ffee", "tessera.metrics": '{"psnr": 20.0}'}
    return registry.register(settings, model, bundle, key=key, run=key[:4], run_id=run_id, facts=facts)


def test_a_version_a_key_and_no_pickle(settings: Settings, tracking: Tracking, bundle: Path) -> None:
    assert register(settings, bundle, "a" * 64, "m") == "1"
    assert register(settings, bundle, "b" * 64, "m") == "2"
    assert register(settings, bundle, "a" * 64, "m") == "1"  # found, and the newest stays the candidate
    assert registry.get_alias(settings, "m", "candidate") == "2"
    assert [str(v.version) for v in registry.versions(settings, "m")] == ["2", "1"]
    folder = registry.download("models:/m/1", settings)
    assert registry.download("models:/m@candidate", settings) != folder
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "bundle.json", "tokenizer/model.safetensors",
    ]  # fmt: skip
    stored = [path.name for path in settings.artifacts.rglob("*") if path.is_file()]
    assert "MLmodel" in stored
    assert not [name for name in stored if name.endswith((".pkl", ".pickle", ".pt", ".cloudpickle"))]
    assert "loader_module: flows.pyfunc_model" in (folder.parent.parent / "MLmodel").read_text()
    assert registry.evidence(settings, "m", "1") == {"data": "data1", "commit": "c0ffee", "run": "aaaa"}
    assert registry.metrics(settings, "m", "1", data="data1") == {"psnr": 20.0}
    assert registry.metrics(settings, "m", "1", data="other") is None


def test_killed_between_version_and_alias(settings: Settings, tracking: Tracking, bundle: Path) -> None:
    register(settings, bundle, "c" * 64, "killed")
    tracking.client.delete_registered_model_alias("killed", "candidate")
    assert register(settings, bundle, "c" * 64, "killed") == "1"
    assert registry.get_alias(settings, "killed", "candidate") == "1"


def test_what_is_not_there_is_a_message(settings: Settings, tracking: Tracking, tmp_path: Path) -> None:
    with pytest.raises(registry.RegistryError, match="there is no models:/nothing@champion"):
        registry.download("models:/nothing@champion", settings)
    with pytest.raises(registry.RegistryError, match="is not a model"):
        registry.download("nothing", settings)
    with pytest.raises(registry.RegistryError, match="holds no bundle"):
        register(settings, tmp_path / "none", "d" * 64, "m")
