"""A released sampling script on this engine: three ways. This one goes the second; its model may be a released one.

1. python -m hqtvae_fast.compat sampling_hqmodel.py -r drawn/ -m checkpoint/     the script as it is, nothing changed
2. from hqtvae_fast.compat import sampling_ihqgpt                                one import of your own script changed
3. from hqtvae_fast.compat import accelerate; accelerate(model)                  an ImageGPT2: its decoding too
"""

import argparse

import torch

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.compat import sampling_ihqgpt  # was: from hqvae.utils.sampling import sampling_ihqgpt
from hqtvae_fast.pictures.images import grid

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("--checkpoint", default="demo", help="default: the model that comes with the package, 64x64 emoji")
options.add_argument("--classes", type=int, nargs="+", default=[0, 3], help="of a class-conditional checkpoint")
options.add_argument("--prompts", nargs="+", default=["tiger face, 3d", "red apple, flat"], help="of a text model")
options.add_argument("--candidates", type=int, default=4)
options.add_argument("--out", default="drop_in.png")
given = options.parse_args()

# %% Here a script loads its ImageGPT2, and stage2 is model.stage2; this package's model does without the released code.
pipe = HQTVAEPipeline.from_pretrained(given.checkpoint)
stage2, side = pipe.transformer, pipe.config.vae.level_sides[0]
conditions = pipe.tokenizer(given.prompts).split(1) if pipe.tokenizer else given.classes
torch.manual_seed(0)

# %% From here on it is as it was. Codes: top [B, T] row by row; bottom [B, T, 4], those of each 2x2 window row by row.
images, how = [], {"top_k_top": 2048, "top_k_bot": 2048, "softmax_temperature": (0.7, 0.7), "is_tqdm": False}
for cond in conditions:
    top, bottom = sampling_ihqgpt(stage2, given.candidates, cond, max_seq_len=side * side, **how)
    bottom = bottom.view(-1, side, side, 2, 2).transpose(2, 3).reshape(-1, 2 * side, 2 * side)
    images += pipe.decode([top.view(-1, side, side), bottom])  # in a script: model.stage1.decode_code(top, bottom)
grid(images, columns=given.candidates).save(given.out)
print(f"wrote {given.out}: {len(images)} pictures of {len(conditions)} classes or prompts")
