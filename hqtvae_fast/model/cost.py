"""What a model costs, from its configuration alone: parameters, FLOPs, bytes, memory, and time floors on a device.

The modules are built on the meta device, so nothing is allocated. One multiply-add is 2 FLOPs. FLOPs are those of
matrix products, convolutions and attention, as the model is written; what tensor cores have no part in
(normalisations, activations, drawing a code from its logits) is left out. Values, not bytes, are counted where the
bytes depend on a dtype.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hqtvae_fast.config import HQTVAEConfig, TransformerConfig, VAEConfig
from hqtvae_fast.hardware import Device, floor_seconds
from hqtvae_fast.model.autoencoder import IMAGE_CHANNELS, Upsample
from hqtvae_fast.model.embedding import LocalEmbedding
from hqtvae_fast.model.empty import without_values
from hqtvae_fast.model.head import PyramidHead
from hqtvae_fast.model.hqtransformer import HQTransformer
from hqtvae_fast.model.hqvae import HQVAE
from hqtvae_fast.model.layers import Blocks

CODE_BYTES = 8  # int64

# nearest-2x + 3x3 convolution reads each input pixel through 4 x 9 taps. Doubled pixels are equal, so taps that meet
# the same one can be summed beforehand: four 2x2 convolutions, 4 x 4 taps.
UPSAMPLE_TAPS, FOLDED_TAPS = 4 * 9, 4 * 4


# ---------------------------------------------------------------------------------------------------------- parameters


def parameters(config: HQTVAEConfig) -> dict[str, int]:
    """Parameters of each component, in the modules' order, such as ``vae.decoder`` or ``transformer.head.blocks``.

    Keys are a part (``vae``, ``transformer``, ``refiner``), then the module's name there, for a transformer's embedding
    and head one name deeper. ``vae.codebooks`` counts the embeddings, which are buffers. A transformer's entries sum
    to the size that the paper calls it by.
    """
    table: Counter[str] = Counter()
    vae = _empty_vae(config.vae)
    table.update({f"vae.{name}": _values(child) for name, child in vae.named_children()})
    table["vae.codebooks"] = sum(codebook.embedding.numel() for codebook in vae.codebooks)
    for part, stage2 in (("transformer", config.transformer), ("refiner", config.refiner)):
        if stage2 is None:
            continue
        for name, parameter in _empty_transformer(stage2).named_parameters():
            path = name.split(".")
            depth = 2 if path[0] in ("embedding", "head") else 1
            table[".".join([part, *path[:depth]])] += parameter.numel()
    return {name: count for name, count in table.items() if count > 0}


def sizes(config: HQTVAEConfig) -> dict[str, int]:
    """Parameters of each part, as torch counts them: codebooks, which are moving averages in buffers, are none."""
    table: Counter[str] = Counter()
    for name, count in parameters(config).items():
        if name != "vae.codebooks":
            table[name.partition(".")[0]] += count
    return dict(table)


# ------------------------------------------------------------------------------------------------------------- stage 1


@cache
def decode_flops(config: VAEConfig, *, fold_upsampling: bool = False) -> int:
    """FLOPs of decoding one image: the decoder, the 1x1 convolution before it and resamplers that are convolutions.

    ``fold_upsampling``: with each nearest-2x and its 3x3 convolution computed as four 2x2 convolutions.
    """
    vae = _empty_vae(config)
    codes = [torch.zeros(1, side, side, dtype=torch.int64, device="meta") for side in config.level_sides]
    flops = _count_flops(lambda: vae.decode(codes))
    if not fold_upsampling:
        return flops
    return flops - _upsample_flops(vae) * (UPSAMPLE_TAPS - FOLDED_TAPS) // UPSAMPLE_TAPS


@cache
def encode_flops(config: VAEConfig) -> int:
    """FLOPs of encoding one image: the encoder, its 1x1 convolution and the search, one product with each codebook."""
    vae = _empty_vae(config)
    image = torch.zeros(1, IMAGE_CHANNELS, config.resolution, config.resolution, dtype=torch.float32, device="meta")
    levels = zip(config.level_sides, config.codebook_sizes, config.code_dims, strict=True)
    search = sum(2 * side**2 * size * dim for side, size, dim in levels)
    return _count_flops(lambda: vae.latents(image)) + search


def _upsample_flops(vae: HQVAE) -> int:
    flops, side = 0, vae.config.level_sides[-1]
    for layer in vae.decoder.up.modules():
        if isinstance(layer, Upsample):
            side *= 2
            flops += 2 * side**2 * layer.conv.weight.numel()
    return flops


def _count_flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


# ------------------------------------------------------------------------------------------------------------- stage 2


@dataclass(frozen=True)
class StepCost:
    """Work of one step of drawing codes: a position of the body, then the head's groups.

    ``products``: FLOPs an image of products with weights. ``attention``: FLOPs an image of queries with keys and of
    probabilities with values. ``weights``: values of weights read, once for a whole batch; a weight counts again in
    each pass over the head, since caches do not hold a pass's weights until the next. ``cache``: values of the body's
    keys and values moved an image, new ones written and earlier ones read. (The head's live for one step, for a few
    positions, and need not leave the caches of the chip.)
    """

    products: int = 0
    attention: int = 0
    weights: int = 0
    cache: int = 0

    def __add__(self, other: StepCost) -> StepCost:
        return StepCost(
            products=self.products + other.products,
            attention=self.attention + other.attention,
            weights=self.weights + other.weights,
            cache=self.cache + other.cache,
        )

    @property
    def flops(self) -> int:
        """FLOPs an image."""
        return self.products + self.attention

    def floor(self, batch: int, device: Device, dtype: torch.dtype | None = None) -> float:
        """Least seconds of this step for ``batch`` images; ``dtype``, of weights and cache, is the device's if None."""
        values = self.weights + batch * self.cache
        return floor_seconds(batch * self.flops, values * (dtype or device.dtype).itemsize, device)


@cache
def draw_steps(config: TransformerConfig) -> tuple[StepCost, ...]:
    """The T steps of drawing one map, in order. The first takes the whole prefix, the others one token each."""
    model = _empty_transformer(config)
    head = _head_cost(model)
    return tuple(_embedding_cost(model, step) + _body_cost(model, step) + head for step in range(config.num_steps))


def _embedding_cost(model: HQTransformer, step: int) -> StepCost:
    """IET over the local pyramid that the step before has drawn."""
    if step == 0 or not isinstance(model.embedding, LocalEmbedding):
        return StepCost()
    n = model.config.num_local
    return _blocks_cost(model.embedding.blocks, model.config.dim, positions=n, pairs=n * n)


def _body_cost(model: HQTransformer, step: int) -> StepCost:
    config = model.config
    positions = config.prefix_positions if step == 0 else 1
    end = config.prefix_positions + step  # positions known after this step; each looks at itself and those before
    pairs = sum(range(end - positions + 1, end + 1))
    cached = StepCost(cache=2 * config.body.num_layers * config.dim * end)
    return _blocks_cost(model.body, config.dim, positions, pairs) + _readout_cost(model.norm, rows=1) + cached


def _head_cost(model: HQTransformer) -> StepCost:
    config, head = model.config, model.head
    cost = StepCost()
    for group in config.groups:
        if isinstance(head, PyramidHead):
            cost += _blocks_cost(head.blocks, config.dim, len(group), pairs=len(group) * group.stop)
        for level, rows in Counter(config.local_levels[q] for q in group).items():
            if isinstance(head, PyramidHead):
                cost += _readout_cost(head.norms[level], rows) + _readout_cost(head.logits[level], rows)
            else:
                cost += _readout_cost(head.logits, rows)
    return cost


def _blocks_cost(blocks: Blocks, dim: int, positions: int, pairs: int) -> StepCost:
    """A pass of ``positions`` through a stack; ``pairs``: of a query and a key that it looks at, in one layer."""
    alone = positions == 1 and pairs == 1  # one key has all the weight: its value is the answer
    attention = 0 if alone else len(blocks.layers) * pairs * 4 * dim
    return _readout_cost(blocks, positions) + StepCost(attention=attention)


def _readout_cost(module: nn.Module, rows: int) -> StepCost:
    """A module applied to ``rows`` vectors an image."""
    matrices = sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
    return StepCost(products=2 * rows * matrices, weights=_values(module))


# ------------------------------------------------------------------------------------------------------- whole images


@dataclass(frozen=True)
class Floor:
    """Least seconds of a batch: of drawing its codes (``draw``) and of decoding them, one after the other."""

    batch: int
    draw: float
    decode: float

    @property
    def total(self) -> float:
        """Seconds a batch."""
        return self.draw + self.decode

    @property
    def images_per_second(self) -> float:
        return self.batch / self.total


@dataclass(frozen=True)
class ImageCost:
    """Work of drawing and decoding images.

    ``steps``: of the transformer, then of the refiner; none without stage 2. ``decode``: FLOPs an image.
    ``decode_weights``: values of weights read, once a batch. ``pixels``: values of one image.
    """

    steps: tuple[StepCost, ...]
    decode: int
    decode_weights: int
    pixels: int

    @property
    def draw(self) -> int:
        """FLOPs of drawing one image's codes."""
        return sum(step.flops for step in self.steps)

    @property
    def weights_read(self) -> int:
        """Values of weights read while drawing a batch's codes, whatever its size."""
        return sum(step.weights for step in self.steps)

    @property
    def cache_moved(self) -> int:
        """Values of keys and values read and written while drawing one image's codes."""
        return sum(step.cache for step in self.steps)

    def floor(self, batch: int, device: Device, dtype: torch.dtype | None = None) -> Floor:
        """Least time of a batch in which every step is bound by arithmetic or by bandwidth, whichever is slower.

        ``dtype``: of weights, cache and pixels; the device's own if None. The device's FLOP/s are taken as they are.
        """
        itemsize = (dtype or device.dtype).itemsize
        traffic = (self.decode_weights + batch * self.pixels) * itemsize
        return Floor(
            batch=batch,
            draw=sum(step.floor(batch, device, dtype) for step in self.steps),
            decode=floor_seconds(batch * self.decode, traffic, device),
        )

    def roof(self, device: Device) -> float:
        """Images/s that arithmetic alone allows: what an endless batch tends to."""
        return device.flops / (self.draw + self.decode)


@cache
def image_cost(config: HQTVAEConfig, *, fold_upsampling: bool = False) -> ImageCost:
    """Work of drawing and decoding images of this model. ``fold_upsampling``: see :func:`decode_flops`."""
    vae = _empty_vae(config.vae)
    return ImageCost(
        steps=tuple(step for stage2 in _transformers(config) for step in draw_steps(stage2)),
        decode=decode_flops(config.vae, fold_upsampling=fold_upsampling),
        decode_weights=_values(vae.decoder) + _values(vae.post_quant_conv) + _values(vae.upsamples),
        pixels=IMAGE_CHANNELS * config.vae.resolution**2,
    )


# -------------------------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Memory:
    """Bytes that a batch needs besides activations, which depend on how decoding is cut into chunks.

    ``weights``: of both stages, once; a CPU's packed linear layers add about one more copy of stage 2. ``cache``: keys
    and values of body and head. ``codes``: the drawn local pyramids.
    """

    weights: int
    cache: int
    codes: int

    @property
    def total(self) -> int:
        """Bytes."""
        return self.weights + self.cache + self.codes


def memory(config: HQTVAEConfig, batch: int, dtype: torch.dtype) -> Memory:
    """Bytes for ``batch`` images with stage 2 and the decoder in ``dtype``, the encoder and codebooks in fp32."""
    modules: list[nn.Module] = [_empty_vae(config.vae).set_decoder_dtype(dtype)]
    modules += [_empty_transformer(stage2).to(dtype) for stage2 in _transformers(config)]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    # The refiner's loop starts when the prior's caches are gone, but reads its codes.
    return Memory(
        weights=sum(tensor.nbytes for tensor in tensors),
        cache=max((_cache_bytes(stage2, batch, dtype) for stage2 in _transformers(config)), default=0),
        codes=sum(batch * stage2.num_steps * stage2.num_local * CODE_BYTES for stage2 in _transformers(config)),
    )


def _cache_bytes(config: TransformerConfig, batch: int, dtype: torch.dtype) -> int:
    body = config.body.num_layers * (config.prefix_positions + config.num_steps - 1)
    head = 0 if config.decoding == "global" else config.head.num_layers * config.num_local
    return 2 * batch * config.dim * (body + head) * dtype.itemsize


# ------------------------------------------------------------------------------------------------------------- modules


def _transformers(config: HQTVAEConfig) -> list[TransformerConfig]:
    """The transformers in drawing order."""
    return [stage2 for stage2 in (config.transformer, config.refiner) if stage2 is not None]


def _empty_vae(config: VAEConfig) -> HQVAE:
    with without_values():
        return HQVAE(config).eval()


def _empty_transformer(config: TransformerConfig) -> HQTransformer:
    with without_values():
        return HQTransformer(config).eval()


def _values(module: nn.Module) -> int:
    return sum(math.prod(parameter.shape) for parameter in module.parameters())
