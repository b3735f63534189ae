"""Offsets at the largest sizes: the first and last programs of each kernel, where no offset may lie beyond its tensor.

Sizes are batches of 512 pictures of 256x256 and beyond, so that every tensor that can grow passes 2^31 values. Memory
that nobody writes is not there: a tensor of 137 GB costs what the programs that are run touch of it. What a kernel
computes is not looked at (small cases do that), only where it reads and writes.
"""

from __future__ import annotations

import pytest
import torch
from interpreted import file_outcomes, main, needs_triton

BF16, FP32, INT64 = torch.bfloat16, torch.float32, torch.int64


class NotRun:
    """In a kernel's place."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


def untouched(*shape, dtype):
    import watch  # it needs Triton

    return watch.untouched(*shape, dtype=dtype)


def untouched_map(*shape, dtype):
    import watch

    return watch.untouched_map(*shape, dtype=dtype)


def checks():
    """Also lets launchers allocate memory that is not there."""
    import watch

    watch.last_programs()
    torch.empty = lambda *shape, dtype, device=None, memory_format=None: (
        untouched_map(*shape[0], dtype=dtype)
        if memory_format
        else untouched(*(shape[0] if isinstance(shape[0], (tuple, torch.Size)) else shape), dtype=dtype)
    )
    torch.empty_like = lambda x, dtype=None: untouched_map(*x.shape, dtype=x.dtype if dtype is None else dtype)
    return {name: globals()[name] for name in CHECKS}


def zeros(*shape, dtype=FP32):
    return torch.zeros(shape, dtype=dtype)


def group_norm():
    from hqtvae_fast.ops.kernels.group_norm_silu import triton

    def forward(x):
        w = zeros(x.shape[1], dtype=x.dtype)
        assert triton.why_not(x, x, w, w, 32, 1e-6, True, w) is None
        triton.forward(x, x, w, w, 32, 1e-6, True, w)
        return w

    forward(untouched_map(65535, 512, 16, 16, dtype=BF16))
    w, statistics = forward(x := untouched_map(512, 128, 256, 256, dtype=BF16)), zeros(512, 32)
    triton.backward(x, x, w, w, statistics, statistics, True)


def upsample_conv():
    from hqtvae_fast.ops.kernels.upsample_conv import triton

    for B, C, N, H in ((512, 256, 256, 128), (2040, 128, 128, 256)):
        x, folded = untouched_map(B, C, H, H, dtype=BF16), untouched_map(4 * N, C, 2, 2, dtype=BF16)
        bias = zeros(N, dtype=BF16)
        assert triton.why_not(x, folded, bias) is None
        triton.upsample_conv(x, folded, bias)


def conv_bytes():
    from hqtvae_fast.ops.kernels.conv_bytes import triton

    for B in (512, 8191):
        x, weight = untouched_map(B, 128, 256, 256, dtype=BF16), untouched_map(3, 128, 3, 3, dtype=BF16)
        bias = zeros(3, dtype=BF16)
        assert triton.why_not(x, weight, bias) is None
        triton.conv_bytes(x, weight, bias)

    x, weight, bias = untouched_map(512, 128, 256, 256, dtype=BF16), untouched_map(3, 128, 3, 3, dtype=BF16), zeros(3)
    for tile in triton.GATHERED:
        triton.conv_bytes(x, weight, bias.bfloat16(), tile=tile)


def add_maps():
    from hqtvae_fast.ops.kernels.add_maps import triton

    for B, C, H in ((512, 128, 256), (30_000, 512, 16)):
        x, shift = untouched_map(B, C, H, H, dtype=BF16), zeros(C, dtype=BF16)
        assert triton.why_not(x, x, shift) is None
        triton.add_maps(x, x, shift)


def quantized_conv():
    from hqtvae_fast.ops.kernels.quantized_conv import triton

    for C, H, taps, phases in ((128, 256, 3, 1), (256, 128, 2, 4)):
        x = untouched_map(512, C, H, H, dtype=torch.int8)
        weight = untouched_map(phases * C, C, taps, taps, dtype=torch.int8)
        triton.quantized_conv(x, weight, zeros(C // 32), zeros(phases * C), zeros(C), None, BF16)


def code_features():
    from hqtvae_fast.ops.kernels.code_features import triton

    for B, K in ((40000, 8192), (2, 2**20)):  # many pictures; a table of more than 2^31 values
        codes = [torch.full((B, side, side), K - 1) for side in (8, 16)]
        tables = [untouched(K, pixels, 512, dtype=BF16) for pixels in (4, 1)]
        triton.code_features(codes, tables, zeros(4, 512, dtype=BF16))


def sampling():
    from hqtvae_fast.ops.kernels.draw_from_head import triton as from_head
    from hqtvae_fast.ops.kernels.sample_logits import triton as from_logits

    def drawn(B):
        number, invalid, one = torch.tensor(3), torch.tensor(False), torch.ones(())
        return zeros(B, 4, dtype=INT64), invalid, zeros(B, dtype=INT64), number, number, one

    logits, top_k, top_p = untouched(700_000, 4, 1024, dtype=BF16), torch.tensor(1024), torch.ones(())
    from_logits.sample_logits(logits, *drawn(len(logits)), top_k, top_p)
    for B, K in ((600_000, 300), (2, 1_100_000)):
        from_head.draw_from_head(untouched(B, 4, 2048, dtype=BF16), untouched(K, 2048, dtype=BF16), *drawn(B))


def step():
    from hqtvae_fast.ops.kernels.add_layer_norm import triton as layer_norm
    from hqtvae_fast.ops.kernels.bias_gelu import triton as gelu
    from hqtvae_fast.ops.kernels.decode_attention import triton as attention
    from hqtvae_fast.ops.kernels.embed_codes import triton as embedding

    x, vector = untouched(1_500_000, 1536, dtype=BF16), zeros(1536, dtype=BF16)
    layer_norm.add_layer_norm(x, x, vector, vector, vector, 1e-5)
    gelu.bias_gelu(untouched(400_000, 6144, dtype=BF16), zeros(6144, dtype=BF16), "exact")
    qkv, cache = untouched(24_000, 1, 3, 24, 64, dtype=BF16), untouched(24_000, 24, 128, 64, dtype=BF16)
    bias = zeros(3 * 1536, dtype=BF16)
    attention.decode_attention(qkv, bias, cache, untouched(*cache.shape, dtype=BF16), 0, torch.tensor(127))
    eight = (untouched(*cache.shape, dtype=torch.int8) for _ in range(2))
    scales = untouched(2, *cache.shape[:3], dtype=FP32)
    attention.decode_attention_int8(qkv, bias, *eight, 0, torch.tensor(127), scales)
    for B, K, R in ((400_000, 8192, 64), (4, 2**21, 2**21)):
        codes, tables = torch.full((B, 5), K - 1), [untouched(K, 1536, dtype=BF16)] * 2
        sources, rows = torch.arange(5, dtype=torch.int32)[None].repeat(4, 1), untouched(4 * R, 1536, dtype=BF16)
        embedding.embed_codes(codes, tables, sources, rows, torch.tensor(R - 1), "mean")


def skinny_linear():
    from hqtvae_fast.ops.kernels.skinny_linear import triton

    for N, K in ((triton.DEFAULT.out * triton.MOST_TILES, 16640), (32 * 263, 256), (4608, 1536)):
        work = triton.Workspace.on(torch.device("cpu"))
        x, weight = untouched(16, K, dtype=BF16), untouched(N, K, dtype=BF16)
        nothing = (None, None, None, "none", False, None, None, 0.0, None, None)
        triton.skinny_linear(x, weight, *nothing, work.partials, work.counters)
    for N in (64 * triton.MOST_TILES, 4608):
        x, weight, moments = untouched(128, 16640, dtype=BF16), untouched(N, 16640, dtype=BF16), zeros(2, N // 64, 128)
        nothing = (None, None, None, "none", False, None, None, 0.0, None, moments)
        triton.skinny_linear(x, weight, *nothing, work.partials, work.counters)


def ema_update():
    from hqtvae_fast.ops.kernels.ema_update import triton, triton_kernels

    N, C, K = 2**22, 1024, 2**21 + 100
    z, codes = untouched(N, C, dtype=FP32), torch.full((N,), K - 1)
    triton_kernels.add_rows[(-(-N // 32), C // 64)](
        z, codes, zeros(K), untouched(K, C, dtype=FP32), N, K, C, C, ROWS=32, WIDTH=64
    )
    starts = zeros(101, dtype=INT64)
    starts[100] = 40  # the last code has the last rows
    order = torch.arange(N - 40, N)
    triton_kernels.add_segments[(100, 8)](z, order, starts, zeros(100), zeros(100, C), C, C, ROWS=16, WIDTH=128)
    state = [untouched(K, C, dtype=FP32) for _ in range(3)]
    triton.ema_update(state[0], zeros(K), state[1], zeros(K), state[2], 0.99, 1e-5)


def soft_labels():
    from hqtvae_fast.ops.kernels.soft_label_cross_entropy import triton

    N, K = 524_288, 8192
    logits, z, codebook = (untouched(*shape, dtype=BF16) for shape in ((N, K), (N, 32), (K, 32)))
    triton._partials(logits, z, codebook, zeros(K), 1.0, triton.pick_tile(N))
    triton.backward(torch.ones(()), logits, z, codebook, torch.ones(4, N), 1.0)


def nearest_code():
    from hqtvae_fast.ops.kernels.nearest_code import triton_kernels
    from hqtvae_fast.ops.kernels.nearest_code.triton import Book, Level, _launch, rows

    def book(K, pixels, d):
        values = torch.zeros(K, pixels * d)
        values[:, 0] = torch.arange(K)  # one code is nearest to zeros
        return Book.of(values.view(K, pixels, d), split=True)

    def search(level, codes):
        found = untouched(level.num_rows, dtype=INT64)
        _launch(level, codes, found, zeros(level.num_rows, dtype=torch.int8))
        return found

    search(rows(untouched(2**17, 32768, dtype=FP32)[:, :32]), book(100, 1, 32))
    z = untouched(512, 4224, 32, 32, dtype=FP32)[:, :8]
    found, top = search(Level(z, 2), book(100, 4, 8)), torch.zeros(100, 4, 8)
    search(Level(z, 1, ((found.view(512, 16, 16), top),)), book(100, 1, 8))
    K = 2**21 + 1000
    parts = [untouched(K, 1024, dtype=dtype) for dtype in (FP32, BF16, BF16)]
    longest = torch.ones(1, dtype=torch.float64)
    triton_kernels.settle_rows = NotRun()  # it would have to read what all the other programs find
    search(rows(zeros(40, 1024)), Book(*parts, torch.arange(K).float(), longest, True))


CHECKS = (
    "group_norm",
    "upsample_conv",
    "conv_bytes",
    "add_maps",
    "quantized_conv",
    "code_features",
    "sampling",
    "step",
    "skinny_linear",
)
CHECKS += ("ema_update", "soft_labels", "nearest_code")


@needs_triton
@pytest.mark.parametrize("check", CHECKS)
def test_no_offset_is_beyond_its_tensor(check):
    assert file_outcomes(__file__, CHECKS)[check] == ""


if __name__ == "__main__":
    main(checks())
