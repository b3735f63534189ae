"""A released sampling script with one line changed: the import.

    python examples/drop_in.py
    python examples/drop_in.py --checkpoint path/to/released_checkpoint --classes 207 985

Everything below the import is what a script written for the released code has: the same function, the same arguments,
the same results. ``stage2`` may be the released module that such a script has loaded; here it is this package's, so
that the released code need not be there.
"""

# %% The one line
import argparse
from pathlib import Path

import torch

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.compat import sampling_ihqgpt  # was: from hqvae.utils.sampling import sampling_ihqgpt
from hqtvae_fast.pictures.images import grid

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--checkpoint", default="demo", help="default: the model that comes with the package, 64x64 emoji")
options.add_argument("--classes", type=int, nargs="+", default=[0, 3], help="of a class-conditional checkpoint")
options.add_argument("--prompts", nargs="+", default=["tiger face, 3d", "red apple, flat"], help="of a text model")
options.add_argument("--candidates", type=int, default=4)
options.add_argument("--temperature", type=float, default=0.7)
options.add_argument("--out", type=Path, default=Path("drop_in.png"))
given = options.parse_args()

# %% The model, and what it is conditioned on: labels, or the tokens of prompts
pipe = HQTVAEPipeline.from_pretrained(given.checkpoint)
stage2, side = pipe.transformer, pipe.config.vae.level_sides[0]
conditions = given.classes
if stage2.config.condition == "text":
    conditions = pipe.tokenizer(given.prompts).split(1)
torch.manual_seed(0)

# %% The loop over conditions
images = []
for cond in conditions:
    codes_top, codes_bot = sampling_ihqgpt(
        stage2,
        num_candidates=given.candidates,
        cond=cond,
        top_k_top=min(2048, stage2.config.codebook_sizes[0]),
        top_k_bot=min(2048, stage2.config.codebook_sizes[1]),
        softmax_temperature=(given.temperature, given.temperature),
        is_tqdm=False,
        max_seq_len=side * side,
    )
    # Top codes [B, T] row by row; bottom codes [B, T, 4], those of each 2x2 window row by row.
    top = codes_top.view(-1, side, side)
    bottom = codes_bot.view(-1, side, side, 2, 2).transpose(2, 3).reshape(-1, 2 * side, 2 * side)
    images += pipe.decode([top, bottom])

# %% The pictures
grid(images, columns=given.candidates).save(given.out)
print(f"wrote {given.out}: {len(images)} pictures of {len(conditions)} classes or prompts")
