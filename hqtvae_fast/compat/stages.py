"""Released stages whose own calls a pipeline answers: the one of a model, made from their weights, which it shares.

A stage becomes an instance of a subclass of its own class, so that what is not answered here runs as it is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hqtvae_fast.checkpoint import Checkpoint, load_stage1_state, load_stage2_state
from hqtvae_fast.compat.stage2 import convert
from hqtvae_fast.config import BUCKETS, DEFAULT_BATCH, HQTVAEConfig
from hqtvae_fast.engine import Cutter, Executor
from hqtvae_fast.engine.coding import encode_images
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.modes import inference, ordinary
from hqtvae_fast.ops.made import mark, weights_of
from hqtvae_fast.pipeline import HQTVAEPipeline
from hqtvae_fast.plan import using
from hqtvae_fast.released.config import parse_transformer
from hqtvae_fast.released.keys import sources
from hqtvae_fast.released.module import describe_module, describe_stage1

APART = "post_quant_conv"
"""Between the codebooks and the decoder: the released module computes with it in fp32, whatever the decoder's dtype."""


HELD = "_hqtvae_fast"
"""Where a stage holds its engine; the two hold each other, and go together."""


class StageEngine:
    """The pipeline of a released model, made at the first call and again once its modules have moved; and the codes
    that it drew last. ``stage2`` may be None. ValueError where the engine does not know the modules."""

    def __init__(self, stage1: nn.Module, stage2: nn.Module | None, dtype: Any) -> None:
        self.vae_config, self.config = describe_stage1(stage1), None
        if stage2 is not None:
            described, _ = describe_module(stage2, self.vae_config.level_sides[0])
            self.config = parse_transformer(described, self.vae_config.level_sides)
        self.dtype = dtype
        self.drawn: Drawn | None = None
        self._stages = [stage for stage in (stage1, stage2) if stage is not None]
        self._pipe: HQTVAEPipeline | None = None
        self._marks: list[Any] = []
        self._apart: list[tuple[Tensor, list[Tensor]]] = []

    @property
    def pipeline(self) -> HQTVAEPipeline:
        """Of the weights as they are."""
        marks = self._look()
        if self._pipe is None or [seen[:2] for seen in marks] != [seen[:2] for seen in self._marks]:
            self._pipe, self.drawn, self._apart = None, None, []
            self._pipe = self._make(*self._stages)
            marks = self._look()
        elif marks != self._marks:
            with torch.no_grad():
                for own, parts in self._apart:
                    own.copy_(_rows(parts, own))
            self._pipe.refresh()
            self.drawn = None
        self._marks = marks
        return self._pipe

    def _look(self) -> list[Any]:
        return [mark(weight) for stage in self._stages for weight in weights_of(stage)]

    def __deepcopy__(self, memo: dict[int, Any]) -> StageEngine:
        """Of the copied stages, with a pipeline yet to be made."""
        other = copy.copy(self)
        other._stages = copy.deepcopy(self._stages, memo)
        other._pipe, other.drawn, other._marks, other._apart = None, None, [], []
        return other

    def executor(self, side: int) -> Executor:
        """What draws; ValueError where the top map's side is another."""
        transformer = self.pipeline.transformer
        assert transformer is not None
        convert(transformer, side=side)  # looks at it
        return self.pipeline.executor

    def _make(self, stage1: nn.Module, stage2: nn.Module | None = None) -> HQTVAEPipeline:
        vae = load_stage1_state(self.vae_config, stage1.state_dict(), type(stage1).__name__)
        transformer = None
        if stage2 is not None and self.config is not None:
            transformer = load_stage2_state(self.config, stage2.state_dict(), type(stage2).__name__)
        config = HQTVAEConfig(vae=self.vae_config, transformer=self.config)
        device = next(stage1.parameters()).device
        pipe = HQTVAEPipeline(Checkpoint(config, vae, transformer), device=device, dtype=self.dtype)
        for released, ours in ((stage1, pipe.vae), (stage2, pipe.transformer)):
            if released is not None and ours is not None:
                self._apart += _share(released, ours)
        return pipe

    def remember(self, maps: Sequence[Tensor]) -> None:
        self.drawn = Drawn(maps)

    def decode(self, codes: Sequence[Tensor | None]) -> Tensor:
        """Images [B, 3, R, R] in [-1, 1], fp32, on the pipeline's device, of codes [B, h, w] a level."""
        executor = self.pipeline.executor
        count = next(len(level) for level in codes if level is not None)
        if count == 0:
            R = self.vae_config.resolution
            return torch.zeros(0, 3, R, R, dtype=torch.float32, device=executor.device)
        images = None if self.drawn is None else self.drawn.answer(codes, self._decode_all)
        return (self._decode_all(codes) if images is None else images) * 2 - 1

    def _decode_all(self, codes: Sequence[Tensor | None]) -> Tensor:
        executor = self.pipeline.executor
        total = next(len(level) for level in codes if level is not None)
        limit = max(total if total == 1 else 0, DEFAULT_BATCH.get(executor.device.type, DEFAULT_BATCH["cpu"]))
        cutter = Cutter(total, limit, buckets=executor.graphs is not None, sizes=BUCKETS)
        return executor.decode_all(codes, cutter, to=executor.device)


class Drawn:
    """Codes that were drawn at once, and their images once a loop over the rows has begun with the first one."""

    def __init__(self, maps: Sequence[Tensor]) -> None:
        self.maps = maps
        self._places = {key: place for place, key in enumerate(_keys(maps))}
        self._left = 0
        self._images: Tensor | None = None

    def answer(self, codes: Sequence[Tensor | None], decode: Any) -> Tensor | None:
        """Images in [0, 1] of rows of these codes; None where these are others, or no loop over all."""
        if any(level is None for level in codes):
            return None
        keys = _keys([level for level in codes if level is not None])
        places = [self._places.get(key) for key in keys]
        if None in places or (self._images is None and places[0] != self._places[_keys(self._first())[0]]):
            return None
        if self._images is None:
            self._images, self._left = decode(self.maps), len(self.maps[0])
        images = self._images[torch.tensor(places, dtype=torch.int64, device=self._images.device)]
        self._left -= len(keys)
        if self._left <= 0:  # as many as there are have been asked for: their memory is free again
            self._images = None
        return images

    def _first(self) -> list[Tensor]:
        return [level[:1] for level in self.maps]


def _keys(maps: Sequence[Tensor]) -> list[bytes]:
    """The codes of each row, as bytes."""
    rows = torch.cat([level.detach().to("cpu", torch.int64).flatten(1) for level in maps], dim=1)
    return [row.tobytes() for row in rows.numpy()]


def engine_of(stage: nn.Module) -> StageEngine | None:
    """None where it is no accelerated one of a whole model."""
    return stage.__dict__.get(HELD)


def _rows(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.cat(list(parts)).reshape(-1, *like.shape[1:])[: len(like)].reshape(like.shape)


def _share(released: nn.Module, ours: HQVAE | HQTransformer) -> list[tuple[Tensor, list[Tensor]]]:
    """Let the released module's tensors be views of ours; what cannot be comes back, as ours and its parts."""
    apart, found = [], sources("", ours)
    for key, own in ours.state_dict().items():
        stored = [_tensor(released, name) for name, _ in found[key].parts]
        kept = key.startswith(APART) and own.dtype != stored[0].dtype
        if kept or own.numel() != sum(part.numel() for part in stored):
            apart.append((own, stored))
            continue
        rows = own.split([len(part) for part in stored]) if len(stored) > 1 else [own]
        for part, view in zip(stored, rows, strict=True):
            part.data = view.detach().view(part.shape)
    return apart


def _tensor(module: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


# ------------------------------------------------------------------------------------------------------------ the calls


class Accelerated(nn.Module):
    """Base of what a released module becomes. ``super()`` is the released class."""

    def _engine(self, *inputs: Any) -> StageEngine | None:
        """None where the module runs as it is: in training, and where gradients are asked for."""
        learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in self.parameters())
        reads = torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in inputs)
        return None if self.training or learns or reads else engine_of(self)


class _Stage1(Accelerated):
    def _codes(self, engine: StageEngine, images: Tensor) -> list[Tensor]:
        pipe = engine.pipeline
        return [level.flatten() for level in encode_images(pipe.vae, images, pipe.plan)]

    def _soft(self, engine: StageEngine, images: Tensor, temp: float) -> tuple[list[Tensor], list[Tensor]]:
        pipe = engine.pipeline
        with inference(), using(pipe.plan):
            levels = pipe.vae.quantize(pipe.vae.latents(images))
            pairs = list(zip(levels, pipe.vae.codebooks, strict=True))
            softs = [book.soft_codes(level.residual, temp).flatten(0, 2) for level, book in pairs]
        codes = [level.codes.flatten() for level in levels]
        return list(map(ordinary, codes)), list(map(ordinary, softs))


class TwoLevels(_Stage1):
    def decode_code(self, code_t: Tensor | None, code_b: Tensor | None) -> Tensor:
        engine = self._engine()
        return super().decode_code(code_t, code_b) if engine is None else engine.decode([code_t, code_b])  # type: ignore[misc]

    def get_codes(self, x: Tensor) -> tuple[Tensor, ...]:
        engine = self._engine(x)
        return super().get_codes(x) if engine is None else tuple(self._codes(engine, x))  # type: ignore[misc]

    def get_soft_codes(self, xs: Tensor, temp: float = 1.0, stochastic: bool = False) -> Any:
        engine = None if stochastic else self._engine()
        if engine is None:
            return super().get_soft_codes(xs, temp, stochastic)  # type: ignore[misc]
        codes, softs = self._soft(engine, xs, temp)
        return tuple(codes), tuple(softs)


class ManyLevels(_Stage1):
    def decode_code(self, codes: Sequence[Tensor | None]) -> Tensor:
        engine = self._engine()
        return super().decode_code(codes) if engine is None else engine.decode(codes)  # type: ignore[misc]

    def get_codes(self, x: Tensor) -> list[Tensor]:
        engine = self._engine(x)
        return super().get_codes(x) if engine is None else self._codes(engine, x)  # type: ignore[misc]

    def get_soft_codes(self, xs: Tensor, temp: float = 1.0, stochastic: bool = False) -> Any:
        engine = None if stochastic else self._engine()
        if engine is None:
            return super().get_soft_codes(xs, temp, stochastic)  # type: ignore[misc]
        return self._soft(engine, xs, temp)


class Half(Accelerated):
    """The encoder or the decoder, wherever else its module calls it: what it computes keeps its input's dtype."""

    name: str

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        engine = None if options else self._engine(x)
        dtype = next(self.parameters()).dtype
        if engine is None:
            return super().forward(x.to(dtype), **options).to(x.dtype)
        pipe = engine.pipeline
        with inference(), using(pipe.plan):
            return ordinary(pipe.vae.get_submodule(self.name)(x.to(dtype)).to(x.dtype))


class EncoderHalf(Half):
    name = "encoder"


class DecoderHalf(Half):
    name = "decoder"


class Transformer(Accelerated):
    def forward(self, codes: Sequence[Tensor], labels: Tensor | None = None, model_stage1: Any = None) -> Any:
        """Logits [B, h*w, K] a level, fp32, and of the text where there is some: a tuple, or of three levels a list."""
        engine = self._engine()
        if engine is None:
            return super().forward(codes, labels, model_stage1)
        pipe = engine.pipeline
        ours = pipe.transformer
        assert ours is not None
        maps = [level.view(len(level), math.isqrt(level.shape[1]), -1) for level in codes]
        with inference(), using(pipe.plan):
            logits = ours(maps, labels)
        found = [*logits.levels] if logits.text is None else [*logits.levels, logits.text]
        found = [ordinary(level.float()) for level in found]
        return tuple(found) if len(codes) == 2 else found


def become(module: nn.Module, kind: type[Accelerated], engine: StageEngine | None) -> None:
    """Make ``module`` one that ``engine`` answers for; None: it is answered for by itself."""
    if not isinstance(module, Accelerated):
        own = type(module)
        module.__class__ = type(own.__name__, (kind, own), {"__module__": own.__module__})
    if engine is not None:
        module.__dict__[HELD] = engine
