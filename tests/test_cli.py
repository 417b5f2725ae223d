"""The command line as a person has it: a process of its own, in a project of its own, with nothing set up for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from components import yamlio
from flows import runs

ROOT = Path(__file__).parent.parent
TESSERA = Path(sys.executable).parent / "tessera"
HEAVY = {"torch", "prefect", "ray", "mlflow", "dvc", "great_expectations", "pandas", "matplotlib", "fastapi"}

Call = Callable[..., subprocess.CompletedProcess[str]]


def call(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command, to its end. Neither PYTHONPATH nor any variable of the platform is set."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONPATH" and not name.startswith(("TESSERA_", "PREFECT_", "MLFLOW_", "DVC_", "RAY_"))
    }
    return subprocess.run(
        [str(TESSERA), *arguments], cwd=cwd, env=kept | variables, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by `tessera init`, with one run that is planned and never started."""
    above = tmp_path_factory.mktemp("cli")
    done = call("init", "mine", cwd=above)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cd mine && tessera run quickstart" in done.stdout
    (above / "mine" / "empty").mkdir()
    done = call("plan", "quickstart", cwd=above / "mine", COLUMNS="200")
    assert (done.returncode, done.stderr) == (0, "")
    stages = [line.split()[:2] for line in done.stdout.splitlines()[2:]]
    assert stages == [[stage, "runs"] for stage in runs.stage_names(ROOT)], done.stdout
    return above / "mine"


@pytest.fixture
def tessera(project: Path) -> Call:
    return lambda *arguments, **variables: call(*arguments, cwd=project, **variables)


def imported(*arguments: str, cwd: Path) -> set[str]:
    """The top-level packages that a command has imported when it ends."""
    code = (
        "import sys\nfrom flows.cli import main\ntry:\n    main()\nfinally:\n"
        "    print('\\n' + ' '.join({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


# -------------------------------------------------------------------------------------------------------------- light


def test_help_comes_at_once(tmp_path: Path) -> None:
    spans = []
    for _ in range(3):
        started = time.perf_counter()
        done = call("--help", cwd=tmp_path)
        spans.append(time.perf_counter() - started)
        assert done.returncode == 0
    assert min(spans) < 0.5, spans
    for command in ("run", "plan", "runs", "report", "up", "down", "lineage", "promote", "rollback", "sample", "init"):
        assert f" {command} " in done.stdout


@pytest.mark.parametrize(
    "arguments", [("--help",), ("run", "--help"), ("runs", "--json"), ("status", "--json"), ("plan", "quickstart")]
)
def test_what_only_looks_imports_nothing_heavy(project: Path, arguments: tuple[str, ...]) -> None:
    allowed = {"dvc"} if arguments[0] == "plan" else set()  # what is fresh is DVC's to say
    assert imported(*arguments, cwd=project) & HEAVY <= allowed


# -------------------------------------------------------------------------------------------------------------- slips


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "run quikstart",
            "there is no recipe 'quikstart', did you mean 'quickstart'? (there are: climb-text, quickstart, tokenizer)",
        ),
        ("run ../quickstart", "'../quickstart' is not a recipe's name"),
        ("plan quickstart --scale tny", "recipes/quickstart.yaml has no scale 'tny', did you mean 'tiny'?"),
        (
            "plan quickstart --set tokenizer.widht=3",
            "recipes/quickstart.yaml: tokenizer.widht: unknown key 'widht', did you",
        ),
        ("run quickstart --set tokenizer.train.steps=many", "tokenizer.train.steps: Input should be a valid integer"),
        ("run quickstart --set tokenizer.quantizer.type=vqq", "no Quantizer is called 'vqq', did you mean 'vq'?"),
        ("run quickstart --set tokenizer", "'tokenizer' is not a change; write a.b=c"),
        ("run quickstart --set seed=[", "'seed=[': the value is not valid YAML"),
        ("run quickstart --name ../x", "'../x' cannot be a run's name"),
        ("run quickstart --until tokeniser", "run 'quickstart-tiny' has no stage 'tokeniser' (it has: dataset, "),
        ("run quickstart --force tokeniser", "run 'quickstart-tiny' has no stage 'tokeniser' (it has: dataset, "),
        ("run quickstart --keep tokeniser", "run 'quickstart-tiny' has no stage 'tokeniser' (it has: dataset, "),
        (
            "run quickstart --data empty",
            "--data is for recipes whose source reads a folder; 'quickstart' has the source",
        ),
        ("run quickstart --compute many", "Invalid value for '--compute'"),
        ("report quickstart-tin", "there is no run 'quickstart-tin', did you mean 'quickstart-tiny'?; `tessera runs`"),
        ("report quickstart-tiny", "run 'quickstart-tiny' has nothing to report yet: no stage has ended"),
        ("report ../x", "'../x' cannot be a run's name"),
        ("lineage nothing", "there is no run 'nothing'"),
        ("logs nothing", "there is no run 'nothing'"),
        ("rm nothing --yes", "there is no run 'nothing'"),
        ("history quickstart --on 3rd", "'3rd' is not a day; write it as 2026-05-03"),
        ("sample nothing", "there is no model at 'nothing'"),
        pytest.param(
            "sample models:/nothing@champion",
            "there is no models:/nothing@champion (registered models: none)",
            marks=pytest.mark.slow,
        ),
        ("rollback nothing", "nothing has no earlier champion to go back to"),
        ("encode missing.png", "no such file: missing.png"),
        ("encode dvc.yaml", "no run has a tokenizer yet"),
        ("decode missing.npz", "missing.npz is not a file of codes written by `tessera encode`"),
        ("init .", ". is not empty; give a new folder"),
        ("run quickstart --nothing", "No such option: --nothing"),
        ("nothing", "No such command 'nothing'"),
        ("run", "Missing argument"),
    ],
)
def test_a_slip_is_one_line_and_exit_code_2(project: Path, tessera: Call, arguments: str, message: str) -> None:
    done = tessera(*arguments.split())
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (project.parent / "x").exists()
    assert [path.name for path in (project / "runs").iterdir()] == ["quickstart-tiny"], "a slip leaves nothing behind"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("missing", "missing'; give the place that holds your data with --data"),
        ("empty", "empty' holds no files; give the place that holds your data with --data"),
    ],
)
def test_a_folder_without_pictures_is_one_line_and_exit_code_2(tmp_path: Path, folder: str, message: str) -> None:
    runs.init_project(tmp_path / "mine")
    (tmp_path / "mine" / "empty").mkdir()
    done = call("run", "tokenizer", "--data", folder, cwd=tmp_path / "mine")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stdout
    assert json.loads(call("status", "--json", cwd=tmp_path / "mine").stdout) == [], (
        "no server for a run in this process"
    )


def test_outside_of_a_project_the_message_says_how_to_make_one(tessera: Call, tmp_path: Path) -> None:
    done = tessera("runs", TESSERA_PROJECT=str(tmp_path))
    assert done.returncode == 0
    assert "no runs yet" in done.stdout
    done = tessera("plan", "quickstart", TESSERA_PROJECT=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error there is no recipe 'quickstart'")


def test_with_debugging_a_slip_shows_where_it_came_from(tessera: Call) -> None:
    done = tessera("report", "nothing", TESSERA_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RunError: there is no run 'nothing'" in done.stderr


# ------------------------------------------------------------------------------------------------------------ commands


def test_the_runs_are_listed_for_machines_and_for_people(tessera: Call) -> None:
    (run,) = json.loads(tessera("runs", "--json").stdout)
    assert run == {"run": "quickstart-tiny", "stages": 9, "done": 0, "last": None, "metrics": {}}
    assert "quickstart-tiny" in tessera("runs", COLUMNS="200").stdout


def test_nothing_runs_in_a_new_project(tessera: Call) -> None:
    assert json.loads(tessera("status", "--json").stdout) == []
    assert "nothing is running; `tessera up` starts" in tessera("status").stdout
    assert tessera("down").stdout == "nothing of this project is running any more\n"


@pytest.mark.slow
def test_the_schema_for_editors_accepts_the_recipes(project: Path, tessera: Call) -> None:
    done = tessera("schema")
    assert (done.returncode, done.stderr) == (0, "")
    schema = json.loads((project / "recipes" / ".schema.json").read_text())
    assert f"wrote {project}/recipes/.schema.json; put `# yaml-language-server: $schema=.schema.json`" in done.stdout
    for recipe in (project / "recipes").glob("*.yaml"):
        Draft202012Validator(schema).validate(yamlio.load(recipe))
    done = tessera("runs", "--json")
    assert done.returncode == 0, "the schema beside the recipes is not taken for one"


@pytest.mark.slow
def test_a_plan_says_what_changes_and_writes_a_run_of_its_own(tmp_path: Path) -> None:
    runs.init_project(tmp_path / "mine")
    changed = "tokenizer.transforms=[{type: 'my_components:Mirror'}]"
    done = call("plan", "quickstart", "--set", changed, "--name", "mirrored", cwd=tmp_path / "mine")
    assert (done.returncode, done.stderr) == (0, ""), "a component of the project is found without any PYTHONPATH"
    (run,) = runs.all_runs(tmp_path / "mine")
    assert run.name == "mirrored"
    assert yamlio.load(run / "recipe.yaml")["tokenizer"]["transforms"] == [{"type": "my_components:Mirror"}]


def test_a_command_works_from_a_folder_inside_the_project(project: Path) -> None:
    (run,) = json.loads(call("runs", "--json", cwd=project / "runs" / "quickstart-tiny").stdout)
    assert run["run"] == "quickstart-tiny"


def test_a_run_nobody_started_has_no_logs_and_no_promotion(tessera: Call) -> None:
    assert tessera("logs", "quickstart-tiny").stdout == "the stages of this run printed nothing\n"
    assert tessera("history", "quickstart").stdout == "quickstart has no promotion\n"
    assert json.loads(tessera("history", "quickstart", "--json").stdout) == []
