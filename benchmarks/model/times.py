"""Seconds of one kernel on a GPU, by what it does. Every constant is an assumption until a GPU has been asked.

A product takes what its weights take to be read, or its tiles to be multiplied in whole waves over the multiprocessors,
whichever is longer; our skinny one of more than 16 rows also what its programs read and write of the L2 cache, or take
to normalise their rows, if that is longer, and then what the last program of a tile takes to add up its parts. What
works on a step's activations finds them in the L2 cache; the decoder's maps come from memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from hqtvae_fast.hardware import DEVICES, Device
from hqtvae_fast.ops.kernels import conv_bytes, upsample_conv
from hqtvae_fast.ops.kernels.conv_bytes.triton import Gathered
from hqtvae_fast.ops.kernels.skinny_linear import triton as skinny
from hqtvae_fast.tune.launches import Call

GAP = 1.1e-6
"""Seconds between two kernels of a captured graph that wait for each other."""
SMALL, LARGE = 1.8e-6, 2.5e-6
"""Seconds to start, wait once for the L2 cache (or, large, for memory), and end."""
STREAMED, LIBRARY, CACHED, KEYS, MAPS = 0.85, 0.7, 0.67, 0.75, 0.8
"""Shares of a bandwidth: of memory's, weights by our skinny kernel and by a library; of the L2 cache's,
activations; of memory's, keys and values, and maps."""
PRODUCTS, CONVOLUTIONS = 0.78, 0.6
"""Shares of the arithmetic peak that a full wave of tiles reaches."""
TILE, LEAST_DEPTH = 128, 512
"""Rows and columns of a library's tile; the shortest part that it splits a product's depth into."""
L2_BANDWIDTH = 41.7e9
"""Bytes/s that the L2 cache gives a multiprocessor."""
_TILED = {"conv_bytes": conv_bytes.BACKENDS, "upsample_conv": upsample_conv.BACKENDS}
NORMALISED, WAITED = 0.18e-6, 0.14e-6
"""Seconds that a program takes to normalise 64 rows of 64 inputs (308 instructions a warp, as counted in the machine
code), and to have them multiplied, for which it waits."""
IN_8_BITS = 128
"""FLOPs for each byte from the L2 cache in the tile of 8-bit convolutions."""
GATHERS = ("embed_codes", "code_features", "embedding", "index", "index_select", "gather")
DRAW = 6e-6
"""Seconds of a row of the draw; a multiprocessor takes one at a time."""


@dataclass(frozen=True)
class Predicted:
    """Seconds of a call, without the gap before it; ``bound``: what they are."""

    seconds: float
    bound: str


def predict(call: Call, device: Device) -> Predicted:
    """Of one call on ``device``, a GPU."""
    return _KINDS.get(call.name, _small)(call, device)


def best_variant(call: Call, device: Device) -> tuple[str, float] | None:
    """Of the call's tiles the one with the shortest prediction, and its seconds; None where none is shorter than the
    call's own, or nothing here tells tiles apart."""
    most = upsample_conv.triton.HOPPER if _is_hopper(device) else (8, 0)
    tiles = [each for each in _TILED.get(call.name, ()) if each.tile is not None and each.tile.capability <= most]
    told = [(each.name, predict(with_backend(call, each.name), device).seconds) for each in tiles]
    best = min(told, key=lambda each: each[1], default=None)
    return best if best is not None and best[1] < predict(call, device).seconds else None


def with_backend(call: Call, backend: str) -> Call:
    """The same, computed by another."""
    return replace(call, inputs=(*call.inputs[:-1], backend))


def _tile(call: Call, default: Any) -> Any:
    """Of the backend that the call was given last."""
    return next((each.tile for each in _TILED[call.name] if each.name == call.inputs[-1] and each.tile), default)


def _is_hopper(device: Device) -> bool:
    return device.shared_memory >= DEVICES["H100"].shared_memory


def floor(call: Call, device: Device) -> float:
    """Seconds that the call's tensors take to cross memory once; of keys and values, the mean over all steps."""
    return _bytes(call) / device.bandwidth


def _bytes(call: Call) -> int:
    if call.name == "decode_attention":
        return _cached(call)
    tensors = [x for x in tree_leaves((call.inputs, call.output)) if isinstance(x, Tensor)]
    if call.name == "skinny_linear":
        tensors = [*tensors[:2], tensors[-1]]  # its workspace and moments stay in the cache
    elif call.name in GATHERS:
        tensors = [call.output, call.output]  # of the tables, the rows that are read
    elif call.name == "upsample_conv":
        tensors = [*tensors[:2], tensors[-1]]  # folded weights or plain ones
    return sum(x.nbytes for x in tensors)


def _cached(call: Call) -> int:
    kept = (*call.inputs[2:4], call.inputs[6])  # keys, values and, in 8 bits, their scales
    return sum(part.nbytes for part in kept if part is not None) // 2


def _l2(device: Device) -> float:
    return L2_BANDWIDTH * device.multiprocessors


def _small(call: Call, device: Device) -> Predicted:
    return Predicted(SMALL + _bytes(call) / (CACHED * _l2(device)), "start and end")


def _skinny(call: Call, device: Device) -> Predicted:
    x, weight = call.inputs[:2]
    (N, K), M = weight.shape, x.numel() // x.shape[-1]
    read = weight.nbytes / (STREAMED * device.bandwidth)
    if M <= skinny.MOST_ROWS:
        return Predicted(LARGE + read, "weights")
    tile = skinny.tile_for(M)
    tiles, parts = math.ceil(N / tile.out), skinny.parts(N, K, x.dtype, tile, device.multiprocessors)
    sums = 0 if parts == 1 else 4 * parts * tile.out * M
    times = {"weights": read, "L2 cache": (weight.nbytes + tiles * (M * K * x.itemsize + 2 * sums)) / _l2(device)}
    if call.inputs[7] is not None:
        together, chunks = math.ceil(tiles * parts / device.multiprocessors), K * x.itemsize // tile.depth // parts
        times["norm"] = chunks * (together * math.ceil(M / 64) * NORMALISED + WAITED)
    bound = max(times, key=lambda name: times[name])
    return Predicted(LARGE + times[bound] + sums / L2_BANDWIDTH, bound)


def _linear(call: Call, device: Device) -> Predicted:
    x, weight = call.inputs[:2]
    (N, K), M = weight.shape, x.numel() // x.shape[-1]
    rows = TILE // 2 if M <= TILE // 2 else TILE
    tiles = math.ceil(M / rows) * math.ceil(N / TILE)
    parts = max(1, min(device.multiprocessors // tiles, K // LEAST_DEPTH))
    multiplied = _waves(tiles * parts, 2 * rows * TILE * K / parts, PRODUCTS, device)
    read = weight.nbytes / (LIBRARY * device.bandwidth)
    return Predicted(LARGE + max(multiplied, read), "tiles" if multiplied > read else "weights")


def _waves(tiles: int, flops: float, share: float, device: Device) -> float:
    """Of so many tiles of so many FLOPs each."""
    return math.ceil(tiles / device.multiprocessors) * flops * device.multiprocessors / (share * device.flops)


def _attention(call: Call, device: Device) -> Predicted:
    return Predicted(LARGE + _cached(call) / (KEYS * device.bandwidth), "keys and values")


def _draw(call: Call, device: Device) -> Predicted:
    return Predicted(math.ceil(call.inputs[1].numel() / device.multiprocessors) * DRAW, "rounds of the draw")


def _convolution(call: Call, device: Device) -> Predicted:
    weight, y = call.inputs[1], call.output
    tiles = math.ceil(y.numel() // weight.shape[0] / TILE) * math.ceil(weight.shape[0] / TILE)
    flops = 2 * TILE * min(TILE, weight.shape[0]) * math.prod(weight.shape[1:])
    multiplied, read = _waves(tiles, flops, CONVOLUTIONS, device), _bytes(call) / (MAPS * device.bandwidth)
    return Predicted(LARGE + max(multiplied, read), "tiles" if multiplied > read else "maps")


def _upsampling(call: Call, device: Device) -> Predicted:
    """A step of DEPTH channels takes rows + columns numbers of 2 bytes from the L2 cache for 2 rows x columns FLOPs."""
    x, N = call.inputs[0], call.output.shape[1]
    pixels = x.numel() // x.shape[1]
    picked = upsample_conv.triton.pick_tile(pixels, x.shape[1], N, device.multiprocessors, _is_hopper(device))
    tile = _tile(call, picked)
    depth = math.prod(call.inputs[1].shape[1:])
    tiles = 4 * math.ceil(pixels / tile.rows) * math.ceil(N / tile.columns)
    read = tiles * depth * (tile.rows + tile.columns) * x.element_size() / _l2(device)
    multiplied = _waves(tiles, 2 * tile.rows * tile.columns * depth, CONVOLUTIONS, device)
    return Predicted(LARGE + max(read, multiplied), "L2 cache" if read > multiplied else "tiles")


def _in_8_bits(call: Call, device: Device) -> Predicted:
    """A tensor core does twice as many products of 8 bits as of 16."""
    flops = 2 * call.output.numel() * math.prod(call.inputs[1].shape[1:])
    multiplied, fetched = flops / (2 * CONVOLUTIONS * device.flops), flops / (IN_8_BITS * _l2(device))
    read = _bytes(call) / (MAPS * device.bandwidth)
    longest = max(multiplied, fetched, read)
    bound = {multiplied: "tiles", fetched: "L2 cache", read: "maps"}[longest]
    return Predicted(LARGE + longest, bound)


def _norm(call: Call, device: Device) -> Predicted:
    """Its map is read for the statistics and again to be normalised; with a residual the sum is written between."""
    x, residual = call.inputs[:2]
    moved = (2 if residual is None else 4) * x.nbytes + call.output[0].nbytes
    return Predicted(2 * LARGE + moved / (MAPS * device.bandwidth), "maps")


def _bytes_out(call: Call, device: Device) -> Predicted:
    """A tile of whole rows reads its pixels for nine taps, one that gathers products once and its edge's besides."""
    x, N = call.inputs[0], call.output.shape[-1]
    (B, C, H, W), maps = x.shape, _bytes(call) / (MAPS * device.bandwidth)
    tile = _tile(call, conv_bytes.triton.pick_tile(C, N))
    gathered = isinstance(tile, Gathered)
    pixels = tile.programs(B, H, W) * tile.rows if gathered else 9 * B * H * W
    read = pixels * C * x.element_size() / _l2(device)
    return Predicted(LARGE + max(read, maps), "L2 cache" if read > maps else "maps")


def _maps(call: Call, device: Device) -> Predicted:
    return Predicted(SMALL + _bytes(call) / (MAPS * device.bandwidth), "maps")


_KINDS: dict[str, Callable[[Call, Device], Predicted]] = {
    "skinny_linear": _skinny,
    "linear": _linear,
    "decode_attention": _attention,
    "sample_logits": _draw,
    "draw_from_head": _linear,
    "conv2d": _convolution,
    "upsample_conv": _upsampling,
    "quantized_conv": _in_8_bits,
    "round_map": _maps,
    "group_norm_silu": _norm,
    "conv_bytes": _bytes_out,
    "code_features": _maps,
    "scaled_dot_product_attention": _maps,
    "add_maps": _maps,
    "add": _maps,
    "add_": _maps,
}


def shape_of(call: Call) -> str:
    """The first two tensors' shapes, without what is 1."""
    tensors: list[Any] = [x for x in tree_leaves(call.inputs) if isinstance(x, Tensor) and x.ndim > 0][:2]
    return " ".join("x".join(str(size) for size in x.shape if size > 1) or "1" for x in tensors)
