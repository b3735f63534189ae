"""GroupNorm with SiLU on channels-last maps: Triton kernels. Import only where Triton is wanted.

**Cost.** A map of 256x256x128 in bf16 is 16.8 MB an image: two passes read it twice and write it once, 50 MB or 15 us
of an H100's 3.35 TB/s, for 12 fp32 operations and two exponential-unit operations a value, which is a third of what the
multiprocessors do in that time. So traffic is the floor, and everything else is folded into these passes: the addition
of the residual (`statistics_kernel` writes the sum that it reads for its statistics), the activation, and the bias of
the convolution before (`shift`: added in registers where x is read; where there is no sum to write, not even x + shift
is ever in memory, and the means that `apply_kernel` takes off are less by it). Before an 8-bit convolution the result
is rounded in registers too (`ROUND`): a byte a value is written where it was two, a sixth of the traffic less, and the
convolution reads half as much.

**Schedule.** In channels-last memory a group's 4 to 16 channels lie side by side, a pixel apart from the next ones: a
program that took one group would use 8 to 32 bytes of each 32-byte sector it reads. A program takes all C channels of a
run of rows instead, ROWS at a time (a tile of 4096 values: 16 a thread, two 16-byte loads in bf16), so that every read
is whole lines, in order. `statistics_kernel` leaves each run's mean and summed squares a group; `apply_kernel` joins
the image's runs itself (at most 32 KB, from the second-level cache) rather than in a third launch. It takes the
images in reverse: the last ones read are those that the second-level cache still holds.

**Precision.** Everything is fp32 from the load on. Each of a tile's positions keeps a running mean and sum of squared
differences over the run (Welford, 1962): no reduction across threads inside the loop, and no cancellation, whatever the
offset; positions, then runs, are joined as Chan et al. (1979) do. Means are joined by their differences from a first
estimate. Nothing is added by atomics, and runs do not depend on the batch: an image gets the same result in any.

The backward pass needs sums over each channel of g = dy * silu'(n) and of g * unit, unit = (x - mean) / deviation, from
`sums_kernel`; then dx = (g w - mean_group(g w) - unit * mean_group(g w unit)) / deviation (`gradient_kernel`).
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from hqtvae_fast.ops.kernels.round_map.triton_kernels import rounded


@triton.jit
def statistics_kernel(
    x,  # [B, HW, C] fp32, bf16 or fp16
    residual,  # as x; read where ADD
    total,  # as x; written where ADD
    shift,  # [C]; read where SHIFT
    runs,  # [B, splits, 2, GROUPS] fp32: mean, summed squared differences
    HW,
    run,  # rows of each run but the last
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    ADD: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """One run's statistics, with SHIFT of x + shift; with ADD of x + residual (+ shift), which is written."""
    SIZE: tl.constexpr = C // GROUPS
    i_run, i_image = tl.program_id(0), tl.program_id(1)
    o_rows, o_channels = tl.arange(0, ROWS), tl.arange(0, C)
    image = i_image.to(tl.int64) * HW * C
    first, last = i_run * run, min((i_run + 1) * run, HW)
    b_count = tl.zeros((ROWS,), dtype=tl.float32)
    b_mean = tl.zeros((ROWS, C), dtype=tl.float32)
    b_squares = tl.zeros((ROWS, C), dtype=tl.float32)
    if SHIFT:
        b_shift = tl.load(shift + o_channels).to(tl.float32)[None, :]
    for start in range(first, last, ROWS):
        m_rows = start + o_rows < last
        o_tile = (start + o_rows)[:, None] * C + o_channels[None, :]
        b_x = tl.load(x + image + o_tile, mask=m_rows[:, None], other=0.0).to(tl.float32)
        if SHIFT:
            b_x += b_shift
        if ADD:
            b_x += tl.load(residual + image + o_tile, mask=m_rows[:, None], other=0.0).to(tl.float32)
            b_total = b_x.to(total.dtype.element_ty)
            tl.store(total + image + o_tile, b_total, mask=m_rows[:, None])
            b_x = b_total.to(tl.float32)  # the statistics are of what is normalised
        b_count += m_rows.to(tl.float32)
        b_share = tl.where(m_rows, 1.0 / tl.maximum(b_count, 1.0), 0.0)
        b_off = b_x - b_mean
        b_mean += b_off * b_share[:, None]
        b_squares += tl.where(m_rows[:, None], b_off * (b_x - b_mean), 0.0)
    b_counts = tl.reshape(tl.broadcast_to(b_count[:, None], (ROWS, C)), (ROWS, GROUPS, SIZE))
    b_means = tl.reshape(b_mean, (ROWS, GROUPS, SIZE))
    size = ((last - first) * SIZE).to(tl.float32)
    b_first = _over_tile(b_counts * b_means) / size
    b_away = b_means - b_first[None, :, None]
    b_nearer = _over_tile(b_counts * b_away) / size
    b_away -= b_nearer[None, :, None]
    b_sum = _over_tile(tl.reshape(b_squares, (ROWS, GROUPS, SIZE)) + b_counts * b_away * b_away)
    o_groups = tl.arange(0, GROUPS)
    runs += (i_image * tl.num_programs(0) + i_run) * 2 * GROUPS
    tl.store(runs + o_groups, b_first + b_nearer)
    tl.store(runs + GROUPS + o_groups, b_sum)


@triton.jit
def _over_tile(b_values):
    """[ROWS, GROUPS, SIZE] summed to [GROUPS]."""
    return tl.sum(tl.sum(b_values, axis=2), axis=0)


@triton.jit
def apply_kernel(
    x,  # [B, HW, C] fp32, bf16 or fp16; the sum, where there was a residual
    shift,  # [C]; read where SHIFT: what x lacks
    runs,  # [B, splits, 2, GROUPS] fp32
    weight,  # [C]
    bias,  # [C]
    y,  # as x, or int8 or fp8 where ROUND
    mean,  # [B, GROUPS] fp32
    rstd,  # likewise: 1 / deviation
    HW,
    run,
    eps,
    inverse,  # 1 / scale of the 8-bit numbers
    zero,  # of them
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    SILU: tl.constexpr,
    SHIFT: tl.constexpr,
    ROUND: tl.constexpr,
):
    """One run normalised and activated; an image's first run also writes mean and rstd."""
    SIZE: tl.constexpr = C // GROUPS
    i_run, i_image = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1)
    o_runs, o_groups = tl.arange(0, SPLITS), tl.arange(0, GROUPS)
    m_runs = o_runs < tl.num_programs(0)
    o_each = (i_image * tl.num_programs(0) + o_runs)[:, None] * 2 * GROUPS + o_groups[None, :]
    b_means = tl.load(runs + o_each, mask=m_runs[:, None], other=0.0)
    b_squares = tl.load(runs + GROUPS + o_each, mask=m_runs[:, None], other=0.0)
    b_rows = tl.where(m_runs, tl.minimum(tl.maximum(HW - o_runs * run, 0), run), 0).to(tl.float32)
    pixels = HW * 1.0  # a map of one pixel comes as a constant, which has no .to
    b_first = tl.sum(b_means * b_rows[:, None], axis=0) / pixels
    b_away = b_means - b_first[None, :]
    b_shift = tl.sum(b_away * b_rows[:, None], axis=0) / pixels
    b_away -= b_shift[None, :]
    b_sum = tl.sum(b_squares + (b_rows * SIZE)[:, None] * b_away * b_away, axis=0)
    b_mean = b_first + b_shift
    b_rstd = 1.0 / tl.sqrt_rn(b_sum / (pixels * SIZE) + eps)
    if i_run == 0:
        tl.store(mean + i_image * GROUPS + o_groups, b_mean)
        tl.store(rstd + i_image * GROUPS + o_groups, b_rstd)
    o_channels = tl.arange(0, C)
    b_middle = _each_channel(b_mean, GROUPS, SIZE)
    b_scale = _each_channel(b_rstd, GROUPS, SIZE) * tl.load(weight + o_channels).to(tl.float32)
    b_bias = tl.load(bias + o_channels).to(tl.float32)
    if SHIFT:
        b_middle -= tl.load(shift + o_channels).to(tl.float32)
    image = i_image.to(tl.int64) * HW * C
    o_rows = tl.arange(0, ROWS)
    last = min((i_run + 1) * run, HW)
    for start in range(i_run * run, last, ROWS):
        m_rows = start + o_rows < last
        o_tile = (start + o_rows)[:, None] * C + o_channels[None, :]
        b_x = tl.load(x + image + o_tile, mask=m_rows[:, None], other=0.0).to(tl.float32)
        b_n = (b_x - b_middle[None, :]) * b_scale[None, :] + b_bias[None, :]
        if SILU:
            b_n = b_n * tl.sigmoid(b_n)
        if ROUND:
            b_y = rounded(b_n.to(x.dtype.element_ty).to(tl.float32), inverse, zero, y.dtype.element_ty)
        else:
            b_y = b_n.to(y.dtype.element_ty)
        tl.store(y + image + o_tile, b_y, mask=m_rows[:, None])


@triton.jit
def _each_channel(b_groups, GROUPS: tl.constexpr, SIZE: tl.constexpr):
    """[GROUPS] to [C]: a group's value for each of its channels."""
    return tl.reshape(tl.broadcast_to(b_groups[:, None], (GROUPS, SIZE)), (GROUPS * SIZE,))


@triton.jit
def _before_activation(b_dy, b_n, SILU: tl.constexpr):
    """The gradient of n from that of silu(n), or of n itself."""
    if SILU:
        b_gate = tl.sigmoid(b_n)
        b_dy = b_dy * b_gate * (1.0 + b_n * (1.0 - b_gate))
    return b_dy


@triton.jit
def sums_kernel(
    dy,  # [B, HW, C] as x
    x,  # [B, HW, C] fp32, bf16 or fp16
    weight,  # [C]
    bias,  # [C]
    mean,  # [B, GROUPS] fp32
    rstd,  # likewise
    sums,  # [B, splits, 2, C] fp32: of g, and of g * unit
    HW,
    run,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    SILU: tl.constexpr,
):
    """One run's sums."""
    SIZE: tl.constexpr = C // GROUPS
    i_run, i_image = tl.program_id(0), tl.program_id(1)
    o_rows, o_channels = tl.arange(0, ROWS), tl.arange(0, C)
    o_groups = i_image * GROUPS + o_channels // SIZE
    b_mean, b_rstd = tl.load(mean + o_groups)[None, :], tl.load(rstd + o_groups)[None, :]
    b_weight = tl.load(weight + o_channels).to(tl.float32)[None, :]
    b_bias = tl.load(bias + o_channels).to(tl.float32)[None, :]
    b_sum = tl.zeros((ROWS, C), dtype=tl.float32)
    b_dot = tl.zeros((ROWS, C), dtype=tl.float32)
    image = i_image.to(tl.int64) * HW * C
    last = min((i_run + 1) * run, HW)
    for start in range(i_run * run, last, ROWS):
        m_rows = (start + o_rows < last)[:, None]
        o_tile = (start + o_rows)[:, None] * C + o_channels[None, :]
        b_unit = (tl.load(x + image + o_tile, mask=m_rows, other=0.0).to(tl.float32) - b_mean) * b_rstd
        b_dy = tl.load(dy + image + o_tile, mask=m_rows, other=0.0).to(tl.float32)
        b_g = _before_activation(b_dy, b_unit * b_weight + b_bias, SILU)
        b_sum += b_g
        b_dot += b_g * b_unit
    sums += (i_image * tl.num_programs(0) + i_run).to(tl.int64) * 2 * C + o_channels
    tl.store(sums, tl.sum(b_sum, axis=0))
    tl.store(sums + C, tl.sum(b_dot, axis=0))


@triton.jit
def gradient_kernel(
    dy,  # [B, HW, C] as x
    x,  # [B, HW, C] fp32, bf16 or fp16
    weight,  # [C]
    bias,  # [C]
    mean,  # [B, GROUPS] fp32
    rstd,  # likewise
    sums,  # [B, 2, C] fp32, over all runs
    dx,  # as x
    HW,
    run,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    SILU: tl.constexpr,
):
    """One run of dx."""
    SIZE: tl.constexpr = C // GROUPS
    i_run, i_image = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1)
    o_rows, o_channels = tl.arange(0, ROWS), tl.arange(0, C)
    o_groups = i_image * GROUPS + o_channels // SIZE
    b_mean, b_rstd = tl.load(mean + o_groups)[None, :], tl.load(rstd + o_groups)[None, :]
    b_weight = tl.load(weight + o_channels).to(tl.float32)
    b_bias = tl.load(bias + o_channels).to(tl.float32)[None, :]
    sums += i_image * 2 * C + o_channels
    size = HW * SIZE * 1.0
    b_sum = _group_sum(tl.load(sums) * b_weight, GROUPS, SIZE)[None, :] / size
    b_dot = _group_sum(tl.load(sums + C) * b_weight, GROUPS, SIZE)[None, :] / size
    image = i_image.to(tl.int64) * HW * C
    last = min((i_run + 1) * run, HW)
    for start in range(i_run * run, last, ROWS):
        m_rows = (start + o_rows < last)[:, None]
        o_tile = (start + o_rows)[:, None] * C + o_channels[None, :]
        b_unit = (tl.load(x + image + o_tile, mask=m_rows, other=0.0).to(tl.float32) - b_mean) * b_rstd
        b_dy = tl.load(dy + image + o_tile, mask=m_rows, other=0.0).to(tl.float32)
        b_g = _before_activation(b_dy, b_unit * b_weight[None, :] + b_bias, SILU)
        b_dx = (b_g * b_weight[None, :] - b_sum - b_unit * b_dot) * b_rstd
        tl.store(dx + image + o_tile, b_dx.to(dx.dtype.element_ty), mask=m_rows)


@triton.jit
def _group_sum(b_channels, GROUPS: tl.constexpr, SIZE: tl.constexpr):
    """[C] summed over each group, as its every channel's value: [C]."""
    return _each_channel(tl.sum(tl.reshape(b_channels, (GROUPS, SIZE)), axis=1), GROUPS, SIZE)
