"""Pictures from words, as they come.

python examples/text.py --prompts "tiger face, 3d" "red apple, flat"
python examples/text.py --checkpoint path/to/text_checkpoint --prompts "a red vase on a table" --temperature 0.9
"""

# %%
import argparse
from pathlib import Path

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.pictures.images import grid, with_caption

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--checkpoint", default="demo", help="default: the model that comes with the package, 64x64 emoji")
options.add_argument("--prompts", nargs="+", default=["tiger face, 3d", "red apple, flat", "rocket, shaded"])
options.add_argument("--each", type=int, default=2)
options.add_argument("--temperature", type=float, default=0.5)
options.add_argument("--out", type=Path, default=Path("text.png"))
given = options.parse_args()

# %% stream() yields each picture when its batch is done; on a GPU the next batch is drawn meanwhile
pipe = HQTVAEPipeline.from_pretrained(given.checkpoint)
pictures = []
for drawn in pipe.stream(prompt=given.prompts, num_images=given.each, temperature=given.temperature, seed=0):
    prompt = given.prompts[drawn.index // given.each]
    print(f"{drawn.index}: {prompt} (seed {drawn.seed})")
    pictures.append(with_caption(drawn.image, prompt))

# %%
grid(pictures, given.each).save(given.out)
print(f"wrote {given.out}")
