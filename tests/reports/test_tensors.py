"""What a pipeline gives are tensors like any others: they can be computed on, with gradients, exported and traced."""

from __future__ import annotations

import pytest
import torch
from conftest import GOLDEN, engine
from torch import nn

from hqtvae_fast import HQTVAEPipeline

HOW = {"class_labels": [1, 0], "progress": False}


@pytest.fixture(scope="module", params=["", "captured, overlap=on"])
def pipe(request) -> HQTVAEPipeline:
    plan = engine(request.param)
    return HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype="fp32", plan=plan)


def tensors(pipe: HQTVAEPipeline) -> dict[str, torch.Tensor]:
    """Everything that a call returns, by the call."""
    output = pipe(**HOW, output_type="pt")
    streamed = list(pipe.stream(**HOW, output_type="pt"))[-1]
    found = {"pipe()": output.images, "stream()": streamed.image[None], "decode()": pipe.decode(output.codes, "pt")}
    named = {"codes of pipe()": output.codes, "codes of stream()": streamed.codes}
    named |= {"encode()": pipe.encode(output.images * 2 - 1), "vae.encode()": pipe.vae.encode(output.images * 2 - 1)}
    found["vae.decode()"] = pipe.vae.decode(output.codes)
    return found | {
        f"{name}, level {index}": level for name, codes in named.items() for index, level in enumerate(codes)
    }


def test_G9_a_gradient_can_be_computed_of_whatever_is_returned(pipe):
    layer, table = nn.Conv2d(3, 4, 1), nn.Embedding(1024, 4)
    for name, value in tensors(pipe).items():
        assert not value.is_inference(), name
        (layer(value) if value.is_floating_point() else table(value)).sum().backward()


class Decode(nn.Module):
    """The decoder as an export takes it."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, top: torch.Tensor, bottom: torch.Tensor) -> torch.Tensor:
        return self.vae.decode([top, bottom])


def program(model: nn.Module, how: str, codes: tuple[torch.Tensor, ...]):
    if how == "trace":
        return torch.jit.trace(model, codes, check_trace=False)
    return torch.export.export(model, codes).module()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("gradients", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", ["trace", pytest.param("export", marks=pytest.mark.slow)])
def test_G9_decoding_can_be_exported_and_traced(how, gradients):
    """With other codes than it was traced with: none was looked at."""
    vae = HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype="fp32").vae
    vae.requires_grad_(gradients)
    sizes = zip(vae.config.codebook_sizes, vae.config.level_sides, strict=True)
    codes, others = zip(*((torch.zeros(1, s, s).long(), torch.randint(K, (1, s, s))) for K, s in sizes), strict=True)
    with torch.set_grad_enabled(gradients):
        made = program(Decode(vae), how, codes)
        torch.testing.assert_close(made(*others), vae.decode(others), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="codes of level 0: expected codes from 0"):
        vae.decode([others[0] - 10**6, others[1]])
