"""The released implementation (github.com/kakaobrain/hqtransformer) as a baseline, imported from the user's checkout.

Nothing of it is copied here and nothing in the checkout is changed. Three things keep it from running as it is:
its ``hqvae.models`` package imports pytorch_lightning and dataclasses that Python 3.11 refuses (so the package is
stood in for by an empty one, and only the modules below it are imported), and its sampler calls ``.cuda()`` (which
does nothing while it samples on a CPU).
"""

from __future__ import annotations

import importlib
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.entrants.released_models import build_transformer, build_vae
from hqtvae_fast.config import HQTVAEConfig, TransformerConfig, VAEConfig
from hqtvae_fast.engine import SamplingParams
from hqtvae_fast.model.pyramid import join_windows

REQUIREMENTS = ("einops", "omegaconf", "tqdm")
STAND_INS = ("hqvae", "hqvae.models")  # packages whose own __init__ is not run
MODULES = {
    "sampling": "hqvae.utils.sampling",
    "generator": "hqvae.models.stage1.generator",
    "two_levels": "hqvae.models.stage2.hierarchical_ar",
    "three_levels": "hqvae.models.stage2.hqtransformer",
}


class ReleasedError(ValueError):
    """The baseline cannot be run; the message says what is missing, or what it cannot do."""


def import_released(checkout: Path) -> dict[str, ModuleType]:
    """The modules of :data:`MODULES` from a checkout; ``sys.modules`` is left as it was."""
    for name in MODULES.values():
        file = checkout.joinpath(*name.split(".")).with_suffix(".py")
        if not file.is_file():
            raise ReleasedError(f"{checkout}: expected a checkout of github.com/kakaobrain/hqtransformer; no {file}")
    missing = [name for name in REQUIREMENTS if find_spec(name) is None]
    if missing:
        raise ReleasedError(f"the released implementation needs {', '.join(missing)}: pip install {' '.join(missing)}")
    with _stand_ins(checkout):
        return {key: importlib.import_module(name) for key, name in MODULES.items()}


@contextmanager
def _stand_ins(checkout: Path) -> Iterator[None]:
    """Empty packages in place of :data:`STAND_INS` that know only where their modules lie; afterwards all are gone."""
    try:
        for name in STAND_INS:
            sys.modules[name] = package = ModuleType(name)
            package.__path__ = [str(checkout.joinpath(*name.split(".")))]
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == STAND_INS[0]]:
            del sys.modules[name]


class Released:
    """Its sampler and decoder with random weights, used as its ``measure_throughput`` does.

    AR under fp16 autocast on a GPU and in fp32 on a CPU (it has no other choice there); the decoder in fp32, one
    image at a time; one class for all images of a batch.
    """

    name = "released"
    warm_ups = 1

    def __init__(
        self,
        modules: dict[str, ModuleType],
        vae_config: VAEConfig,
        config: TransformerConfig,
        device: torch.device,
        params: SamplingParams,
    ) -> None:
        self.vae_config, self.config = vae_config, config
        self.device, self.params, self.steps = device, params, config.num_steps
        self.precision = "fp16 AR, fp32 decode" if device.type == "cuda" else "float32"
        self.vae: Any = build_vae(modules, vae_config).to(device).eval()
        self.transformer = build_transformer(modules, config).to(device).eval()
        self._sampling = modules["sampling"]
        self.parameters = sum(value.numel() for value in self.transformer.parameters())
        self._random = random.Random(0)

    @torch.no_grad()
    def draw(self, count: int) -> list[Tensor]:
        """Code maps of each level, top first."""
        common: dict[str, Any] = {
            "cond": self._condition(count),
            "num_candidates": count,
            "softmax_temperature": list(self.params.temperature),
            "use_fp16": self.device.type == "cuda",
            "is_tqdm": False,
            "max_seq_len": self.config.num_steps,
            "model_stage1": None,
        }
        k, p = list(self.params.top_k), list(self.params.top_p)
        with _as_on_cuda(self.device):
            if self.config.num_levels == 2:
                filters = {"top_k_top": k[0], "top_p_top": p[0], "top_k_bot": k[1], "top_p_bot": p[1]}
                levels = self._sampling.sampling_ihqgpt(self.transformer, **filters, **common)
            else:
                levels = self._sampling.sampling_hqtransformer(self.transformer, top_k=k, top_p=p, **common)
        windows = [level.view(count, self.config.num_steps, -1) for level in levels]
        return [join_windows(window, self.config.side, level) for level, window in enumerate(windows)]

    @torch.no_grad()
    def decode(self, codes: list[Tensor]) -> Tensor:
        concat, one_by_one = self.vae_config.combine == "concat", zip(*(level.split(1) for level in codes), strict=True)
        images = [self.vae.decode_code(*one) if concat else self.vae.decode_code(one) for one in one_by_one]
        return (0.5 * torch.cat(images) + 0.5).clamp(0, 1)

    def _condition(self, count: int) -> Any:
        """A class number, or random text tokens on the device."""
        if self.config.condition == "text":
            shape = (count, self.config.prefix_length)
            return torch.randint(self.config.prefix_vocab_size, shape, device=self.device)
        return self._random.randrange(self.config.num_classes)


def check_supported(config: HQTVAEConfig, sizes: list[int]) -> TransformerConfig:
    """The transformer's configuration, if the released sampler can draw batches of these sizes from it."""
    stage2 = config.transformer
    if stage2 is None or stage2.decoding != "hierarchical" or stage2.num_levels not in (2, 3):
        raise ReleasedError("the released baseline is run for hierarchical decoding over two or three levels only")
    if stage2.num_levels == 2 and 1 in sizes:
        raise ReleasedError("the released sampler fails on a batch of one image: choose --batch and --images without")
    return stage2


@contextmanager
def _as_on_cuda(device: torch.device) -> Iterator[None]:
    """Let code written for CUDA run on ``device``: ``.cuda()`` returns the tensor itself where that is a CPU.

    Its use of torch.cuda.amp, which is on its way out, is not worth a warning a step.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=FutureWarning)
        warnings.simplefilter("ignore", category=UserWarning)
        if device.type == "cuda":
            yield
        else:
            with mock.patch.object(torch.Tensor, "cuda", lambda tensor, *args, **kwargs: tensor):
                yield
