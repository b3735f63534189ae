"""Editing by top codes: keep a picture's layout, change a part of it, and let the model draw the details anew.

    python examples/edit.py --prompt "red apple, flat" --donor "tiger face, flat"
    python examples/edit.py --checkpoint path/to/text_checkpoint --prompt "a red vase" --donor "a fire hydrant"

Top codes say what is where, bottom codes how it looks in detail. Here the lower half of one picture's top codes is
taken from another one's, and the bottom codes, which would contradict it, are drawn again (the paper's figure 4b is the
same with top codes that are left as they are).
"""

# %%
import argparse
from pathlib import Path

from PIL import Image

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.pictures.images import grid

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--checkpoint", default="demo", help="default: the model that comes with the package, 64x64 emoji")
options.add_argument("--prompt", default="red apple, flat")
options.add_argument("--donor", default="tiger face, flat")
options.add_argument("--finishes", type=int, default=4)
options.add_argument("--out", type=Path, default=Path("edit.png"))
given = options.parse_args()

# %% Two pictures. They could as well be yours: pipe.encode(["mine.png", "other.png"]) gives their codes
pipe = HQTVAEPipeline.from_pretrained(given.checkpoint)
drawn = pipe(prompt=[given.prompt, given.donor], temperature=0.5, seed=0, progress=False)
codes = pipe.encode(drawn.images)

# %% The lower half of the first one's layout from the second
top, donor = codes[0]
half = top.shape[0] // 2
edited = top.clone()
edited[half:] = donor[half:]

# %% Several finishes of that layout, each with noise of its own
finished = pipe(
    prompt=given.prompt,
    given_top_codes=edited,
    num_images=given.finishes,
    temperature=0.5,
    seed=1,
    progress=False,
)
assert all((kept == edited).all() for kept in finished.codes[0])
unchanged = pipe(
    prompt=given.prompt, given_top_codes=top, num_images=given.finishes, temperature=0.5, seed=1, progress=False
)

# %% A row of both pictures and what the edited layout alone decodes to; a row of the old layout; and one of the new
layout = pipe.decode([edited[None], None])
rows = [[*drawn.images, *layout], unchanged.images, finished.images]
columns = max(map(len, rows))
blank = Image.new("RGB", layout[0].size, "white")
grid([image for row in rows for image in [*row, *[blank] * (columns - len(row))]], columns).save(given.out)
print(f"wrote {given.out}: {given.finishes} finishes of the old layout and of the new one")
