"""Kernels that show the draw's noise. They stand in a module since Triton's interpreter sees no closures."""

import triton
import triton.language as tl

from hqtvae_fast.ops.kernels.draw_from_head.triton_kernels import random_words
from hqtvae_fast.ops.kernels.sample_logits import triton_kernels


@triton.jit
def noise_kernel(seed, step, position, words, noises, N: tl.constexpr):
    drawn = triton_kernels.random_words(tl.load(seed), tl.load(step), tl.load(position), N)
    tl.store(words + tl.arange(0, N), drawn.to(tl.int64))
    tl.store(noises + tl.arange(0, N), triton_kernels.gumbel(drawn))


@triton.jit
def gumbel_kernel(words, noises, roughs, N: tl.constexpr):
    o_n = tl.arange(0, N)
    b_words = tl.load(words + o_n).to(tl.uint32)
    tl.store(noises + o_n, triton_kernels.gumbel(b_words))
    tl.store(roughs + o_n, triton_kernels.rough_gumbel(b_words, True))


@triton.jit
def tile_noise_kernel(seeds, steps, positions, words, noises, first, ROWS: tl.constexpr, CODES: tl.constexpr):
    o_row = tl.arange(0, ROWS)
    o_n = o_row[:, None] * CODES + tl.arange(0, CODES)[None, :]
    coordinates = (tl.load(seeds + o_row), tl.load(steps + o_row), tl.load(positions + o_row))
    drawn = random_words(coordinates[0], coordinates[1], coordinates[2], first, ROWS, CODES)
    tl.store(words + o_n, drawn.to(tl.int64))
    tl.store(noises + o_n, triton_kernels.gumbel(drawn))
