"""Published models in the formats of others, and ours in theirs: one file a model."""
