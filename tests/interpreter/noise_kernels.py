"""Kernels that show the draw's noise. They stand in a module since Triton's interpreter sees no closures."""

import triton
import triton.language as tl

from hqtvae_fast.ops.sample_logits import kernels


@triton.jit
def noise_kernel(seed, step, position, words, noises, N: tl.constexpr):
    drawn = kernels.random_words(tl.load(seed), tl.load(step), tl.load(position), N)
    tl.store(words + tl.arange(0, N), drawn.to(tl.int64))
    tl.store(noises + tl.arange(0, N), kernels.gumbel(drawn))


@triton.jit
def gumbel_kernel(words, noises, roughs, N: tl.constexpr):
    o_n = tl.arange(0, N)
    b_words = tl.load(words + o_n).to(tl.uint32)
    tl.store(noises + o_n, kernels.gumbel(b_words))
    tl.store(roughs + o_n, kernels.rough_gumbel(b_words, True))
