"""The kernel of skinny products, interpreted on the CPU, at any sizes of 17 to 128 rows: against the definition, and
what its parts leave behind them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import file_outcomes, main, needs_triton

from hqtvae_fast.ops.kernels.skinny_linear import reference, spec, triton
from hqtvae_fast.ops.spec import Case

CPU = torch.device("cpu")


def _case(M, N, K, dtype=torch.float32, **how):
    sizes = dict.fromkeys(("gelu", "extra", "quantized", "norm", "moments"), 0)
    return Case("", {"M": M, "N": N, "K": K, **sizes, **how}, dtype)


def _run(case, **how):
    inputs = spec.make_inputs(case, CPU, 0)
    got = spec.run(*inputs, backend="triton", **how)
    spec.check(got, spec.define(*spec.make_inputs(case, CPU, 0)), spec.make_inputs(case, CPU, 0))
    return got


def any_sizes():
    @settings(max_examples=12, deadline=None, database=None, derandomize=True)
    @given(
        st.integers(17, 128),
        st.integers(1, 140),
        st.integers(1, 150),
        st.sampled_from([torch.float32, torch.bfloat16]),
        st.integers(0, 2),
        st.integers(0, 3),
        st.booleans(),
    )
    def holds(M, N, K, dtype, gelu, extra, normed):
        _run(_case(M, N, K, dtype, gelu=gelu, extra=extra, norm=int(normed), moments=1))

    holds()


def parts_meet_in_memory_full_of_nan():
    """Eight parts of two tiles: what was there before does not count, and what is left serves the next product."""
    workspace = triton.Workspace.on(CPU)
    workspace.partials.fill_(float("nan"))
    case = _case(50, 128, 256, extra=2, moments=1)
    assert triton.parts(128, 256, torch.float32, triton.STREAMED, 132) == 8
    results = [_run(case, workspace=workspace) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert not workspace.counters.any()
    sums = workspace.partials[: 8 * 2 * 64 * 64].view(8, 2, 64, 64)  # parts, tiles, rows, outputs
    assert sums[:, :, :50].isfinite().all()
    assert sums[:, :, 50:].isnan().all()  # rows that are only padding are not written
    assert workspace.partials[8 * 2 * 64 * 64 :].isnan().all()


def moments_go_from_one_product_to_the_next():
    """As in a block: a residual's product leaves them, the next one normalises by them."""
    x, weight, residual = torch.randn(20, 96), torch.randn(150, 96), 3 + torch.randn(20, 150)
    moments = torch.full((2, 3, 20), float("nan"))
    y = spec.skinny_linear(x, weight, residual=residual, moments=moments, backend="triton")
    torch.testing.assert_close(moments, reference.moments_of(y), rtol=1e-5, atol=1e-5)
    norm, up = (torch.rand(150), torch.randn(150), 1e-5), torch.randn(70, 150)
    got = spec.skinny_linear(y, up, norm=norm, moments=moments, backend="triton")
    exact = torch.nn.functional.layer_norm(y.double(), (150,), *(each.double() for each in norm[:2]), 1e-5)
    torch.testing.assert_close(got.double(), exact @ up.double().T, rtol=1e-5, atol=1e-4)
    moments[1] *= 4  # and it is by these: half the deviations
    off = spec.skinny_linear(y, up, norm=norm, moments=moments, backend="triton")
    assert (off - got).abs().max() > 1


CHECKS = (any_sizes, parts_meet_in_memory_full_of_nan, moments_go_from_one_product_to_the_next)
NAMES = tuple(check.__name__ for check in CHECKS)


@needs_triton
@pytest.mark.parametrize("check", NAMES)
def test_interpreted_skinny_linear(check):
    assert file_outcomes(__file__, NAMES)[check] == ""


if __name__ == "__main__":
    main({check.__name__: check for check in CHECKS})
