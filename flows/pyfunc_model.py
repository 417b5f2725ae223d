"""A bundle as an MLflow model: the `loader_module` of `mlflow.pyfunc`, so nothing is pickled.

`predict` takes rows with `n` (how many, default 1) and `label` (a class, or empty for the target classes in turn), and
the parameter `seed`; it gives one row a picture: `label` as it was asked for, `image` as nested lists [H][W][C].
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.serving import Model, load_folder

if TYPE_CHECKING:
    import pandas as pd


class Predictor:
    """What MLflow calls."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        import pandas as pd

        seed = int((params or {}).get("seed", 0))
        rows = []
        for offset, request in enumerate(model_input.to_dict("records")):
            label, n = request.get("label"), request.get("n", 1)
            asked = None if pd.isna(label) or label == "" else str(label)
            # Every request its own seed: two equal rows are two draws.
            drawn = self.model.sample(1 if pd.isna(n) else int(n), asked, seed + offset)
            rows += [{"label": asked, "image": image.tolist()} for image in drawn]
        return pd.DataFrame(rows, columns=["label", "image"])


def _load_pyfunc(data_path: str) -> Predictor:
    """Called by MLflow with the folder that was logged as `data_path`: the bundle."""
    return Predictor(load_folder(Path(data_path)))
