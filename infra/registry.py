"""The MLflow model registry: one self-contained version a run, found by its stage key before it is made.

A version is a pyfunc model whose code is named (`loader_module`) and whose data is the bundle: nothing is pickled. Three
aliases exist: `candidate` (the newest), `champion` and `previous` (views of the promotion ledger).
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from infra.settings import Settings
from infra.storage import file_lock, yaml_bytes
from infra.tracking import Tracking

ALIASES = ("candidate", "champion", "previous")
LOADER = "flows.pyfunc_model"
_REF = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


class RegistryError(ValueError):
    """A model or version that is not there; the message says which there are."""

    user_error = True


def register(
    settings: Settings, model: str, bundle: Path, *, key: str, run: str, run_id: str, facts: dict[str, str]
) -> str:
    """The version of a bundle: made once a stage key, tagged with `facts`. Returns its number.

    The alias `candidate` goes to the newest version; registering an older one again leaves it there."""
    if not bundle.is_dir() or not any(bundle.iterdir()):
        raise RegistryError(f"{bundle} holds no bundle; run the stage `registration` first")
    client = Tracking(settings).client
    _ensure_model(client, model)
    with file_lock(settings.home / "registry.lock"):  # two processes must not both find no version of this key
        found = client.search_model_versions(f"name = '{model}' and tags.`tessera.key` = '{key}'")
        version = found[0].version if found else _create(settings, client, model, bundle, key, run, run_id, facts)
        if found and found[0].tags.get("tessera.run") != run:  # of two runs that make the same, the first one names it
            client.set_model_version_tag(model, version, _also(run), key)
        candidate = get_alias(settings, model, "candidate")
        if candidate is None or int(candidate) < int(version):
            client.set_registered_model_alias(model, "candidate", version)
    return str(version)


def _create(
    settings: Settings, client: Any, model: str, bundle: Path, key: str, run: str, run_id: str, facts: dict[str, str]
) -> str:
    """Packages the bundle, stores it with the MLflow run, and only then makes the version that points to it."""
    folder = settings.home / "packages" / key[:16]
    shutil.rmtree(folder, ignore_errors=True)
    _package(folder, bundle)
    client.log_artifacts(run_id, str(folder), "model")
    if not any(entry.path == "model/MLmodel" for entry in client.list_artifacts(run_id, "model")):
        raise RegistryError(f"the bundle of run '{run}' did not arrive in MLflow's artifact store; nothing registered")
    source = client.get_run(run_id).info.artifact_uri + "/model"
    made = client.create_model_version(model, source, run_id, tags={"tessera.key": key, "tessera.run": run, **facts})
    shutil.rmtree(folder, ignore_errors=True)
    return str(made.version)


def _package(folder: Path, bundle: Path) -> None:
    """What `mlflow.pyfunc.save_model` makes, except that this one does not look through every installed package first."""
    import platform

    import mlflow
    from mlflow.models import Model

    data = f"data/{bundle.name}"
    shutil.copytree(bundle, folder / data)
    (folder / "requirements.txt").write_text(f"mlflow=={mlflow.__version__}\ntessera-tokens\n")
    environment = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    (folder / "python_env.yaml").write_bytes(yaml_bytes(environment))
    model = Model()
    mlflow.pyfunc.add_to_model(model, loader_module=LOADER, data=data, python_env="python_env.yaml")
    model.save(str(folder / "MLmodel"))


def _ensure_model(client: Any, model: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def models(settings: Settings) -> list[str]:
    """The name of every registered model."""
    return [model.name for model in Tracking(settings).client.search_registered_models()]


def versions(settings: Settings, model: str) -> list[Any]:
    """All versions of a model, newest first."""
    found = Tracking(settings).client.search_model_versions(f"name = '{model}'")
    return sorted(found, key=lambda version: -int(version.version))


def version_of(settings: Settings, run: Path, model: str) -> str | None:
    """The newest version that a run registered, or found registered by another run that made the same."""
    for version in versions(settings, model):
        if version.tags.get("tessera.run") == run.name or _also(run.name) in version.tags:
            return str(version.version)
    return None


def _also(run: str) -> str:
    """The tag of a version that says that this run has made the same bundle."""
    return f"tessera.run.{run}"


def get_alias(settings: Settings, model: str, alias: str) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        return str(Tracking(settings).client.get_model_version_by_alias(model, alias).version)
    except MlflowException:
        return None


def set_alias(settings: Settings, model: str, alias: str, version: str) -> None:
    if alias not in ALIASES:
        raise RegistryError(f"'{alias}' is not an alias of this platform (there are: {', '.join(ALIASES)})")
    client = Tracking(settings).client
    client.set_registered_model_alias(model, alias, version)
    if get_alias(settings, model, alias) != version:
        raise RegistryError(f"the alias {alias} of {model} did not move to version {version}")


def evidence(settings: Settings, model: str, version: str) -> dict[str, str]:
    """What the ledger keeps of a version: data hash, commit, run. Raises RegistryError if there is no such version."""
    from mlflow.exceptions import MlflowException

    try:
        tags = Tracking(settings).client.get_model_version(model, version).tags
    except MlflowException as error:
        known = ", ".join(str(v.version) for v in versions(settings, model)) or "none"
        raise RegistryError(f"{model} has no version {version} (there are: {known})") from error
    return {name: tags.get(f"tessera.{name}", "") for name in ("data", "commit", "run")}


def metrics(settings: Settings, model: str, version: str, data: str) -> dict[str, float] | None:
    """A version's evaluation if it was made on this held-out data, else None."""
    tags = Tracking(settings).client.get_model_version(model, version).tags
    if tags.get("tessera.data") != data or "tessera.metrics" not in tags:
        return None
    return json.loads(tags["tessera.metrics"])


def tag(settings: Settings, model: str, version: str, name: str, value: str) -> None:
    """A tag of one version."""
    Tracking(settings).client.set_model_version_tag(model, version, name, value)


def mark(settings: Settings, model: str, name: str, value: str) -> None:
    """A tag of the model as a whole."""
    Tracking(settings).client.set_registered_model_tag(model, name, value)


def marked(settings: Settings, model: str, name: str) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        return Tracking(settings).client.get_registered_model(model).tags.get(name)
    except MlflowException:
        return None


def resolve(ref: str, settings: Settings) -> tuple[str, str]:
    """(model, version) of `models:/name@alias` or `models:/name/version`. Raises RegistryError if there is no such one."""
    match = _REF.fullmatch(ref)
    if not match:
        raise RegistryError(f"'{ref}' is not a model: write models:/name@champion or models:/name/3")
    from mlflow.exceptions import MlflowException

    client = Tracking(settings).client
    name = match["name"]
    try:
        if match["alias"]:
            return name, str(client.get_model_version_by_alias(name, match["alias"]).version)
        return name, str(client.get_model_version(name, match["version"]).version)
    except MlflowException as error:
        known = ", ".join(model.name for model in client.search_registered_models()) or "none"
        raise RegistryError(f"there is no {ref} (registered models: {known})") from error


def tags(settings: Settings, model: str, version: str) -> dict[str, str]:
    return dict(Tracking(settings).client.get_model_version(model, version).tags)


def download(ref: str, settings: Settings) -> Path:
    """The bundle folder of `models:/name@alias` or `models:/name/version`."""
    from mlflow.artifacts import download_artifacts

    name, version = resolve(ref, settings)
    client = Tracking(settings).client
    uri = client.get_model_version_download_uri(name, version)
    folder = Path(download_artifacts(artifact_uri=uri, tracking_uri=client.tracking_uri))
    bundles = [path for path in (folder / "data").glob("*") if path.is_dir()]
    if len(bundles) != 1:
        raise RegistryError(f"{ref} has no bundle at {uri}: its files were removed; register the run again")
    return bundles[0]
