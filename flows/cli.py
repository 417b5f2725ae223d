"""`tessera`: every command of the platform. Imports nothing heavy until a command needs it."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

app = typer.Typer(
    name="tessera",
    help="Train discrete-token generative models: from raw data to a promoted generator.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)

Scale = Annotated[
    str | None, typer.Option("--scale", help="tiny (CPU, minutes), small (one GPU), paper", show_default="tiny")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="K=V", help="change the recipe; a.b=1,2 makes one run a value")
]
Name = Annotated[str, typer.Option("--name", help="name of the run")]
Data = Annotated[
    str | None,
    typer.Option("--data", help="your own folder or s3:// URL, for a recipe that reads one", metavar="PLACE"),
]
Json = Annotated[bool, typer.Option("--json", help="for machines")]


def _settings() -> Any:
    from flows import runs
    from infra.settings import Settings

    os.environ.setdefault("TESSERA_PROJECT", str(runs.project_root()))
    settings = Settings()
    if str(settings.project) not in sys.path:
        sys.path.insert(0, str(settings.project))  # for `type: module:Class` of the project, as in its workers
    from infra.settings import environment

    for key, value in environment(settings).items():
        os.environ.setdefault(key, value)
    return settings


def _run_folder(settings: Any, name: str) -> Path:
    from flows import runs

    return runs.find(settings.project, name)


# ---------------------------------------------------------------------------------------------------------- runs


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="a recipe's name, or a path to a recipe file of this project")],
    scale: Scale = None,
    set_: Set = None,
    name: Name = "",
    data: Data = None,
    until: Annotated[str | None, typer.Option(help="the last stage to run")] = None,
    force: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="run this stage even if it is up to date")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="accept this stage's output as current")
    ] = None,
    compute: Annotated[int, typer.Option(metavar="N", min=1, help="number of training processes")] = 1,
    inline: Annotated[
        bool, typer.Option("--inline", help="everything in this process: breakpoints, profilers")
    ] = False,
) -> None:
    """Bring a run of a recipe up to date. Interrupted? The same command goes on where it stopped."""
    from flows import recipes
    from flows.execute import Options, execute

    settings = _settings()
    options = Options(
        until=until,
        force=frozenset(force or ()),
        keep=frozenset(keep or ()),
        compute=compute,
        inline=inline or data is not None,
    )
    for overrides in recipes.expand(set_ or []):
        execute(settings, recipe, scale, overrides, name, data, options)


@app.command()
def plan(recipe: str, scale: Scale = None, set_: Set = None, name: Name = "", data: Data = None) -> None:
    """What would run, why, and what it cost last time; starts nothing."""
    from flows import plan as planning
    from flows.terminal import table

    settings = _settings()
    folder = planning.prepare(settings, recipe, scale, set_ or [], name, data)
    rows = []
    for stage in planning.plan(folder, settings):
        cost = f"{stage.cost:.0f} s" if stage.cost is not None else "never ran"
        rows.append([stage.stage, stage.state, "; ".join(f"{k} {v}" for k, v in stage.why.items()), cost])
    table(f"{folder.name}", ["stage", "state", "why", "last time"], rows)


@app.command()
def runs(as_json: Json = False) -> None:
    """All runs of the project."""
    from flows import views

    views.list_runs(_settings(), as_json)


@app.command()
def compare(names: list[str]) -> None:
    """Metrics and differing settings of any number of runs, side by side."""
    from flows import views

    settings = _settings()
    views.compare([_run_folder(settings, name) for name in names])


@app.command()
def logs(
    name: str, follow: Annotated[bool, typer.Option("-f", "--follow", help="go on as lines come")] = False
) -> None:
    """What the stages of a run printed."""
    from flows import views

    views.logs(_run_folder(_settings(), name), follow)


@app.command()
def cancel(name: str) -> None:
    """Stop the work of a run that goes on in the background."""
    from flows.terminal import console
    from infra import compute

    settings = _settings()
    stopped = compute.cancel(_run_folder(settings, name).name, settings)
    console.print("stopped" if stopped else "nothing of this run was running")


@app.command()
def rm(names: list[str], yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False) -> None:
    """Remove runs: their folders, and of their data whatever no other run uses."""
    from flows import views

    settings = _settings()
    views.remove(settings, [_run_folder(settings, name) for name in names], yes)


@app.command()
def accept(name: str) -> None:
    """Take a run's outputs as current although the code changed (recorded in its lineage); runs nothing."""
    from flows import views

    settings = _settings()
    views.accept(settings, _run_folder(settings, name))


@app.command()
def report(name: str, browser: Annotated[bool, typer.Option(help="open it in the browser")] = True) -> None:
    """The report of a run: one self-contained page."""
    from flows import views

    settings = _settings()
    views.open_report(settings, _run_folder(settings, name), browser)


@app.command(hidden=True)
def stage(name: str) -> None:
    """Run one stage's body in the run folder that is the working directory (what `dvc repro` calls)."""
    folder = Path.cwd()
    os.environ.setdefault("TESSERA_PROJECT", str(folder.parent.parent))
    _settings()
    from flows.worker import run_stage

    run_stage(str(folder), name, whole=True)


# ------------------------------------------------------------------------------------------------------ services


@app.command()
def up() -> None:
    """Start everything on this machine: Prefect, MLflow, Ray, and the worker that runs the deployments."""
    from flows import deploy as deploying

    deploying.up(_settings())


@app.command()
def down() -> None:
    """Stop everything that `up` or `run` started; leaves nothing running."""
    from flows.terminal import console
    from infra import services

    services.down(_settings())
    console.print("nothing of this project is running any more")


@app.command()
def status(as_json: Json = False) -> None:
    """Which services run, where, and how they are."""
    from flows import views

    views.status(_settings(), as_json)


@app.command()
def deploy() -> None:
    """Publish the flows to the Prefect server (anew after recipes were added)."""
    from flows import deploy as deploying

    deploying.deploy(_settings())


@app.command()
def doctor(
    repair: Annotated[
        bool, typer.Option("--repair", help="move the registry's aliases to what the ledger says")
    ] = False,
) -> None:
    """Check the installation and every configured service; says what to do."""
    from flows import doctor as checks

    raise typer.Exit(checks.run(_settings(), repair))


# ------------------------------------------------------------------------------------------------ models, lineage


@app.command()
def lineage(
    what: Annotated[str, typer.Argument(help="a run, or models:/name@alias; with --sample a file or a key")],
    sample: Annotated[
        bool, typer.Option("--sample", help="who has seen this sample: data sets, runs, model versions")
    ] = False,
    as_json: Json = False,
) -> None:
    """Where a run or model version came from: data, mixture, tokenizer, code, settings, metrics."""
    if sample:
        from flows import samples

        samples.seen(_settings(), what, as_json)
        return
    from flows import views

    views.lineage(_settings(), what, as_json)


@app.command()
def promote(
    what: Annotated[str, typer.Argument(help="the run whose model version becomes champion")],
    why: Annotated[str, typer.Option(help="the reason, for the ledger")] = "",
) -> None:
    """Judge a run's model version by its gates and make it the champion if it passes them."""
    from flows import promotion, views

    settings = _settings()
    views.decision(promotion.decide(settings, _run_folder(settings, what), who=promotion.person(), why=why))


@app.command()
def rollback(model: str, why: Annotated[str, typer.Option(help="the reason, for the ledger")] = "") -> None:
    """Make the champion before this one champion again."""
    from flows import promotion
    from flows.terminal import console
    from infra import ledger

    record = ledger.rollback(_settings(), model, who=promotion.person(), why=why)
    console.print(f"{model} version {record['to']} is the champion again (was {record['from']})")


@app.command()
def history(
    model: str,
    on: Annotated[str | None, typer.Option(metavar="DATE", help="who was champion then")] = None,
    as_json: Json = False,
) -> None:
    """Every promotion of a model: what, who, when, why."""
    from flows import views

    views.history(_settings(), model, on, as_json)


@app.command()
def sample(
    model: Annotated[str, typer.Argument(help="a run, a bundle folder, or models:/name@alias")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the picture to write")] = Path("samples.png"),
    n: Annotated[int, typer.Option("-n", help="how many", min=1, max=10_000)] = 16,
    label: Annotated[str | None, typer.Option(help="only this class")] = None,
    seed: int = 0,
    guidance: Annotated[float | None, typer.Option(help="classifier-free guidance; 1 is off")] = None,
    temperature: float | None = None,
) -> None:
    """Draw a grid of samples from a model."""
    from flows import use

    use.sample(_settings(), model, output, n=n, label=label, seed=seed, guidance=guidance, temperature=temperature)


@app.command()
def encode(
    files: list[Path],
    output: Annotated[Path, typer.Option("-o", "--output", help="where the codes go (.npz)")] = Path("codes.npz"),
    model: Annotated[
        str, typer.Option("-m", "--model", help="a run or models:/name@alias; default: the last run")
    ] = "",
) -> None:
    """Pictures to codes."""
    from flows import use

    use.encode(_settings(), model, files, output)


@app.command()
def decode(
    codes: Path,
    output: Annotated[Path, typer.Option("-o", "--output", help="folder for the pictures")] = Path("decoded"),
    model: Annotated[str, typer.Option("-m", "--model", help="a run or models:/name@alias; default: as encoded")] = "",
) -> None:
    """Codes back to pictures."""
    from flows import use

    use.decode(_settings(), model, codes, output)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="a run, a bundle or component folder, or models:/name@alias")],
    folder: Annotated[Path, typer.Argument(help="a new folder")],
    as_: Annotated[
        Literal["tessera", "transformers"], typer.Option("--as", help="whose format; transformers: a plain decoder")
    ] = "tessera",
    license_: Annotated[
        str, typer.Option("--license", help="of the weights, as the Hugging Face hub calls it")
    ] = "other",
) -> None:
    """Write a model as a folder for others, with a model card."""
    from flows import export as exporting

    exporting.export(_settings(), model, folder, as_, license_)


# ---------------------------------------------------------------------------------------------------------- data

data_app = typer.Typer(
    name="data", help="Look at data sets, compare them, and keep the store trustworthy.", no_args_is_help=True
)
app.add_typer(data_app)


@app.command()
def validate(
    what: Annotated[str, typer.Argument(metavar="DATA", help="a run, or the folder of a data set")],
    suite: Annotated[str, typer.Option(help="the expectations; default: those of its modality")] = "",
) -> None:
    """Check a data set against its expectations, and for drift against the champion's; exit code 1 if one stops it."""
    from flows import validation

    findings = validation.validate_data(_settings(), what, suite or None)
    stopping = any(f.severity == "critical" and not f.passed and not f.not_applicable for f in findings)
    raise typer.Exit(1 if stopping else 0)


@data_app.command()
def show(
    what: Annotated[str, typer.Argument(metavar="DATA", help="a run, or the folder of a data set")],
    html: Annotated[Path | None, typer.Option(help="write the page to this file as well")] = None,
) -> None:
    """What a data set is: splits, sizes, classes, examples, what was wrong."""
    from flows import data_views

    data_views.show(_settings(), what, html)


@data_app.command()
def diff(before: str, after: str, as_json: Json = False) -> None:
    """What changed between two data sets: samples, labels, splits, distributions."""
    from flows import data_views

    data_views.diff(_settings(), before, after, as_json)


@data_app.command()
def verify(
    thorough: Annotated[bool, typer.Option("--thorough", help="read and hash every object")] = False,
) -> None:
    """Is everything that runs and models refer to in the store, and unharmed? Exit code 1 if not."""
    from flows import data_admin

    raise typer.Exit(data_admin.verify(_settings(), thorough))


@data_app.command()
def repair() -> None:
    """Put back what the store has lost and this machine still has."""
    from flows import data_admin

    raise typer.Exit(data_admin.repair(_settings()))


@data_app.command()
def gc(
    grace: Annotated[float, typer.Option(metavar="HOURS", min=0, help="younger objects stay")] = 24.0,
    yes: Annotated[bool, typer.Option("--yes", help="remove; without it only say what would be removed")] = False,
) -> None:
    """Remove objects from the store that no run, model or running work refers to."""
    from flows import data_admin

    raise typer.Exit(data_admin.gc(_settings(), grace, dry=not yes))


# ------------------------------------------------------------------------------------------------------- project


@app.command()
def components(
    kind: Annotated[str, typer.Argument(help="a kind, such as Quantizer; default: all")] = "",
    markdown: Annotated[bool, typer.Option(help="as the page docs/components.md")] = False,
) -> None:
    """List what recipes can be made of."""
    from flows import parts

    parts.show(kind, markdown)


@app.command()
def schema(output: Annotated[Path, typer.Option("-o", "--output")] = Path("recipes/.schema.json")) -> None:
    """Write the JSON schema of recipes, so that editors complete them."""
    import json

    from flows import recipes
    from flows.terminal import console
    from infra.storage import write_bytes_atomic

    settings = _settings()
    target = output if output.is_absolute() else settings.project / output
    write_bytes_atomic(target, (json.dumps(recipes.schema(settings.project), indent=1) + "\n").encode())
    console.print(
        f"wrote {target}; put `# yaml-language-server: $schema=.schema.json` on a recipe's first line", soft_wrap=True
    )


@app.command()
def init(folder: Path) -> None:
    """Make a project of your own: recipes, the stage graph, a module for your components."""
    from flows import runs
    from flows.terminal import console

    runs.init_project(folder)
    console.print(f"{folder} is a project; next: cd {folder} && tessera run quickstart")


def main() -> None:
    """Entry point: a user's mistake is a message and exit code 2, a failure one and code 1; TESSERA_DEBUG=1 shows all."""
    code: Any = 1

    def leave() -> None:
        """The last exit function. Taking torch, Ray and MLflow apart would take a second more, for memory that the system
        takes back anyway."""
        with suppress(OSError):  # a pipe that nobody reads any more
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)

    atexit.register(leave)
    try:
        _main()
    except SystemExit as asked:
        code = asked.code or 0
        raise


def _main() -> None:
    from flows.terminal import fail

    try:
        sys.exit(app(standalone_mode=False) or 0)  # the code of a `typer.Exit`
    except typer.Abort:
        fail("stopped", 1)
    except KeyboardInterrupt:
        fail("interrupted; the same command continues", 130)
    except Exception as error:
        if hasattr(error, "format_message"):  # a wrong option or argument
            fail(escape(error.format_message()) + " (see `tessera --help`)", 2)
        if os.environ.get("TESSERA_DEBUG"):
            raise
        fail(escape(str(error) or type(error).__name__), 2 if _is_users(error) else 1)


def _is_users(error: Exception) -> bool:
    return bool(getattr(error, "user_error", False)) or type(error).__name__ in {"ComponentError", "ArtifactError"}


if __name__ == "__main__":
    main()
