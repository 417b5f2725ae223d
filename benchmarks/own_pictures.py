"""`tessera run tokenizer --data FOLDER` on a folder of pictures of mixed sizes and formats, some of them broken.

    python -m benchmarks.own_pictures [--pictures 500]

The pictures are crops of the photographs that scikit-learn and scikit-image bring along; crops overlap, so held-out
figures are kinder than those of unrelated pictures. Prints the wall time and the reconstruction of the held-out ones.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.overhead import project, tessera
from flows import runs


def photographs() -> list[Image.Image]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    own = [getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")]
    return [Image.fromarray(picture) for picture in [*load_sample_images().images, *own]]


def make(folder: Path, count: int) -> None:
    rng = random.Random(0)
    photos = photographs()
    for index in range(count):
        photo = rng.choice(photos)
        side = rng.randint(64, 240)
        x, y = (rng.randint(0, length - side - 1) for length in photo.size)
        crop = photo.crop((x, y, x + side, y + rng.randint(side // 2, side)))
        crop.save(folder / f"{index:04d}.{rng.choice(['png', 'jpg', 'webp', 'bmp'])}")
    (folder / "broken.jpg").write_bytes(b"not a picture")
    (folder / "empty.png").touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, project() as (settings, own):
        make(Path(folder), asked.pictures)
        seconds, said = tessera(own, "run", "tokenizer", "--data", folder, "--name", "pictures")
        metrics = runs.all_metrics(settings.runs / "pictures")
        steps = re.findall(r"^\s+(\w+)\s+done\s+([\d.]+) s", said, re.MULTILINE)
    print(f"{asked.pictures} pictures: {seconds:.0f} s ({', '.join(f'{name} {took} s' for name, took in steps)})")
    for name in ("dataset.broken", "evaluation.psnr", "evaluation.ssim", "evaluation.codebook_usage"):
        print(f"{name:<28} {metrics[name]:.3f}")


if __name__ == "__main__":
    main()
