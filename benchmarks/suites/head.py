"""The prediction head's step at small batch: one persistent kernel beside the fused step's kernels, and the floor.

python -m benchmarks.suites.head --preset S --device cuda --batch 1 --batch 2 --batch 4 --batch 8 --batch 16
python -m benchmarks.suites.head --preset tiny --device cpu --batch 2      # seconds: shows that it works, and no kernel

Both passes, both heads, both draws; on a GPU each entrant is a captured graph, so that launching costs neither of them
anything. First with the model's own weights, then with all matrices rounded to int8 (the engine's quantization="int8"),
each with a floor of its own, the time to read the weights once a pass at the published bandwidth: for S 484 MB in bf16,
145 us on an H100 and 238 us on an A100; 243 MB in int8, 72 us and 119 us. The kernel needs csrc/cuda (see hqtvae info);
where it cannot run, that is said and only the others are timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any, cast

import torch
import typer

from benchmarks.entrants.ours import open_model
from benchmarks.measuring.calls import Entrant, Json, measure, show
from benchmarks.measuring.environment import describe, pick_device
from benchmarks.measuring.schema import Results, Row, write
from benchmarks.suites.train import DeviceName, Preset, Repeats
from hqtvae_fast.engine.fused_step import FusedStep
from hqtvae_fast.engine.graph import Replay
from hqtvae_fast.engine.step import why_no_whole_head
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.head import PyramidHead, head_weights
from hqtvae_fast.model.linear import quantize_linears
from hqtvae_fast.ops import sample_logits
from hqtvae_fast.ops.explain import peaks_of
from hqtvae_fast.ops.kernels.prediction_head import BACKENDS, PredictionHead
from hqtvae_fast.ops.kernels.prediction_head.spec import cost
from hqtvae_fast.ops.spec import Case

QUANTIZATIONS = (None, "int8")
Batches = Annotated[list[int], typer.Option("--batch", min=1, max=16, help="Images at once. May be repeated.")]


@torch.inference_mode()
def head(
    preset: Preset = "S",
    device: DeviceName = "cuda",
    batch: Batches = [1, 2, 4, 8, 16],  # noqa: B006
    repeats: Repeats = 20,
    json: Json = None,
) -> None:
    """Time a step of the prediction head."""
    target = pick_device(device)
    transformer = open_model(preset, None).transformer
    assert transformer is not None
    dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
    model = transformer.to(target, dtype).eval()
    rows: list[Row] = []
    for quantization in QUANTIZATIONS:
        if quantization is not None:
            quantize_linears(model, quantization)
        for count in batch:
            entrants = [Entrant(name, _captured(run, target)) for name, run in _ways(model, count).items()]
            name = f"{preset}, batch {count}{'' if quantization is None else f', {quantization}'}: head's step"
            rows += measure(name, entrants, count, target, repeats, _work(model, preset, count, quantization))
            results = Results("head", describe(target, "suites.head"), tuple(rows))
            if json is not None:  # as they come: a run may be cut off
                write(results, json)
    show(results, None)


def _work(model: HQTransformer, preset: str, batch: int, quantization: str | None) -> dict[str, Any]:
    """Least work of a step, and on a GPU the time that its bytes take."""
    config, weight = model.config, model.norm.weight
    sizes = {"B": batch, "D": config.dim, "L": config.head.num_layers, "K": max(config.codebook_sizes)}
    least = cost(Case("", {**sizes, "quantized": QUANTIZATIONS.index(quantization)}, weight.dtype))
    work: dict[str, Any] = {"model": preset, "batch": batch, "flops": least.flops, "bytes": least.bytes}
    work["quantization"] = quantization or "none"
    if weight.is_cuda:
        work["floor_seconds"] = least.bytes / peaks_of(weight.device).bandwidth
    return work


def _ways(model: HQTransformer, batch: int) -> dict[str, Callable[[], object]]:
    """Ways to draw one step's five codes from the same h, by name."""
    config, device = model.config, model.norm.weight.device
    h = torch.randn(batch, config.dim, device=device).to(model.norm.weight.dtype)
    codes = torch.zeros(batch, config.num_local, dtype=torch.int64, device=device)
    seeds, number = torch.arange(batch, device=device), torch.tensor(3, device=device)
    filters = {
        "temperature": torch.full((2,), 0.95, device=device),
        "top_k": torch.tensor([min(2048, size) for size in config.codebook_sizes], device=device),
        "top_p": torch.ones(2, device=device),
    }
    step = FusedStep(model, batch)
    positions = torch.arange(config.num_local, device=device)

    def fused() -> None:
        for group in config.groups:
            for part in step.head(h, codes, group):
                own = {name: values[part.level] for name, values in filters.items()}
                out = codes[:, part.first : part.first + part.logits.shape[1]]
                place = {"seeds": seeds, "step": number, "position": positions[part.first]}
                sample_logits(part.logits, out=out, **place, **own)

    ways: dict[str, Callable[[], object]] = {"fused step": fused}
    reason = why_no_whole_head(config, batch)
    if reason is None:
        whole = PredictionHead.of(head_weights(cast(PyramidHead, model.head)), config.head.num_heads, config.head.gelu)
        invalid = torch.zeros((), dtype=torch.bool, device=device)
        inputs = (h, codes, invalid, seeds, number, *filters.values())
        reason = BACKENDS[0].why_not(*inputs, whole, True)
        if reason is None:
            options = {"seeds": seeds, "step": number, "invalid": invalid, **filters}
            ways["one kernel"] = lambda: whole(h, codes, backend="cuda", **options)
    if reason is not None:
        print(f"one kernel: not run: {reason}", file=sys.stderr)
    return ways


def _captured(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    replay = Replay(run, device)
    return lambda: replay(run)


if __name__ == "__main__":
    typer.run(head)
