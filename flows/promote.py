"""The `promote` flow: judge the model version of a finished run by its gates and make it the champion, or take that back."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, Field

from flows import promotion, runs
from infra.settings import Settings


class Promotion(BaseModel):
    """Which run's model version, by whom and why."""

    model_config = ConfigDict(extra="forbid")

    run: str = Field(description="the run that registered the version, e.g. quickstart-tiny")
    why: str = Field(default="", description="the reason, for the ledger")
    who: str = Field(default="", description="your name, for the ledger; empty: the account that runs the flow")


def label() -> str:
    """Names a flow run by what it judges."""
    return f"promote {flow_run.parameters['request'].get('run', '')}"


@flow(name="promote", flow_run_name=label, persist_result=False)
def promote(request: Promotion) -> dict[str, str | bool | None]:
    """Judge a run's model version by the gates of its recipe and make it the champion if it passes them."""
    settings = Settings()
    folder = runs.find(settings.project, request.run)
    who = request.who.strip() or promotion.person()
    decision = promotion.decide(settings, folder, who=who, why=request.why)
    if decision.verdicts:
        create_table_artifact([verdict.row() for verdict in decision.verdicts], key="gates", description=decision.text)
    create_markdown_artifact(f"**{decision.text}**\n", key="promotion", description=f"promotion of {folder.name}")
    get_run_logger().info(decision.text)
    return {"model": decision.model, "version": decision.version, "promoted": decision.promoted}
