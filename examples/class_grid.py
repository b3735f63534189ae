"""A row of pictures of each class or prompt, and the same from their top codes alone (the paper's figure 1).

python examples/class_grid.py
python examples/class_grid.py --checkpoint path/to/checkpoint --classes 207 250 985 --top-k 2048 --temperature 0.95
"""

# %%
import argparse
from pathlib import Path

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.pictures.images import grid

PROMPTS = ["tiger face, 3d", "red apple, flat", "rocket, shaded"]

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--checkpoint", default="demo", help="default: the model that comes with the package, 64x64 emoji")
options.add_argument("--classes", nargs="+", default=["0", "3", "7"], help="names or numbers, if it draws from classes")
options.add_argument("--prompts", nargs="+", default=PROMPTS, help="of a text-conditional one, as the default is")
options.add_argument("--columns", type=int, default=4)
options.add_argument("--top-k", type=int, default=None)
options.add_argument("--temperature", type=float, default=0.7)
options.add_argument("--out", type=Path, default=Path("class_grid.png"))
given = options.parse_args()

# %% Image i is drawn with (seed, i): the grid is the same whatever the batch size
pipe = HQTVAEPipeline.from_pretrained(given.checkpoint)
text = pipe.transformer.config.condition == "text"
classes = [] if text else pipe.config.classes.parse("--classes", given.classes)
name, subjects = ("prompt", given.prompts) if text else ("class_labels", classes)
sampling = {"top_k": given.top_k, "temperature": given.temperature, "progress": False}
output = pipe(**{name: subjects}, num_images=given.columns, seed=0, **sampling)

# %% A level that is None is left out of the decoding
top_only = pipe.decode([output.codes[0], *[None] * (len(output.codes) - 1)])
grid([*output.images, *top_only], given.columns).save(given.out)
print(f"wrote {given.out}: {len(subjects)} rows, and below them the same from top codes alone")

# %% One of them again, alone: its seed says which
again = pipe(**{name: subjects[0]}, seed=[output.seeds[1]], **sampling)
assert all((one == other[1:2]).all() for one, other in zip(again.codes, output.codes, strict=True))
