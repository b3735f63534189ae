"""Every op's small cases on the GPU, once with each backend that has kernels of ours: what the sanitizer watches."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from benchmarks.suites.op_timing import SEED
from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops.spec import all_specs

OURS = {"triton", "cuda"}  # the rest is torch's and other people's, whose kernels are not ours to judge, and many


def main(ops: Sequence[str]) -> int:
    if not torch.cuda.is_available():
        print("expected a GPU; torch sees none", file=sys.stderr)
        return 2
    device, ran = torch.device("cuda"), 0
    for name, spec in all_specs().items():
        if ops and name not in ops:
            continue
        for case in spec.small:
            for backend in sorted(OURS & {backend.name for backend in spec.backends}):
                try:
                    spec.run(*spec.make_inputs(case, device, SEED), backend=backend)
                except BackendError:
                    continue  # cannot run here, and says so to whoever asks for it by name
                torch.cuda.synchronize()
                ran += 1
    print(f"{ran} runs")
    return 0 if ran else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
