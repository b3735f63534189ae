"""A step in the kernels of :mod:`hqtvae_fast.ops`, and who runs a model's steps.

At most eight kernels a transformer block: four products with what lies between them fused. The projection's bias, the
cache and the softmax are one attention kernel; residual, bias and the LayerNorm that the next product reads one; bias
and GELU one, or, for up to 16 rows on a GPU (128 where that is asked for), part of the product itself, which is then
our own kernel and not the library's. So a stack is entered with a LayerNorm and each block hands the next one its input
already normalised; the last one takes the LayerNorm that follows the stack. Positions and steps are read from the
device, where a captured graph finds them. The numbers are the modules' but for rounding. Shapes as in
:mod:`hqtvae_fast.engine.step`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hqtvae_fast.config import Gelu
from hqtvae_fast.engine.cache import CLASSES, StepTables, make_caches, num_starts
from hqtvae_fast.engine.options import KV, EngineOptions
from hqtvae_fast.engine.step import LevelFeatures, LevelLogits, ReferenceStep, Step
from hqtvae_fast.model import HQTransformer
from hqtvae_fast.model.embedding import BodyEmbedding, HeadEmbedding
from hqtvae_fast.model.head import CodeHead, PyramidHead, split_group
from hqtvae_fast.model.layers import Block, Blocks
from hqtvae_fast.model.linear import Linear
from hqtvae_fast.model.prepared import ALTERED
from hqtvae_fast.ops import (
    add_layer_norm,
    bias_gelu,
    decode_attention,
    local_attention,
    prefill_attention,
    quantized_linear,
    skinny_linear,
)
from hqtvae_fast.ops.kernels.skinny_linear.reference import MOMENTS_OF
from hqtvae_fast.ops.kernels.skinny_linear.triton import MOST_ROWS, STREAMED_ROWS, Workspace

Engine = Literal["fused", "reference"]
ENGINES: tuple[Engine, ...] = ("fused", "reference")


def make_step(
    model: HQTransformer,
    batch: int,
    engine: Engine | None = None,
    options: EngineOptions | None = None,
    tables: StepTables | None = None,
) -> Step:
    """Who runs the steps: "fused", the kernels of :mod:`hqtvae_fast.ops`, or "reference", the model's own modules.
    None: what the options say, else the kernels on a GPU or with any option that only they have; else the modules,
    which on a CPU have packed weights. Raises ValueError on another, and on "reference" with such an option. A model
    whose modules were wrapped or have hooks is run by its modules, and a warning says so; ValueError where the kernels
    were asked for."""
    options, altered = options or EngineOptions(), model.altered()
    any_option = options.fused or tables is not None
    model.look()
    if engine is None and options.modules:
        engine = "reference"
    elif engine is None:
        engine = "fused" if model.norm.weight.is_cuda or any_option else "reference"
        if engine == "fused" and altered is not None:
            warnings.warn(f"{altered}: {ALTERED}: drawing by the model's modules, which is slower", stacklevel=2)
            return ReferenceStep(model, batch)
    if engine == "fused" and altered is not None:
        raise ValueError(f"engine: expected 'reference', since {altered} {ALTERED}; got 'fused'")
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}; got {engine!r}")
    if engine == "reference" and any_option:
        raise ValueError("options: expected engine 'fused', which alone has any; got 'reference'")
    return FusedStep(model, batch, options, tables) if engine == "fused" else ReferenceStep(model, batch)


@dataclass(frozen=True)
class _Entry:
    """What a stack is entered with: x [B, T, D] + ``added`` (a vector [D]). ``attend``: (q/k/v [B, T, 3, H, E] without
    their bias, the bias, the layer's number) -> [B, T, D]. ``qkv_BTD``: the first block's product, where it is known.
    ``queries``: False leaves theirs out of all."""

    blocks: Blocks
    x_BTD: Tensor
    attend: Callable[[Tensor, Tensor | None, int], Tensor]
    added: Tensor | None = None
    qkv_BTD: Tensor | None = None
    queries: bool = True


class FusedStep:
    """See :class:`Step`. The model's parameters are read in place, none is copied but the positions' sums, at each
    first step. The draw takes over the head's last product only where its weight is not quantized. ``tables``: None
    makes them where the options ask for them; others must be of a step with the same ``kv``."""

    def __init__(
        self, model: HQTransformer, batch: int, options: EngineOptions | None = None, tables: StepTables | None = None
    ) -> None:
        config, device = model.config, model.norm.weight.device
        self.model, self.batch, self.options = model, batch, options or EngineOptions()
        self.tables = make_tables(model, self.options.kv) if tables is None and self.options.tables else tables
        self.caches = make_caches(model, batch, self.options.kv)
        self.numbers = torch.arange(config.prefix_positions + config.num_steps, dtype=torch.int64, device=device)
        self.embedding = BodyEmbedding(model.embedding, config)
        self.head_embedding = HeadEmbedding(model.head) if isinstance(model.head, PyramidHead) else None
        self._skinny: Callable[..., Tensor] = partial(
            skinny_linear, workspace=Workspace.on(device), prefetch=self.options.dependent_launch
        )

    def body(self, step: int, condition: Tensor | None, local_BTN: Tensor) -> Tensor:
        model, (cache, _) = self.model, self.caches
        cached = model.config.prefix_positions - 1 + step
        if step == 0:
            self.embedding.place()
        if step == 0 and self.tables is not None and self.tables.start is not None:
            return self.tables.start.read(condition, cache, self.batch)
        if step == 0:
            x_BSD = model.prefix(condition, self.batch)
        else:
            x_BSD = self.embedding(local_BTN[:, step - 1], self.numbers[step - 1])
            if self.embedding.blocks is not None:
                among_themselves = _Entry(self.embedding.blocks, x_BSD, lambda qkv, bias, _: local_attention(qkv, bias))
                x_BSD = self._run(among_themselves, None)[0].mean(dim=1, keepdim=True)

        def attend(qkv: Tensor, bias: Tensor | None, layer: int) -> Tensor:
            own = cache.layer(layer)
            if qkv.shape[1] > 1:  # a whole prefix
                return prefill_attention(qkv, own.keys, own.values, bias=bias, scales=own.scales)
            return decode_attention(qkv, own.keys, own.values, self.numbers[cached], bias=bias, scales=own.scales)

        entry = _Entry(model.body, x_BSD, attend)
        if self._joins(entry):
            return _add(self._run_joined(entry)[0], None, None, model.norm)[1][:, -1]
        return self._run(entry, model.norm)[1][:, -1]

    def head(self, h_BD: Tensor, local_BN: Tensor, group: range) -> Sequence[LevelLogits | LevelFeatures]:
        head, parts = self.model.head, split_group(self.model.config, group)
        if isinstance(head, CodeHead):
            return [self._predict(0, 0, h_BD[:, None], head.logits)]
        norms = [cast(nn.LayerNorm, head.norms[part.level]) for part in parts]
        entry, found = self._enter_head(head, h_BD, local_BN, group), list[LevelLogits | LevelFeatures]()
        if self._joins(entry) and not self.options.fused_draw:
            x_BGD, moments = self._run_joined(entry)
            for part, norm in zip(parts, norms, strict=True):
                own = slice(part.positions.start - group.start, part.positions.stop - group.start)
                layer, told = cast(Linear, head.logits[part.level]), _of_positions(moments, x_BGD, own)
                logits = self._skinny(x_BGD[:, own], norm=_norm(norm), moments=told, **_stored(layer, quantized=True))
                found.append(LevelLogits(part.level, part.positions.start, logits))
            return found
        x_BGD, normal_BGD = self._run(entry, norms[0])
        for part, norm in zip(parts, norms, strict=True):
            own = slice(part.positions.start - group.start, part.positions.stop - group.start)
            if norm is not norms[0]:  # a group of several levels, each with a LayerNorm of its own
                normal_BGD[:, own] = _add(x_BGD[:, own], None, None, norm)[1]
            found.append(self._predict(part.level, part.positions.start, normal_BGD[:, own], head.logits[part.level]))
        return found

    def skip(self, h_BD: Tensor) -> None:
        head = self.model.head
        if isinstance(head, PyramidHead):
            self._run(self._enter_head(head, h_BD, None, range(1)), cast(nn.LayerNorm, head.norms[0]))

    def _enter_head(self, head: PyramidHead, h_BD: Tensor, local_BN: Tensor | None, group: range) -> _Entry:
        cache = self.caches[1]

        def attend(qkv: Tensor, bias: Tensor | None, layer: int) -> Tensor:
            return local_attention(qkv, bias, cache.keys[layer], cache.values[layer], group.start)

        if group == range(1):  # position 0 sees itself alone
            return _Entry(head.blocks, h_BD[:, None], attend, head.start, queries=not self.options.skip_query)
        assert self.head_embedding is not None
        assert local_BN is not None
        first_qkv = None if self.tables is None else self.tables.first_qkv(local_BN, group)
        return _Entry(head.blocks, self.head_embedding(h_BD, local_BN, group), attend, qkv_BTD=first_qkv)

    def _predict(self, level: int, first: int, x_BGD: Tensor, layer: nn.Module) -> LevelLogits | LevelFeatures:
        layer = cast(Linear, layer)
        if self.options.fused_draw and layer.streamed[1] is None:
            return LevelFeatures(level, first, x_BGD, layer.weight)
        multiply, stored = self._product(x_BGD)
        return LevelLogits(level, first, multiply(x_BGD, **stored(layer)))

    def _product(
        self, x: Tensor, *, down: bool = False
    ) -> tuple[Callable[..., Tensor], Callable[..., dict[str, Tensor | None]]]:
        """What multiplies so many rows, and what it is given of a layer: our skinny product and the weight as it is
        stored, where the product's time is that of reading it; else the library's and the plain weight, or, where that
        is asked for, that of 8-bit numbers. ``down``: for a block's last."""
        skinny, wanted = self._is_ours(x), self.options.quantized_products
        if not skinny and (wanted == "all" or (wanted == "but_down" and not down)):
            return _eight_bits, partial(_stored, quantized=True)
        return self._skinny if skinny else _library, partial(_stored, quantized=skinny)

    def _run(self, entry: _Entry, last: nn.LayerNorm | None) -> tuple[Tensor, Tensor]:
        """A stack, and the LayerNorm that follows it; None: none that counts. Products are without their biases, which
        whatever reads them adds."""
        layers, x_BTD, qkv_BTD = [cast(Block, layer) for layer in entry.blocks.layers], entry.x_BTD, entry.qkv_BTD
        first = 0 if entry.queries else x_BTD.shape[-1]  # of the projection's outputs, queries are the first D
        multiply, stored = self._product(x_BTD)
        multiply_down, stored_down = self._product(x_BTD, down=True)
        if not layers:
            assert last is not None
            return _add(x_BTD, None, entry.added, last)
        if qkv_BTD is None:
            x_BTD, normal_BTD = _add(x_BTD, None, entry.added, layers[0].norm1)
            qkv_BTD = multiply(normal_BTD, **stored(layers[0].attention.qkv, first))
        for index, (block, after) in enumerate(zip(layers, [*layers[1:], None], strict=True)):
            attention, mlp = block.attention, block.mlp
            qkv_BTPHE = qkv_BTD.unflatten(-1, (3 if entry.queries else 2, attention.num_heads, -1))
            bias = None if attention.qkv.bias is None else attention.qkv.bias[first:]
            y_BTD = multiply(entry.attend(qkv_BTPHE, bias, index), **stored(attention.out))
            x_BTD, normal_BTD = _add(x_BTD, y_BTD, attention.out.bias, block.norm2)
            wide = multiply(normal_BTD, bias=mlp.up.bias, gelu=mlp.gelu, **stored(mlp.up))
            y_BTD = multiply_down(wide, **stored_down(mlp.down))
            following = after.norm1 if after is not None else last or block.norm1
            x_BTD, normal_BTD = _add(x_BTD, y_BTD, mlp.down.bias, following)
            if after is not None:
                qkv_BTD = multiply(normal_BTD, **stored(after.attention.qkv, first))
        return x_BTD, normal_BTD

    def _is_ours(self, x: Tensor) -> bool:
        """Whether our own kernel multiplies these rows."""
        return is_skinny(x) or (self.options.streamed_rows and is_streamed(x))

    def _joins(self, entry: _Entry) -> bool:
        """Whether products are to take the norms before them and the sums after them along."""
        return self.options.fused_norm and len(entry.blocks.layers) > 0 and self._is_ours(entry.x_BTD)

    def _run_joined(self, entry: _Entry) -> tuple[Tensor, Tensor | None]:
        """A stack of skinny products: each normalises its own rows, and those that end a branch add it to the stream.
        So a block is five kernels. For each program to find the moments of more than 16 rows would take as long as the
        norm does: products that add to the stream leave them, and the first norm is by itself. x [B, T, D] after the
        last block, and its moments."""
        blocks = [cast(Block, layer) for layer in entry.blocks.layers]
        x_BTD, qkv_BTD, added = entry.x_BTD, entry.qkv_BTD, entry.added
        first, parts = (0, 3) if entry.queries else (x_BTD.shape[-1], 2)
        stored, moments = partial(_stored, quantized=True), None
        if is_streamed(x_BTD):
            moments = _room_for_moments(x_BTD)
            if qkv_BTD is None:
                x_BTD, normal_BTD = _add(x_BTD, None, added, blocks[0].norm1)
                qkv_BTD, added = self._skinny(normal_BTD, **stored(blocks[0].attention.qkv, first)), None
        for index, block in enumerate(blocks):
            attention, mlp = block.attention, block.mlp
            if qkv_BTD is None:
                norm = {"norm": _norm(block.norm1), "added": added, "moments": moments}
                qkv_BTD = self._skinny(x_BTD, **norm, **stored(attention.qkv, first))
            bias = None if attention.qkv.bias is None else attention.qkv.bias[first:]
            y_BTD = entry.attend(qkv_BTD.unflatten(-1, (parts, attention.num_heads, -1)), bias, index)
            out = {"bias": attention.out.bias, "residual": x_BTD, "added": added, "moments": moments}
            x_BTD, qkv_BTD, added = self._skinny(y_BTD, **out, **stored(attention.out)), None, None
            up = {"bias": mlp.up.bias, "gelu": mlp.gelu, "norm": _norm(block.norm2), "moments": moments}
            wide = self._skinny(x_BTD, **up, **stored(mlp.up))
            down = {"bias": mlp.down.bias, "residual": x_BTD, "moments": moments}
            x_BTD = self._skinny(wide, **down, **stored(mlp.down))
        return x_BTD, moments


def _norm(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return norm.weight, norm.bias, norm.eps


def is_skinny(x: Tensor) -> bool:
    """Whether a product with these rows is the time to read its weight, which our kernel does alone."""
    return x.is_cuda and x.shape[0] * x.shape[1] <= MOST_ROWS


def is_streamed(x: Tensor) -> bool:
    """Whether our kernel takes these rows where that is asked for."""
    return x.is_cuda and MOST_ROWS < x.shape[0] * x.shape[1] <= STREAMED_ROWS


def _room_for_moments(x: Tensor) -> Tensor:
    B, T, D = x.shape
    return x.new_empty(2, -(-D // MOMENTS_OF), B * T, dtype=torch.float32)


def _of_positions(moments: Tensor | None, x: Tensor, own: slice) -> Tensor | None:
    """Of some positions of x [B, T, D] alone; copied where these are not all."""
    if moments is None:
        return None
    return moments.unflatten(-1, x.shape[:2])[..., own].flatten(2).contiguous()


def make_tables(model: HQTransformer, kv: KV | None = None) -> StepTables:
    """Tables of whatever a step of this model can read from them, as large as
    :func:`hqtvae_fast.engine.cache.table_bytes` says; ``kv``: how that step keeps keys and values."""
    count = num_starts(model.config)
    first = FusedStep(model, min(CLASSES, count), EngineOptions(kv=kv)) if count > 0 else None
    return StepTables.make(model, first)


def _stored(layer: Linear, first: int = 0, *, quantized: bool) -> dict[str, Tensor | None]:
    """Weight and scale of a layer's outputs from ``first`` on."""
    weight, scale = layer.streamed if quantized else (layer.weight, None)
    return {"weight": weight[first:], "scale": None if scale is None else scale[first:]}


def _library(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scale: None = None, gelu: Gelu | None = None
) -> Tensor:
    """The library's product; its bias is added with the GELU alone."""
    return F.linear(x, weight) if gelu is None else bias_gelu(F.linear(x, weight), bias, gelu)


def _eight_bits(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scale: Tensor | None = None, gelu: Gelu | None = None
) -> Tensor:
    """The product of 8-bit numbers; of a layer that is not quantized, the library's."""
    if scale is None:
        return _library(x, weight, bias, gelu=gelu)
    return quantized_linear(x, weight, scale, bias, gelu=gelu or "none")


def _add(x: Tensor, added: Tensor | None, bias: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return add_layer_norm(x, added, bias, norm.weight, norm.bias, norm.eps)
