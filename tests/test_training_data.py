"""What training draws, from memory and from shards: the same data in the same proportions."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from components.data import shards
from components.interfaces import Batches
from components.training.config import Train
from flows import data
from flows.context import StageContext
from flows.dataset import body

ROWS = 40
BATCH = 20


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    """A run with a data set of pictures of one gray each, which is their number, and a mixture: a fifth of the pool never, a
    fifth three times as often as the rest, and half of all from the target."""
    root = tmp_path_factory.mktemp("run")
    for origin, begin in (("source", 0), ("target", 100)):
        (root / origin).mkdir()
        for number in range(begin, begin + ROWS):
            Image.new("L", (16, 16), number).save(root / origin / f"{number}.png")
    section = {
        "source": {"type": "image_folder", "path": str(root / "source")},
        "target": {"type": "image_folder", "path": str(root / "target")},
        "image": {"size": 16, "channels": 1},
        "held_out": 0.3,
        "expectations": "images",
        "max_broken": 0.0,
        "near_duplicates": None,
    }
    run, work = root / "run", root / "work"
    work.mkdir()
    recipe = {"system": "pictures", "seed": 0, "dataset": section, "mixture": {}}
    outputs = [run / "outputs" / stage for stage in ("dataset", "mixture", "tokens")]
    for output in outputs:
        output.mkdir(parents=True)
    ctx = StageContext(run, "dataset", recipe, outputs[0], work)
    body(ctx)
    pool = shards.load_split(outputs[0], "train").images[:, 0, 0, 0]
    weights = np.where(pool % 5 == 0, 0.0, np.where(pool % 5 == 1, 3.0, 1.0))
    np.save(outputs[1] / "sample_weights.npy", weights)
    (outputs[1] / "mixture.json").write_text(json.dumps({"target_share": 0.5}))
    (outputs[2] / "tokens.json").write_text(
        json.dumps({"spec": {"codebook_sizes": [9], "positions": 2, "layout": "sequence"}})
    )
    for split in ("train", "target"):
        for name in shards.shard_names(ctx.files("dataset"), split):
            (outputs[2] / name).parent.mkdir(exist_ok=True)
            mine = shards.load_split(outputs[0], split)
            gray = mine.images[:, 0, 0, :2]
            np.save(outputs[2] / name.replace(".parquet", ".tokens.npy"), gray)
            np.save(outputs[2] / name.replace(".parquet", ".labels.npy"), mine.labels)
    return replace(ctx, stage="tokenizer", work=root / "work")


def drawn(batches: Batches, steps: int) -> Counter[int]:
    """How often each number came."""
    found: Counter[int] = Counter()
    for step in range(steps):
        batch = batches.batch(step)
        if "images" in batch:
            found.update(((batch["images"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist())
        else:
            assert torch.equal(batch["tokens"][:, 0], batch["tokens"][:, 1])
            found.update(batch["tokens"][:, 0].tolist())
    return found


def wanted(ctx: StageContext) -> dict[int, float]:
    """The probability of each number."""
    images, _, weights = data.TrainingImages.of_mixture(ctx).decoded
    return dict(zip(images[:, 0, 0, 0].tolist(), weights.tolist(), strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("memory", [2048, 0], ids=["memory", "stream"])
@pytest.mark.parametrize("kind", ["images", "tokens"])
def test_the_mixtures_proportions_wherever_the_data_are(ctx: StageContext, memory: int, kind: str) -> None:
    steps = 300
    config = Train(steps=steps, batch_size=BATCH, memory_mb=memory)
    if kind == "images":
        with data.TrainingImages.of_mixture(ctx).batches(config, 0) as batches:
            found = drawn(batches, steps)
    else:
        found = drawn(data.token_batches(ctx, config), steps)
    probability = wanted(ctx)
    assert sum(found.values()) == steps * BATCH
    assert found.keys() == {number for number, p in probability.items() if p > 0}
    assert any(number >= 100 for number in found) and not any(n < 100 and n % 5 == 0 for n in found)
    for number, p in probability.items():
        expected = p * steps * BATCH
        assert abs(found[number] - expected) < 5 * expected**0.5 + 3, (number, found[number], expected)


def test_a_stream_is_used_only_for_what_does_not_fit(ctx: StageContext) -> None:
    from components.data.batches import ImageBatches, TokenBatches
    from components.data.prefetch import Prefetch
    from components.data.stream import StreamBatches

    for memory, images, tokens in ((1, ImageBatches, TokenBatches), (0, Prefetch, StreamBatches)):
        config = Train(steps=1, batch_size=BATCH, memory_mb=memory)
        with data.TrainingImages.of_mixture(ctx).batches(config, 0) as batches:
            assert isinstance(batches, images)
        assert isinstance(data.token_batches(ctx, config), tokens)


def test_a_batch_of_a_stream_is_a_function_of_the_step(ctx: StageContext) -> None:
    config = Train(steps=1, batch_size=BATCH, memory_mb=0)
    with (
        data.TrainingImages.of_mixture(ctx).batches(config, 0) as first,
        data.TrainingImages.of_mixture(ctx).batches(config, 0) as second,
    ):
        for step in (0, 1, 7, 3):
            assert torch.equal(first.batch(step)["images"], second.batch(step)["images"])


def test_without_a_mixture_every_picture_of_the_pool_alike_and_none_of_the_target(ctx: StageContext) -> None:
    plain = replace(ctx, recipe={**ctx.recipe, "mixture": None})
    pool = len(shards.load_split(Path(ctx.run) / "outputs" / "dataset", "train").images)
    config = Train(steps=1, batch_size=pool, memory_mb=0)
    with data.TrainingImages.of_mixture(plain).batches(config, 0) as batches:
        found = drawn(batches, 2)
    assert set(found.values()) == {2} and len(found) == pool and max(found) < 100


def test_of_a_split_only_the_first_few(ctx: StageContext) -> None:
    files = ctx.files("tokens")
    whole, few = data.load_tokens(files, "train"), data.load_tokens(files, "train", most=5)
    assert all(np.array_equal(part[:5], short) for part, short in zip(whole, few, strict=True))
    assert len(data.load_tokens(files, "held_out")[0]) == 0
    split = shards.load_split(ctx.files("dataset"), "train")
    first = shards.load_split(ctx.files("dataset"), "train", most=7)
    assert np.array_equal(first.images, split.images[:7]) and first.keys == split.keys[:7]
