"""A released model that computes as a pipeline does, behind its own calls."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any, TypeVar

from torch import nn

from hqtvae_fast.compat import sampling
from hqtvae_fast.compat.stages import (
    Accelerated,
    DecoderHalf,
    EncoderHalf,
    ManyLevels,
    StageEngine,
    Transformer,
    TwoLevels,
    become,
)
from hqtvae_fast.released.module import describe_module

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sampling_ihqgpt": sampling.sampling_ihqgpt,
    "sampling_hqtransformer": sampling.sampling_hqtransformer,
}
SAMPLING = "utils.sampling"
"""The released module that has these functions, in its package."""
Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model, *, dtype: Any = None) -> Model:
    """A released ``ImageGPT2``, or one of its stages: from now on its own calls run on this engine. Returns ``model``.

    The released sampling functions on its ``stage2``, ``stage1.decode_code``, ``get_codes``, ``get_soft_codes``, the
    encoder, the decoder and the ``forward`` of ``stage2`` and of ``model`` are answered by a pipeline of the same
    weights: captured on a GPU, by its plan, in its batches, in ``dtype`` (None: bf16 where the processor has it, else
    fp32; ``use_fp16`` is not looked at). A loop that decodes the rows of codes just sampled is answered from one
    batched decode. Pixels come cut to [-1, 1].

    The two share their weights: those of stage 2 and of the decoder take that dtype. The pipeline is made at the first
    call, where the module then is; changed weights are noticed. In training, and where gradients are asked for, the
    module runs as it is. ``stage2`` alone keeps its weights, and is drawn from as by the functions of this package.
    ValueError on other modules.
    """
    stage1, stage2 = getattr(model, "stage1", None), getattr(model, "stage2", None)
    if stage1 is None and stage2 is None:
        stage1, stage2 = (model, None) if hasattr(model, "decode_code") else (None, model)
    if stage1 is None:
        assert stage2 is not None
        describe_module(stage2, 1)
        become(stage2, Accelerated, None)
    else:
        engine = StageEngine(stage1, stage2, dtype)
        become(stage1, TwoLevels if engine.vae_config.combine == "concat" else ManyLevels, engine)
        become(stage1.encoder, EncoderHalf, engine)
        become(stage1.decoder, DecoderHalf, engine)
        if stage2 is not None:
            become(stage2, Transformer, engine)
    if stage2 is not None:
        original = sys.modules.get(f"{type(stage2).__module__.partition('.')[0]}.{SAMPLING}")
        if original is not None:
            replace_functions(original)
    return model


def replace_functions(original: ModuleType) -> None:
    """Wherever the released sampling functions have been imported, ours stand for them on accelerated models."""
    for name, ours in FUNCTIONS.items():
        theirs = getattr(original, name)
        if hasattr(theirs, "__wrapped__") and getattr(theirs, "_ours", None) is ours:
            continue
        either = _either(ours, theirs)
        for module in list(sys.modules.values()):
            for known, value in list(getattr(module, "__dict__", {}).items()):
                if value is theirs:
                    setattr(module, known, either)


def _either(ours: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(theirs)
    def draw(model: nn.Module, *arguments: Any, **options: Any) -> Any:
        return (ours if isinstance(model, Accelerated) else theirs)(model, *arguments, **options)

    draw._ours = ours  # type: ignore[attr-defined]
    return draw
