"""Photographs and faces that come with installed packages."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from components import registry
from components.data.locations import SourceError
from components.data.sources import _scikit_image, photos
from components.interfaces import Source
from tests._sources import read


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"), dtype=np.float64)


def of(**config) -> dict:
    return read(registry.build(Source, {"type": "photos", **config}))


def test_each_photograph_gives_so_many_crops_of_that_size():
    found = of(photographs=["china", "flower"], count=5, size=24)
    assert [(key, sample.label) for key, sample in found.items()] == [
        (f"photos/{name}/{n:05d}", name) for name in ("china", "flower") for n in range(5)
    ]
    assert {Image.open(io.BytesIO(sample.image)).size for sample in found.values()} == {(24, 24)}
    assert len({sample.image for sample in found.values()}) == 10


def test_more_crops_begin_with_the_same_ones_and_another_seed_gives_others():
    some = of(photographs=["china"], count=4, size=16)
    more = of(photographs=["flower", "china"], count=9, size=16)
    other = of(photographs=["china"], count=4, size=16, seed=1)
    assert all(more[key] == sample for key, sample in some.items())
    assert all(other[key].image != sample.image for key, sample in some.items())


def test_crops_are_pieces_of_the_photograph():
    """At the smallest side a crop is not scaled: its pixels stand in the photograph as they are."""
    from sklearn.datasets import load_sample_image

    whole = load_sample_image("china.jpg")
    found = of(photographs=["china"], count=2, size=213)  # half of 427, its shorter side
    for sample in found.values():
        crop = np.asarray(Image.open(io.BytesIO(sample.image)))
        places = np.argwhere((whole[:-212, :-212] == crop[0, 0]).all(axis=-1))
        assert any((whole[y : y + 213, x : x + 213] == crop).all() for y, x in places)


def test_without_names_all_of_the_installed_packages(monkeypatch):
    every = registry.build(Source, {"type": "photos"}).parts()
    assert [part.files[0] for part in every][:2] == ["china", "flower"]
    if _scikit_image.folder() is not None:
        assert len(every) == 16
        for part in every:
            assert photos._path(part.files[0]).is_file()
    monkeypatch.setattr(_scikit_image, "folder", lambda: None)
    assert len(registry.build(Source, {"type": "photos"}).parts()) == 2
    with pytest.raises(
        SourceError, match="coffee.png comes with scikit-image; install it with: pip install scikit-image"
    ):
        of(photographs=["coffee"])
    with pytest.raises(SourceError, match="comes with scikit-image"):
        list(registry.build(Source, {"type": "faces"}).samples())


def test_a_photograph_that_nobody_has():
    with pytest.raises(SourceError, match="there is no photograph 'mona_lisa' \\(there are: china, flower, "):
        of(photographs=["mona_lisa"])


def test_faces_are_faces():
    data = pytest.importorskip("skimage.data")
    original = data.lfw_subset()
    found = read(registry.build(Source, {"type": "faces"}))
    assert [sample.label for sample in found.values()] == ["face"] * 100 + ["non-face"] * 100
    for sample, picture in zip(found.values(), original, strict=True):
        assert np.abs(pixels(sample.image) / 255 - picture).max() <= 0.5 / 255 + 1e-6


def test_the_labels_of_faces_say_what_is_seen():
    """Faces are like each other, backgrounds are not: by the mean face alone the two can be told apart."""
    pytest.importorskip("skimage")
    found = read(registry.build(Source, {"type": "faces"}))
    images = np.stack([pixels(sample.image).ravel() for sample in found.values()])
    images = (images - images.mean(1, keepdims=True)) / (images.std(1, keepdims=True) + 1e-9)
    face = np.array([sample.label == "face" for sample in found.values()])
    likeness = images @ images[face][::2].mean(0) / images.shape[1]  # every second face makes the mean
    right = likeness[face][1::2, None] > likeness[None, ~face]  # of every pair, whether the face is more like a face
    assert right.mean() > 0.97
