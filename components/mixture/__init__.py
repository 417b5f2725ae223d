# Files of this package that are parts, not mixtures.
HELPERS = (
    "clustered", "clusters", "dirichlet", "embedding", "figures", "predictor", "problem", "reporting", "search",
    "store",
)  # fmt: skip
