"""The pages a person works in, in a real browser: Prefect's form, run and schedule, and the result in MLflow."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from infra import supervisor
from infra.settings import Settings
from tests import _project

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
OVERRIDES = [
    f"{name}={value}"
    for name, value in _project.SMALLEST.items()
    if not name.startswith(("generator", "evaluation.samples"))
]
RUN = "from-the-page"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}"),
]


@dataclass
class Site:
    settings: Settings
    prefect: str
    mlflow: str

    def post(self, path: str, body: dict[str, Any]) -> Any:
        answer = httpx.post(f"{self.prefect}/api/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def ended(self) -> list[dict[str, Any]]:
        """Flow runs that have ended, the first one first."""
        states = {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}
        return self.post("flow_runs/filter", {"sort": "START_TIME_ASC", "flow_runs": {"state": states}})

    def schedules(self) -> list[dict[str, Any]]:
        return [entry["schedule"] for entry in self._deployment()["schedules"]]

    def stop_schedules(self) -> None:
        httpx.post(f"{self.prefect}/api/deployments/{self._deployment()['id']}/pause_deployment", timeout=30)

    def _deployment(self) -> dict[str, Any]:
        return httpx.get(f"{self.prefect}/api/deployments/name/pipeline/pipeline", timeout=30).json()

    def services(self) -> dict[str, dict[str, Any]]:
        done = _project.tessera(self.settings, "status", "--json")
        return {entry["name"]: entry for entry in json.loads(done.stdout)}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    settings = _project.make(tmp_path_factory.mktemp("site") / "project")
    try:
        done = _project.tessera(settings, "up")
        assert done.returncode == 0, done.stdout + done.stderr
        prefect, mlflow = (re.search(rf"{name} +(http\S+)", done.stdout) for name in ("Prefect", "MLflow"))
        assert prefect, done.stdout
        assert mlflow, done.stdout
        yield Site(settings, prefect[1], mlflow[1])
    finally:
        _project.tessera(settings, "down")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1400, "height": 2000})
    yield page
    page.close()


def open_deployment(page: Page, site: Site, name: str = "pipeline") -> None:
    page.goto(f"{site.prefect}/deployments")
    page.get_by_role("link", name=name, exact=True).first.click()


def open_form(page: Page, site: Site) -> Locator:
    open_deployment(page, site)
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    return page.locator("form")


def field(form: Locator, label: str) -> Locator:
    return form.locator(".schema-form-property", has=form.page.get_by_text(label, exact=True)).last


def choices(form: Locator, label: str, now: str) -> Locator:
    """The opened list of a choice; it is opened by key, for the page takes a click without a pause for two."""
    field(form, label).get_by_role("button", name=now, exact=True).press("Space")
    return form.page.locator(".p-pop-over-content")


def fill(form: Locator) -> None:
    changes = field(form, "Overrides (Optional)")
    for index, change in enumerate(OVERRIDES):
        changes.get_by_role("button", name="Add item").click()
        changes.get_by_role("textbox").nth(index).fill(change)
    field(form, "Name (Optional)").get_by_role("textbox").fill(RUN)
    choices(form, "Until (Optional)", "registration").get_by_text("tokenizer", exact=True).click()
    expect(field(form, "Until (Optional)").get_by_role("button", name="tokenizer")).to_be_visible()
    expect(form.page.locator(".p-pop-over-content")).to_have_count(0)


def test_status_shows_every_service_running(site: Site) -> None:
    assert {name: entry["state"] for name, entry in site.services().items()} == dict.fromkeys(
        ("prefect", "mlflow", "ray", "worker"), "running"
    )


def test_a_run_started_from_the_form_completes_and_its_results_are_in_mlflow(
    site: Site, page: Page, tmp_path: Path
) -> None:
    form = open_form(page, site)
    fill(form)
    page.screenshot(path=tmp_path / "form.png")
    page.get_by_role("button", name="Submit").click()
    try:
        expect(page).to_have_url(re.compile("tab=Runs"), timeout=20_000)
    finally:
        page.screenshot(path=tmp_path / "submitted.png")

    page.get_by_role("link", name=f"{RUN} until tokenizer").first.click(timeout=60_000)
    page.wait_for_timeout(2000)
    page.screenshot(path=tmp_path / "running.png")
    expect(page.locator(".state-badge").first).to_have_text("Completed", timeout=120_000)
    page.get_by_text("Task Runs", exact=True).click()
    for stage in ("dataset", "tokenizer"):
        expect(page.get_by_role("link", name=stage, exact=True).first).to_be_visible()
    page.screenshot(path=tmp_path / "stages.png")

    page.get_by_text("Artifacts", exact=True).click()
    page.screenshot(path=tmp_path / "artifacts.png", full_page=True)
    page.get_by_role("link", name="dataset-examples").first.click()
    picture = page.get_by_role("img", name="examples")
    expect(picture).to_be_visible()
    page.screenshot(path=tmp_path / "picture.png")
    assert picture.evaluate("image => image.naturalWidth") > 50
    page.go_back()

    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_role("link", name="results").first.click()
    link = page.get_by_role("link", name=f"{RUN} in MLflow")
    expect(link).to_be_visible()
    page.screenshot(path=tmp_path / "results.png")
    page.goto(str(link.get_attribute("href")))
    expect(page.get_by_text("Finished", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="quickstart").first).to_be_visible()
    page.get_by_role("link", name="tokenizer", exact=True).click()
    psnr = page.get_by_role("row", name=re.compile("^psnr"))
    measured = json.loads((site.settings.runs / RUN / "metrics" / "tokenizer.json").read_text())
    expect(psnr).to_contain_text(f"{measured['psnr']:.6f}"[:-1])
    page.screenshot(path=tmp_path / "mlflow.png", full_page=True)


def test_a_schedule_made_in_the_page_runs_within_its_interval_and_finds_every_stage_cached(
    site: Site, page: Page, tmp_path: Path
) -> None:
    before = {run["id"] for run in site.ended()}
    open_deployment(page, site)
    page.get_by_role("button", name="Schedule", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cron", exact=True).click()
    dialog.get_by_role("button", name="Select parameters to override").press("Space")
    page.locator(".p-pop-over-content").get_by_text("request", exact=True).click()
    dialog.get_by_role("heading", name="Parameter Overrides").click()  # closes the list
    fill(dialog)
    page.screenshot(path=tmp_path / "schedule.png")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_have_count(0)
    expect(page.get_by_text("Every minute").first).to_be_visible()
    saved = time.monotonic()
    assert [schedule["cron"] for schedule in site.schedules()] == ["* * * * *"]
    try:
        while not (made := [run for run in site.ended() if run["id"] not in before]):
            assert time.monotonic() - saved < 90, "the schedule made no run"
            time.sleep(0.5)
    finally:
        site.stop_schedules()
    assert (made[0]["state_name"], made[0]["auto_scheduled"]) == ("Completed", True)

    page.goto(f"{site.prefect}/runs/flow-run/{made[0]['id']}")
    page.get_by_text("Task Runs", exact=True).click()
    expect(page.locator(".state-badge", has_text="Cached")).to_have_count(2)
    page.screenshot(path=tmp_path / "cached.png")


def test_a_new_recipe_is_a_choice_in_the_form_after_deploy_and_schedules_stay(
    site: Site, page: Page, tmp_path: Path
) -> None:
    schedules = site.schedules()
    recipes = site.settings.project / "recipes"
    (recipes / "mine.yaml").write_text((recipes / "tokenizer.yaml").read_text())
    form = open_form(page, site)
    expect(choices(form, "Recipe", "quickstart").get_by_text("tokenizer", exact=True)).to_be_visible()
    expect(page.locator(".p-pop-over-content").get_by_text("mine", exact=True)).to_have_count(0)

    done = _project.tessera(site.settings, "deploy")
    assert done.returncode == 0, done.stdout + done.stderr
    assert site.schedules() == schedules
    form = open_form(page, site)
    choices(form, "Recipe", "quickstart").get_by_text("mine", exact=True).click()
    expect(field(form, "Recipe").get_by_role("button", name="mine")).to_be_visible()
    page.screenshot(path=tmp_path / "mine.png")


def test_down_leaves_nothing_running(site: Site) -> None:
    assert supervisor.marked(site.settings.home)
    assert _project.tessera(site.settings, "down").returncode == 0
    assert supervisor.marked(site.settings.home) == []
    assert site.services() == {}
