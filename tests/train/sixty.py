"""Sixty pictures, 64x64, of animals, food and vehicles, as people have them: in folders or with captions."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

ARCHIVE = Path(__file__).parent / "inputs" / "emoji-60.zip"
CLASSES = ("animals", "food", "vehicles")


def class_folders(root: Path) -> Path:
    with zipfile.ZipFile(ARCHIVE) as archive:
        for name in archive.namelist():
            if "/" in name:
                archive.extract(name, root)
    return root


def captioned(root: Path, count: int = 60) -> Path:
    """One folder of the pictures, or of every n-th, with captions.json: "red apple"."""
    folders = class_folders(root.with_name(f"{root.name}-folders"))
    files = sorted(folders.rglob("*.webp"))[:: 60 // count]
    root.mkdir(parents=True)
    for file in files:
        shutil.copy(file, root / file.name)
    (root / "captions.json").write_text(json.dumps({file.name: file.stem.replace("-", " ") for file in files}))
    return root
