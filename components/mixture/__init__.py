# Files of this package that are parts, not mixtures.
HELPERS = (
    "clustered", "clusters", "dirichlet", "figures", "predictor", "problem", "reporting", "samples", "search", "store",
)  # fmt: skip
