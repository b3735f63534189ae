"""A sheet of a shard's pictures with their captions, to look at."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from PIL import Image

from hqtvae_fast.pictures.images import grid, with_caption


def contact_sheet(shard: Path, rows: int = 8, columns: int = 8, side: int = 128) -> Image.Image:
    """Pictures spread evenly over a shard, each with the first of its captions, or its name."""
    with tarfile.open(shard) as tar:
        names = sorted(member.name for member in tar if member.name.endswith(".webp"))
        count = min(rows * columns, len(names))
        cells = []
        for name in (names[index * len(names) // count] for index in range(count)):
            picture, fields = (tar.extractfile(part) for part in (name, name.replace(".webp", ".json")))
            assert picture is not None
            assert fields is not None
            told = json.load(fields)
            image = Image.open(io.BytesIO(picture.read())).convert("RGB").resize((side, side))
            cells.append(with_caption(image, told["caption"][0] if "caption" in told else told["name"]))
    return grid(cells, columns=columns)
