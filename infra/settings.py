"""The settings of a project: `TESSERA_*` variables over defaults. Nothing else in the platform reads the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Every setting has a variable of its name: `TESSERA_IDLE_MINUTES=30`."""

    model_config = SettingsConfigDict(env_prefix="TESSERA_", extra="ignore")

    project: Path = Field(default_factory=Path.cwd, description="root of the project (where dvc.yaml and recipes/ are)")
    home: Path = Field(
        default=Path(".tessera"), description="embedded stores, caches and logs; relative to the project"
    )
    remote: str = Field(default="", description="DVC remote: folder or s3:// URL; empty: <home>/remote")
    ledger: str = Field(
        default="", description="where records and the ledger live: folder or s3://; empty: <home>/ledger"
    )
    tracking_uri: str = Field(default="", description="MLflow; empty: the embedded store")
    prefect_api: str = Field(default="", description="an existing Prefect server; empty: one is started when needed")
    ray_address: str = Field(
        default="", description="an existing Ray head, host:port; empty: one is started when needed"
    )
    local_data_mb: int = Field(
        default=512, ge=0, description="a data set at most this large is also put into its run's folder; 0: never"
    )
    shard_cache_mb: int = Field(
        default=20_000, ge=1, description="what is kept here of data that are only in the remote"
    )
    micro_batch: int | None = Field(
        default=None, ge=1, description="samples a training process takes at a time; empty: all of its part of a batch"
    )
    sharding: Literal["replicated", "sharded"] = Field(
        default="replicated", description="weights of a training of several processes: all on each, or a part on each"
    )
    recompute: bool = Field(
        default=False, description="compute activations again in the backward pass instead of keeping them"
    )
    compiled: bool = Field(default=False, description="training through torch.compile")
    idle_minutes: float = Field(default=10.0, ge=0, description="services started by `run` end after this long unused")
    pending_seconds: float = Field(default=120.0, gt=0, description="how long work may wait for a free worker")
    prefect_port: int = Field(default=4200, ge=1, le=65535)
    mlflow_port: int = Field(default=5000, ge=1, le=65535)
    dashboard_port: int = Field(default=8265, ge=1, le=65535)

    @model_validator(mode="after")
    def _absolute(self) -> Settings:
        self.project = self.project.resolve()
        self.home = (self.project / self.home).resolve()
        self.remote = self.remote or str(self.home / "remote")
        self.ledger = self.ledger or str(self.home / "ledger")
        return self

    @property
    def runs(self) -> Path:
        return self.project / "runs"

    @property
    def store_uri(self) -> str:
        """The MLflow store itself, whether or not a server stands before it."""
        return f"sqlite:///{self.home / 'mlflow.db'}"

    @property
    def artifacts(self) -> Path:
        return self.home / "mlartifacts"

    def model_post_init(self, _: Any) -> None:
        for name in ("project", "home"):
            if not str(getattr(self, name)):
                raise ValueError(f"TESSERA_{name.upper()} is empty")


def environment(settings: Settings) -> dict[str, str]:
    """The variables that keep DVC, Prefect, MLflow, Ray and Great Expectations inside the project and quiet."""
    home = settings.home
    return {
        "TESSERA_PROJECT": str(settings.project),
        "TESSERA_HOME": str(home),
        "DVC_SITE_CACHE_DIR": str(home / "dvc" / "site"),
        "DVC_GLOBAL_CONFIG_DIR": str(home / "dvc" / "global"),
        "DVC_SYSTEM_CONFIG_DIR": str(home / "dvc" / "system"),
        "DVC_NO_ANALYTICS": "1",
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "ray_token"),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([str(settings.project), *_python_path()])),
    }


def _python_path() -> list[str]:
    own = str(Path(__file__).resolve().parent.parent)
    return [own, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
