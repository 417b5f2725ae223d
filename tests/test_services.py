"""`infra.services`: one set of local services a project, supervised, ended without a trace."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from infra import services, supervisor
from infra.services import ServiceError
from infra.settings import Settings
from tests._services import driver, project, traces, until

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    made = project(tmp_path / "p")
    yield made
    services.down(made)
    assert traces(made) == []


def pid(settings: Settings, name: str) -> int:
    entry = services.process(settings, name)
    return entry[0] if entry else 0


@pytest.mark.slow
def test_a_dead_service_comes_back(settings: Settings) -> None:
    services.ensure(settings, {"s"}, extra={"s": SLEEPER})
    first = pid(settings, "s")
    os.kill(first, signal.SIGKILL)
    until(lambda: pid(settings, "s") not in (0, first))
    assert services.status(settings)[0].restarts == 1


@pytest.mark.slow
def test_who_comes_second_attaches(settings: Settings) -> None:
    services.ensure(settings, {"s"}, extra={"s": SLEEPER})
    first = pid(settings, "s")
    services.ensure(settings, {"s", "t"}, extra={"s": SLEEPER, "t": SLEEPER})
    assert pid(settings, "s") == first
    assert {entry.name for entry in services.status(settings)} == {"s", "t"}


@pytest.mark.slow
def test_four_at_once_start_one_supervisor(settings: Settings) -> None:
    code = f"""
import os
from infra import services
from infra.settings import Settings
settings = Settings()
services.ensure(settings, {{"s"}}, extra={{"s": {SLEEPER!r}}})
print(services._state(settings)["supervisor"]["pid"], services.process(settings, "s")[0])
"""
    answers = {each.communicate(timeout=30)[0] for each in [driver(settings, code) for _ in range(4)]}
    assert len(answers) == 1


@pytest.mark.slow
def test_a_service_that_cannot_run_is_an_error_with_what_it_printed(settings: Settings) -> None:
    with pytest.raises(ServiceError, match=r"could not be started.*no-such-program"):
        services.ensure(settings, {"s"}, extra={"s": ["/no-such-program"]})
    broken = [sys.executable, "-c", "raise SystemExit('no module named prefect')"]
    with pytest.raises(ServiceError, match="no module named prefect"):
        services.ensure(settings, {"t"}, extra={"t": broken})


@pytest.mark.slow
def test_after_a_failure_the_next_request_starts_afresh(settings: Settings) -> None:
    with pytest.raises(ServiceError):
        services.ensure(settings, {"s"}, extra={"s": ["/no-such-program"]})
    services.ensure(settings, {"s"}, extra={"s": SLEEPER})
    assert services.status(settings)[0].state == "running"


@pytest.mark.slow
def test_what_was_left_by_a_killed_supervisor_is_cleaned_up_and_leases_hold(settings: Settings) -> None:
    with services.lease(settings):
        services.ensure(settings, {"s"}, extra={"s": SLEEPER})
        first = pid(settings, "s")
        parent = json.loads((settings.home / "services/state.json").read_text())["supervisor"]["pid"]
        os.kill(parent, signal.SIGKILL)
        until(lambda: supervisor.started(parent) is None)
        services.ensure(settings, {"s"}, extra={"s": SLEEPER})
        assert pid(settings, "s") not in (0, first)
        assert supervisor.started(first) is None
        assert supervisor.leased(settings.home)


@pytest.mark.slow
def test_idle_services_end_but_not_under_a_lease(tmp_path: Path) -> None:
    settings = project(tmp_path / "p", idle_minutes=0.02)
    with services.lease(settings):
        services.ensure(settings, {"s"}, extra={"s": SLEEPER})
        with pytest.raises(AssertionError):
            until(lambda: not pid(settings, "s"), seconds=3)
    until(lambda: traces(settings) == [], seconds=15)
    services.ensure(settings, {"s"}, extra={"s": SLEEPER}, idle=False)
    with pytest.raises(AssertionError):
        until(lambda: not pid(settings, "s"), seconds=3)
    services.down(settings)
    assert traces(settings) == []


@pytest.mark.slow
def test_a_port_in_use_is_avoided_or_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        chosen = Settings(project=tmp_path, prefect_port=port)
        with pytest.raises(ServiceError, match=f"port {port} .TESSERA_PREFECT_PORT. is in use"):
            services._port(port, "prefect_port", chosen)
        assert services._port(port, "prefect_port", Settings(project=tmp_path)) != port


@pytest.mark.slow
def test_secrets_are_for_the_user_alone(settings: Settings) -> None:
    token = settings.project / "token"
    services._make_token(token)
    secret = token.read_text()
    services._make_token(token)
    assert token.read_text() == secret
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    services.ensure(settings, {"s"}, extra={"s": SLEEPER})
    assert stat.S_IMODE((settings.home / "services").stat().st_mode) == 0o700


# ---------------------------------------------------------------------------------------------- the real ones


def _listening() -> dict[int, set[str]]:
    """Local addresses (hexadecimal) of TCP sockets that listen, by inode."""
    found: dict[int, set[str]] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found.setdefault(int(fields[9]), set()).add(fields[1].split(":")[0])
    return found


def _addresses(settings: Settings) -> set[str]:
    sockets = _listening()
    found: set[str] = set()
    for process in supervisor.marked(settings.home):
        try:
            links = [os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir()]
        except OSError:
            continue
        for link in links:
            if link.startswith("socket:["):
                found |= sockets.get(int(link[8:-1]), set())
    return found


@pytest.mark.slow
def test_all_services_on_loopback_with_a_token_and_nothing_left(settings: Settings) -> None:
    addresses = services.ensure(settings, {"prefect", "mlflow", "ray"}, idle=False)
    assert urlopen(f"{addresses.prefect}/health").status == 200
    assert urlopen(addresses.mlflow).status == 200  # type: ignore[arg-type]
    assert {entry.state for entry in services.status(settings)} == {"running"}
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert _addresses(settings) <= loopback

    connect = f"""
import os, sys
os.environ.update({services.ray_variables(settings)!r} | {{"RAY_AUTH_MODE": sys.argv[1] if len(sys.argv) > 1 else "token"}})
import ray
try:
    ray.init(address={addresses.ray!r}, logging_level="ERROR")
    print("connected")
except Exception as error:
    print("refused", type(error).__name__)
"""
    own = settings.home / "ray_token"
    for token, expected in ((own.read_text(), "connected"), ("f" * 64, "refused")):
        (settings.project / "token").write_text(token)
        named = f"os.environ['RAY_AUTH_TOKEN_PATH'] = {str(settings.project / 'token')!r}"
        client = connect.replace("import ray\n", f"{named}\nimport ray\n")
        assert expected in driver(settings, client).communicate(timeout=60)[0]
    assert "refused" in driver(settings, connect.replace('else "token"', 'else "disabled"')).communicate(timeout=60)[0]

    services.down(settings)
    assert traces(settings) == []
    assert not supervisor.ray_folder(settings.home).exists()


@pytest.mark.slow
def test_ray_is_collected_after_its_supervisor_was_killed(settings: Settings) -> None:
    services.ensure(settings, {"ray"})
    os.kill(json.loads((settings.home / "services/state.json").read_text())["supervisor"]["pid"], signal.SIGKILL)
    services.down(settings)
    assert traces(settings) == []


@pytest.mark.slow
def test_two_projects_that_start_at_once_never_share_a_server(tmp_path: Path) -> None:
    both = [project(tmp_path / name) for name in ("p", "q")]
    code = """
from infra import services
from infra.settings import Settings
print(services.ensure(Settings(), {"mlflow"}).mlflow)
"""
    try:
        started = [driver(settings, code) for settings in both]
        found = [each.communicate(timeout=180)[0].strip() for each in started]
        assert all(found)
        assert len(set(found)) == 2
        for settings, address in zip(both, found, strict=True):
            assert supervisor.listens(settings.home, "mlflow", int(address.rpartition(":")[2]))
    finally:
        for settings in both:
            services.down(settings)
