"""`tessera sample | encode | decode`: a trained model used from the command line."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from flows import runs
from flows.terminal import console
from infra.settings import Settings


class UseError(ValueError):
    """Files that cannot be encoded or decoded; the message names them."""

    user_error = True


def sample(
    settings: Settings,
    ref: str,
    output: Path,
    *,
    n: int,
    label: str | None,
    seed: int,
    guidance: float | None,
    temperature: float | None,
) -> None:
    """Draws `n` samples into one picture."""
    from flows import serving

    model = serving.load(ref, settings)
    images = model.sample(n, label=label, seed=seed, guidance=guidance, temperature=temperature)
    serving.save_grid(images, output)
    console.print(f"wrote {n} samples to {output}")


def encode(settings: Settings, ref: str, files: list[Path], output: Path) -> None:
    """Writes an .npz: `codes` [n, L], `files` [n] and the model they were made with."""
    import numpy as np

    from flows import serving

    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise UseError(f"no such file: {', '.join(missing[:5])}")
    ref = ref or str(runs.latest(settings.project, "tokenizer"))
    model = serving.load(ref, settings)
    codes = model.encode(files)
    with open(output.with_name(f".{output.name}.tmp"), "wb") as file:
        np.savez(file, codes=codes, files=np.array([path.name for path in files]), model=np.array(ref))
    output.with_name(f".{output.name}.tmp").replace(output)
    console.print(f"wrote {len(codes)} x {codes.shape[1]} codes of {ref} to {output}", soft_wrap=True)


def decode(settings: Settings, ref: str, codes: Path, output: Path) -> None:
    """Writes one PNG for each row of codes."""
    import numpy as np
    from PIL import Image

    from flows import serving

    try:
        with np.load(codes, allow_pickle=False) as stored:
            rows, names = stored["codes"], [str(name) for name in stored["files"]]
            ref = ref or str(stored["model"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, json.JSONDecodeError) as error:
        raise UseError(f"{codes} is not a file of codes written by `tessera encode` ({error})") from error
    model = serving.load(ref, settings)
    output.mkdir(parents=True, exist_ok=True)
    for index, (name, image) in enumerate(zip(names, model.decode(rows), strict=True)):
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
            output / f"{index:05d}-{Path(name).stem}.png"
        )
    console.print(f"wrote {len(rows)} pictures to {output}")
