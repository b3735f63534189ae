"""The search is exact: what float64 brute force gives, whatever the values."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops import nearest_code
from hqtvae_fast.ops.kernels.nearest_code import reference, triton
from hqtvae_fast.ops.kernels.nearest_code import torch as in_torch
from hqtvae_fast.ops.kernels.nearest_code.spec import SPEC


def brute_force(z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    distances = (z.double()[:, None] - codebook.double()[None]).square().sum(dim=-1)
    return distances.argmin(dim=1)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(0, 40),
    codes=st.integers(1, 70),
    width=st.integers(1, 40),
    scale=st.sampled_from([1e-42, 1e-38, 1e-20, 1e-3, 1.0, 1e4, 1e15, 1e19, 3e37]),
    offset=st.sampled_from([0.0, 1.0, 1e3, 1e5]),
    duplicated=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 2**20),
)
def test_equal_to_brute_force(rows, codes, width, scale, offset, duplicated, dtype, seed):
    """Offsets make |z|^2 + |e|^2 - 2ze cancel; scales reach below the normal range and up to where squares overflow."""
    generator = torch.Generator().manual_seed(seed)
    codebook = (torch.randn(codes, width, generator=generator) + offset).clamp(-1e6, 1e6) * scale
    if duplicated:
        codebook = codebook[torch.randint(codes, (codes,), generator=generator)]
    z = codebook[torch.randint(codes, (rows,), generator=generator)]
    z = z + 0.1 * scale * torch.randn(rows, width, generator=generator)
    limit = torch.finfo(torch.float32).max / 2
    z, codebook = (values.clamp(-limit, limit).to(dtype) for values in (z, codebook))
    assert torch.equal(nearest_code(z, codebook), brute_force(z, codebook))


def test_half_precision():
    z, codebook = torch.randn(50, 16).half(), torch.randn(33, 16).half()
    assert torch.equal(nearest_code(z, codebook), brute_force(z, codebook))


def test_a_row_midway_between_two_codes_takes_the_lower():
    codebook = torch.tensor([[5.0, 5.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert nearest_code(torch.tensor([[0.0, 3.0], [1.0, 0.0]]), codebook).tolist() == [1, 1]


def test_cancellation_that_fp32_scores_get_wrong():
    """Codes 1e-3 apart at a distance of 1e4 from zero: fp32 squares resolve 8."""
    codebook = torch.full((64, 4), 1e4) + torch.arange(64)[:, None] * 1e-3
    z = codebook.flip(0) + 1e-4
    naive = (codebook.square().sum(dim=1) - 2 * z @ codebook.T).argmin(dim=1)
    assert not torch.equal(naive, brute_force(z, codebook))
    assert torch.equal(nearest_code(z, codebook), brute_force(z, codebook))


def test_a_score_that_overflows_though_its_distance_does_not():
    """|e|^2 is beyond fp32, 2 z.e is not: the score is infinite, and the other code's is finite."""
    z, codebook = torch.tensor([[0.89e19]]), torch.tensor([[1.9e19], [-0.2e19]])
    assert nearest_code(z, codebook).tolist() == brute_force(z, codebook).tolist() == [0]


def test_codes_that_are_permutations_of_one_tie_as_brute_force_has_it():
    """Seen from zero all are equally far but for the rounding of float64's sums, which takes them in another order."""
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        width = int(torch.randint(2, 300, (1,), generator=generator))
        values = torch.randn(width, generator=generator) * (3 * torch.randn(width, generator=generator)).exp()
        codebook = torch.stack([values[torch.randperm(width, generator=generator)] for _ in range(17)])
        z = torch.zeros(3, width)
        assert torch.equal(nearest_code(z, codebook), brute_force(z, codebook))


@pytest.mark.parametrize("codes", [1, 127, 128, 129, 1000])
@pytest.mark.parametrize("rows", [0, 1, 37])
def test_sizes_around_groups_and_chunks(rows, codes, monkeypatch):
    monkeypatch.setattr(in_torch, "CHUNK_SCORES", 2000)
    monkeypatch.setattr(in_torch, "CHUNK_VALUES", 300)
    torch.manual_seed(rows + codes)
    codebook = torch.randn(codes, 5).round(decimals=1)  # ties
    z = torch.randn(rows, 5).round(decimals=1)
    z[5:6] = torch.nan
    expected = brute_force(z, codebook)
    assert torch.equal(nearest_code(z, codebook), expected)


def test_a_view_with_any_strides():
    z, codebook = torch.randn(16, 50).T, torch.randn(16, 33).T
    assert torch.equal(nearest_code(z, codebook), brute_force(z, codebook))


def test_autocast_leaves_the_search_alone():
    torch.manual_seed(0)
    z, codebook = torch.randn(64, 256) + 30, torch.randn(128, 256) + 30
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nearest_code(z, codebook)
    assert torch.equal(found, brute_force(z, codebook))


@pytest.mark.slow
def test_precisions_set_by_torchs_newer_names_are_not_trusted_either():
    """In a process of its own: what was set is not all unset again."""
    program = """
import torch
from hqtvae_fast.ops.kernels.nearest_code.torch import products_are_fp32
cpu, backends = torch.device("cpu"), torch.backends
assert products_are_fp32(cpu)
for module in (backends.mkldnn.matmul, backends.mkldnn, backends):
    module.fp32_precision = "tf32"
    assert not products_are_fp32(cpu), module
    module.fp32_precision = "none"
    assert products_are_fp32(cpu), module
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_coarser_products_are_not_trusted(precision):
    before = torch.get_float32_matmul_precision()
    z, codebook = torch.randn(64, 256) + 30, torch.randn(128, 256) + 30
    try:
        torch.set_float32_matmul_precision(precision)
        found = nearest_code(z, codebook)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found, brute_force(z, codebook))


def test_few_rows_are_scored_twice(monkeypatch):
    """With codes as a trained model has them, fewer than 1 in 50: the search costs hardly more than its product."""
    torch.manual_seed(0)
    codebook = torch.randn(1024, 128)
    z = codebook[torch.randint(1024, (200,))] + 0.7 * torch.randn(200, 128)
    pairs = []
    original = in_torch._closest_pair
    monkeypatch.setattr(in_torch, "_closest_pair", lambda *args: pairs.append(len(args[2])) or original(*args))
    assert torch.equal(nearest_code(z, codebook), brute_force(z, codebook))
    assert sum(pairs) - len(z) * len(pairs) < len(z) // 50


@pytest.mark.parametrize("length", [1e4, 1e18, 1e30, float("inf")])
def test_a_code_that_is_far_from_all_rows_costs_nothing(length, monkeypatch):
    """As training makes them of codes that no vector chooses; the bound of all others must not be of their length."""
    draw = torch.Generator().manual_seed(1)
    z, codebook = torch.randn(200, 32, generator=draw), torch.randn(300, 32, generator=draw)
    codebook[::7] *= length
    compared, counted = in_torch._closest_pair, []
    monkeypatch.setattr(in_torch, "_closest_pair", lambda *given: counted.append(len(given[2])) or compared(*given))
    assert torch.equal(nearest_code(z, codebook, backend="torch"), reference.nearest_code(z, codebook))
    assert sum(counted) <= 220  # 200 rows, a few of them twice


def test_a_long_code_is_found_by_a_long_row():
    z, codebook = torch.tensor([[1e6, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.1], [9e5, 0.0], [2e6, 0.0]])
    assert nearest_code(z, codebook, backend="torch").tolist() == [1, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_gives_0_and_is_told_on_request(value):
    z, codebook = torch.randn(3, 4), torch.randn(5, 4)
    expected = brute_force(z, codebook)
    z[1, 2] = value
    expected[1] = 0
    for backend in ("torch", "reference"):
        flag = torch.tensor(False)
        assert torch.equal(nearest_code(z, codebook, backend=backend, invalid=flag), expected)
        assert bool(flag)
    with pytest.raises(ValueError, match="expected finite rows; row 1 holds NaN or infinity"):
        nearest_code(z, codebook, check=True)


def test_the_flag_stays_down_where_all_rows_are_finite_and_up_once_it_is_up():
    z, codebook = torch.randn(3, 4), torch.randn(5, 4)
    down, up = torch.tensor(False), torch.tensor(True)
    nearest_code(z, codebook, invalid=down, check=True)
    nearest_code(z, codebook, invalid=up)
    assert (bool(down), bool(up)) == (False, True)


@pytest.mark.parametrize(
    "z,codebook,message",
    [
        (torch.zeros(3, 4), torch.zeros(5, 3), r"expected \[N, C\] and \[K, C\]; got \[3, 4\] and \[5, 3\]"),
        (torch.zeros(3, 4), torch.zeros(0, 4), "at least one code"),
        (torch.zeros(3, 4), torch.zeros(5, 4).double(), "one floating dtype"),
        (torch.zeros(3, 4), torch.zeros(5, 4, device="meta"), "one device; got cpu and meta"),
        (torch.zeros(3, 4, dtype=torch.int64), torch.zeros(5, 4, dtype=torch.int64), "one floating dtype"),
    ],
)
def test_refusals(z, codebook, message):
    with pytest.raises(ValueError, match=message):
        nearest_code(z, codebook)


def test_operator_keeps_torchs_rules():
    for z in (torch.randn(7, 4), torch.randn(0, 4), torch.randn(7, 4, requires_grad=True)):
        for backend in ("torch", "reference"):
            torch.library.opcheck(torch.ops.hqtvae_fast.nearest_code.default, (z, torch.randn(5, 4), backend))


def test_triton_is_refused_with_the_reason(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match=r"'triton', which cannot run: expected tensors on a CUDA device"):
        nearest_code(torch.zeros(3, 4), torch.zeros(5, 4), backend="triton")
    with pytest.raises(BackendError, match=r"expected fp32, bf16 or fp16; got torch.float64"):
        nearest_code(torch.zeros(3, 4).double(), torch.zeros(5, 4).double(), backend="triton")


@pytest.mark.parametrize("case", SPEC.small, ids=lambda case: case.name)
def test_spec(case):
    inputs = SPEC.make_inputs(case, torch.device("cpu"), 0)
    assert (inputs[0].shape, inputs[1].shape) == ((case["N"], case["C"]), (case["K"], case["C"]))
    assert inputs[0].dtype == case.dtype
    wanted = SPEC.reference(*inputs)
    SPEC.check(SPEC.run(*inputs), wanted, inputs)
    if len(wanted):
        with pytest.raises(AssertionError, match=f"1 of {len(wanted)} rows differ"):
            SPEC.check(torch.cat([wanted[:1] + 1, wanted[1:]]), wanted, inputs)


# --------------------------------------------------------------------------------------------- what the kernels rest on


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("window,d", [(1, 1), (1, 33), (1, 1024), (2, 5), (2, 256), (4, 33)])
def test_the_bound_holds_for_sums_as_bad_as_a_tensor_core_may_make_them(window, d, split):
    """All of a product's terms of one sign, each addition truncated to 24 bits as if it were alone in its group, and
    chunks summed as the kernel sums them: the worst that the bound's derivation allows."""
    torch.manual_seed(d)
    z, e = (torch.rand(8, window**2, d) + 0.5 for _ in range(2))
    if not split:
        z, e = z.bfloat16().float(), e.bfloat16().float()
    tile = triton.SMALL
    square = e.double().square().sum(dim=(1, 2))
    product = torch.zeros(8)
    inside = torch.zeros(8)
    for i_window in range(window**2):
        for start in range(0, d, tile.channels):
            part = slice(start, start + tile.channels)
            inside = torch.zeros(8) if split else inside
            for a, b in _parts(z[:, i_window, part], e[:, i_window, part], split):
                for channel in range(a.shape[1]):
                    inside = _truncated_sum(inside, a[:, channel].double() * b[:, channel].double())
            product = product + inside if split else inside
    score = square.float() - 2 * product
    exact = square - 2 * (z.double() * e.double()).sum(dim=(1, 2))
    relative, relative_square, lost, tiny = triton.bound(window, d, tile, split)
    length, longest = z.double().square().sum(dim=(1, 2)).sqrt(), square.sqrt()
    limit = relative * length * longest + relative_square * longest**2 + lost * (length + longest) + tiny
    assert bool(((score.double() - exact).abs() <= limit).all())


def _parts(z, e, split):
    z_high, e_high = z.bfloat16().float(), e.bfloat16().float()
    z_low, e_low = (z - z_high).bfloat16().float(), (e - e_high).bfloat16().float()
    return ((z_low, e_high), (z_high, e_low), (z_high, e_high)) if split else ((z_high, e_high),)


def _truncated_sum(total, term):
    """Both cut off below bit 23 of the larger one, then the sum itself: fp32."""
    exponent = torch.maximum(total.double().abs(), term.abs()).frexp().exponent - 24
    step = torch.ldexp(torch.ones(len(term)).double(), exponent)
    total = (total.double() / step).trunc() * step + (term / step).trunc() * step
    step = torch.ldexp(torch.ones(len(term)).double(), total.abs().frexp().exponent - 24)
    return ((total / step).trunc() * step).float()


@pytest.mark.parametrize("window", [1, 2, 4])
def test_window_major_is_what_unshuffling_does(window):
    z = torch.randn(2, 3, 4 * window, 4 * window)
    unshuffled = z
    for _ in range(window.bit_length() - 1):
        unshuffled = F.pixel_unshuffle(unshuffled, 2)
    rows = unshuffled.permute(0, 2, 3, 1).reshape(-1, 3 * window**2)
    windows = z.view(2, 3, 4, window, 4, window).permute(0, 2, 4, 3, 5, 1).reshape(-1, window**2, 3)
    assert torch.equal(triton.window_major(rows, window), windows)


# ------------------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*SPEC.small, *SPEC.cases], ids=lambda case: case.name)
def test_on_a_gpu(case):
    inputs = SPEC.make_inputs(case, torch.device("cuda"), 0)
    found = nearest_code(*inputs, backend="triton")
    SPEC.check(found, reference.nearest_code(*inputs), inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-42, 1e-38, 1e-20, 1.0, 1e15, 3e37])
def test_on_a_gpu_at_every_scale(scale, dtype):
    torch.manual_seed(0)
    limit = torch.finfo(dtype).max / 2
    codebook = (torch.randn(300, 40, device="cuda") * scale).repeat(2, 1).clamp(-limit, limit)
    z = (codebook[::3] + 0.1 * scale * torch.randn(200, 40, device="cuda")).clamp(-limit, limit)
    z, codebook = z.to(dtype), codebook.to(dtype)
    assert torch.equal(nearest_code(z, codebook, backend="triton"), reference.nearest_code(z, codebook))


@pytest.mark.gpu
def test_on_a_gpu_more_rows_than_a_grids_second_axis_has_places():
    torch.manual_seed(0)
    codebook = torch.randn(200, 8, device="cuda")
    z = torch.randn(65536 * 128 + 5, 8, device="cuda")
    assert torch.equal(nearest_code(z, codebook, backend="triton"), nearest_code(z, codebook, backend="torch"))


@pytest.mark.gpu
def test_on_a_gpu_few_rows_are_settled_in_double_precision():
    for case in SPEC.cases:
        z, codebook = SPEC.make_inputs(case, torch.device("cuda"), 0)
        _, settled = triton.search(triton.rows(z), codebook[:, None])
        assert float(settled.float().mean()) < 0.01, case.name


@pytest.mark.gpu
@pytest.mark.slow
def test_on_a_gpu_ten_million_rows_of_a_real_encoder():
    """The embedded model's, on pictures that it decodes from random codes."""
    vae = HQTVAEPipeline.from_pretrained("demo", device="cuda", dtype=torch.float32).vae
    torch.manual_seed(0)
    rows = 0
    while rows < 10**7:
        pairs = zip(vae.config.codebook_sizes, vae.config.level_sides, strict=True)
        codes = [torch.randint(size, (1024, side, side), device="cuda") for size, side in pairs]
        with torch.no_grad():
            levels = vae.quantize(vae.latents(vae.decode(codes).clamp(-1, 1)))
        for codebook, level in zip(vae.codebooks, levels, strict=True):
            z = level.residual.permute(0, 2, 3, 1).flatten(0, 2)
            wanted = reference.nearest_code(z, codebook.embedding)
            assert torch.equal(nearest_code(z, codebook.embedding, backend="triton"), wanted)
            rows += len(z)
