"""A run whose data set and tokens stay in the store, a folder or S3: the same hashes as with everything in its folder, nothing
done twice, and DVC's own commands agree."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import outputs
from infra.datasets import StoreFiles
from infra.settings import Settings
from tests import _s3
from tests._project import SMALLEST, contents, counted, dvc, locked, make, sets, tessera

pytestmark = pytest.mark.slow

#: what is trained streams its data, wherever they are
STREAMED = {**SMALLEST, "tokenizer.train.memory_mb": 0, "generator.train.memory_mb": 0}
RUN = ("run", "quickstart", "--name", "q", "--inline", *sets(base=STREAMED))
LARGE = ("dataset", "tokens")  # stages that write into the store


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Everything in the run's folder."""
    settings = make(tmp_path_factory.mktemp("here") / "p")
    done = tessera(settings, *RUN)
    assert done.returncode == 0, done.stderr
    return settings


@pytest.fixture(scope="module")
def bucket() -> Iterator[_s3.Bucket]:
    with _s3.serve() as fresh, pytest.MonkeyPatch.context() as patch:
        yield fresh(patch)


@pytest.fixture(scope="module", params=["folder", "s3"])
def there(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Large outputs stay in the store: here, all of them."""
    settings = make(tmp_path_factory.mktemp("there") / "p")
    if request.param == "s3":
        url = f"{request.getfixturevalue('bucket').url}/store"
        settings = settings.model_copy(update={"remote": url, "local_data_mb": 0})
    else:
        settings = settings.model_copy(update={"local_data_mb": 0})
    done = run(settings, *RUN)
    assert done.returncode == 0, done.stderr
    return settings


def run(settings: Settings, *arguments: str):  # -> CompletedProcess
    """A command of somebody whose data are all too large for a run's folder."""
    from tests import _project

    variables = _project.variables

    def more(given: Settings) -> dict[str, str]:
        return variables(given) | {"TESSERA_LOCAL_DATA_MB": "0", "TESSERA_REMOTE": settings.remote}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_project, "variables", more)
        return tessera(settings, *arguments)


def test_what_is_committed_is_the_same_wherever_it_is(here: Settings, there: Settings) -> None:
    assert locked(there.runs / "q") == locked(here.runs / "q")
    for stage in LARGE:
        assert (here.runs / "q" / "outputs" / stage).is_dir()
        assert not (there.runs / "q" / "outputs" / stage).exists()


def test_readers_find_every_file_under_its_name(here: Settings, there: Settings) -> None:
    for stage in LARGE:
        local, remote = outputs.files(here.runs / "q", stage), outputs.files(there.runs / "q", stage)
        assert local.names() == remote.names()
        for name in local.names():
            assert local.path(name).read_bytes() == remote.path(name).read_bytes()


def test_the_same_command_again_finds_everything_up_to_date(there: Settings) -> None:
    before = counted(there, "q")
    done = run(there, *RUN)
    assert done.returncode == 0, done.stderr
    assert "everything is up to date" in done.stdout
    assert counted(there, "q") == before


def test_dvc_agrees_and_brings_the_bytes_into_another_place(there: Settings, here: Settings, tmp_path: Path) -> None:
    done = dvc(there.runs / "q", there, "repro", "--pull", "--allow-missing", "--dry")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Running stage" not in done.stdout + done.stderr
    clone = tmp_path / "runs" / "q"
    clone.parent.mkdir()
    shutil.copytree(there.runs / "q", clone, ignore=shutil.ignore_patterns("outputs", "work", "cache", "tmp"))
    pulled = dvc(clone, there, "pull", "outputs/dataset")
    assert pulled.returncode == 0, pulled.stdout + pulled.stderr
    assert contents(clone / "outputs" / "dataset") == contents(here.runs / "q" / "outputs" / "dataset")


def test_another_run_takes_the_data_from_the_store_and_makes_none(there: Settings) -> None:
    done = run(
        there, "run", "quickstart", "--name", "other", "--inline", *sets({"seed": 1}, STREAMED), "--until", "dataset"
    )
    assert done.returncode == 0, done.stderr
    done = run(there, "run", "quickstart", "--name", "twin", "--inline", *sets(base=STREAMED))
    assert done.returncode == 0, done.stderr
    assert counted(there, "twin") == {}
    assert locked(there.runs / "twin") == locked(there.runs / "q")


def test_a_shard_that_the_store_lost_is_noticed_and_made_again(there: Settings) -> None:
    files = outputs.files(there.runs / "q", "dataset")
    assert isinstance(files, StoreFiles)
    shard = next(name for name in files.names() if name.startswith("train/"))
    files.place.objects.remove(files.entries[shard])
    done = run(there, "plan", "quickstart", "--name", "q", *sets(base=STREAMED))
    assert "missing" in done.stdout, done.stdout + done.stderr
    done = run(there, *RUN)
    assert done.returncode == 0, done.stderr
    assert counted(there, "q")["dataset"] == 2
    assert not files.place.missing([files.entries[shard]])
    assert "everything is up to date" in run(there, *RUN).stdout
