"""python -m hqtvae_fast.compat SCRIPT ARGS...: a script of the released repository, as it is, on this engine."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

EXAMPLES = """
Run it from your checkout of github.com/kakaobrain/hqtransformer, or give the script's path:

  python -m hqtvae_fast.compat sampling_hqmodel.py -r drawn/ -m checkpoints/imagenet --top-k 2048
  python -m hqtvae_fast.compat sampling_hqmodel_txt2img.py -r drawn/ -m checkpoints/cc15m
  python -m hqtvae_fast.compat -m measure_throughput model_path=config.yaml batch_size=50
  python -m hqtvae_fast.compat my_script.py ...      (a script of your own on top of it)

The script is not changed, and nothing in the checkout is. Its models draw, encode and decode on this engine; what no
longer imports has stand-ins; checkpoints are read with tensors only; batches of one and machines without a GPU work.
It needs what the script itself imports: pip install omegaconf einops tqdm.
"""


def main(argv: Sequence[str]) -> int:
    """The exit status of the script that is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m hqtvae_fast.compat",
        usage="%(prog)s [--explain] [--dtype DTYPE | --as-it-is] (SCRIPT | -m MODULE) [ARGS ...]",
        description="Run a script of the released HQ-TVAE repository as it is, on this engine.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--explain", action="store_true", help="list all that is replaced, and by what")
    parser.add_argument(
        "--dtype",
        choices=("fp32", "tf32", "bf16", "fp16"),
        help="what models compute in; default: bf16 where the processor has it, else fp32",
    )
    parser.add_argument(
        "--as-it-is", action="store_true", help="with stand-ins, but its own sampling and decoding: to compare with"
    )
    own, target = _split(argv)
    options = parser.parse_args(own)
    if not target and not options.explain:
        parser.error("expected a script, or -m and a module; got neither")
    if target[:1] == ["-m"] and len(target) < 2:
        parser.error("-m: expected a module's name")
    if target and target[0] != "-m" and not os.path.exists(target[0]):
        parser.error(f"{target[0]}: no such script")
    from hqtvae_fast.compat.scripts import run  # torch, which --help and errors do without

    return run(target, options.dtype, explain=options.explain, accelerated=not options.as_it_is)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own options, and the script with its."""
    place = 0
    while place < len(argv) and argv[place].startswith("-") and argv[place] != "-m":
        place += 2 if argv[place] == "--dtype" else 1
    return list(argv[:place]), list(argv[place:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
