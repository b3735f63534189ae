"""Train on a folder of class folders, from pictures to samples: what ``hqtvae train`` does, from Python.

    python examples/train_on_folder.py
    python examples/train_on_folder.py --pictures pictures/ --work runs/mine

Without --pictures it draws a few discs and squares to train on, and trains for 300 updates of each stage: minutes on a
CPU, and enough to tell the ones from the others in its samples. Stopped anywhere, the same command goes on.
"""

# %%
import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.pictures.images import grid
from hqtvae_fast.train.whole import train_whole

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--pictures", type=Path, default=None, help="a folder of class folders")
options.add_argument("--work", type=Path, default=Path("runs/example"))
options.add_argument("--steps", type=int, default=None, help="updates of each stage, if not by the number of pictures")
options.add_argument("--out", type=Path, default=Path("trained.png"))
given = options.parse_args()

# %% Something to train on
pictures, fields = given.pictures, {}
if pictures is None:
    pictures, fields = given.work / "pictures", {"steps": 300, "resolution": 32}
    for name in ("disc", "square"):
        (pictures / name).mkdir(parents=True, exist_ok=True)
        for index in range(8):
            image = Image.new("RGB", (32, 32), "white")
            draw = ImageDraw.Draw(image)
            shape = draw.ellipse if name == "disc" else draw.rectangle
            shape((4, 4, 20 + index, 20 + index), fill=(32 * index, 80, 255 - 32 * index))
            image.save(pictures / name / f"{index}.png")

# %% Both stages. What is not named here (the model, the batch, ...) is picked to fit; docs/training.md has the names
if given.steps is not None:
    fields["steps"] = given.steps
train_whole({"data": str(pictures), "out": str(given.work / "run"), **fields})

# %% And pictures
pipe = HQTVAEPipeline.from_pretrained(given.work / "run")
classes = [name for name in pipe.config.id2label if name is not None]
output = pipe(classes, num_images=4, temperature=0.5, seed=0, progress=False)
grid(output.images, columns=4).save(given.out)
print(f"wrote {given.out}: {', '.join(classes)}")
