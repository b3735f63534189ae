"""Train on a folder of class folders, from pictures to samples: what ``hqtvae train`` does, from Python.

    python examples/train_on_folder.py
    python examples/train_on_folder.py --pictures pictures/ --work runs/mine --steps 2000

Without --pictures it draws a few discs and squares to train on. 300 updates of each stage, a minute or two on a CPU,
are enough to tell the ones from the others in its samples. Stopped anywhere, the same command goes on.
"""

# %%
import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.images import grid
from hqtvae_fast.train.config import Stage1Run, Stage2Run, read_run
from hqtvae_fast.train.run import train_stage1, train_stage2

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--pictures", type=Path, default=None, help="a folder of class folders")
options.add_argument("--work", type=Path, default=Path("runs/example"))
options.add_argument("--steps", type=int, default=300, help="updates of each stage")
options.add_argument("--out", type=Path, default=Path("trained.png"))
given = options.parse_args()

# %% Something to train on
pictures = given.pictures or given.work / "pictures"
if given.pictures is None:
    for name in ("disc", "square"):
        (pictures / name).mkdir(parents=True, exist_ok=True)
        for index in range(8):
            image = Image.new("RGB", (32, 32), "white")
            draw = ImageDraw.Draw(image)
            shape = draw.ellipse if name == "disc" else draw.rectangle
            shape((4, 4, 20 + index, 20 + index), fill=(32 * index, 80, 255 - 32 * index))
            image.save(pictures / name / f"{index}.png")
classes = sorted(folder.name for folder in pictures.iterdir() if folder.is_dir())

# %% Stage 1: pictures to codes and back. A YAML file or --preset holds the same fields
common = {"data": str(pictures), "batch_size": 8, "steps": given.steps, "workers": 0, "picture_every": 0}
small = {"resolution": 32, "channels": 32, "channel_multipliers": [1, 2], "num_res_blocks": 1, "latent_channels": 32,
         "attention_resolutions": [8], "embed_dim": 16, "codebook_sizes": [64, 64]}  # fmt: skip
train_stage1(
    read_run(
        Stage1Run,
        None,
        {
            **common,
            "out": str(given.work / "vae"),
            "learning_rate": 2e-3,
            "model": small,
            "adversarial": 0.0,
            "restart_unused": True,  # few pictures leave most codes unused otherwise
        },
    )
)

# %% Stage 2: codes from classes
blocks = {"num_layers": 2, "num_heads": 2}
train_stage2(
    read_run(
        Stage2Run,
        None,
        {
            **common,
            "vae": str(given.work / "vae" / "model"),
            "out": str(given.work / "hqt"),
            "learning_rate": 1e-3,
            "soft_labels": 0.0,
            "model": {"dim": 64, "body": blocks, "head": blocks},
        },
    )
)

# %% And pictures
pipe = HQTVAEPipeline.from_pretrained(given.work / "hqt" / "model")
output = pipe(classes, num_images=4, temperature=0.25, seed=0, progress=False)
grid(output.images, columns=4).save(given.out)
print(f"wrote {given.out}: {', '.join(classes)}, after {given.steps} updates of each stage")
