"""The memory model against what a process really takes, and the chunks that follow from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from hqtvae_fast.backend import VARIABLE
from hqtvae_fast.config import VAEConfig
from hqtvae_fast.engine import coding
from hqtvae_fast.engine.batches import ActivationMemory, decoding_memory, peak_bytes
from hqtvae_fast.engine.coding import chunk_size, decode_codes, even_chunk
from hqtvae_fast.model import HQVAE
from hqtvae_fast.plan import Plan, recording, using
from hqtvae_fast.threads import decoding_flops

CONFIG = VAEConfig(
    resolution=128,
    channels=64,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(),
    mid_block=False,
    latent_channels=64,
    embed_dim=64,
    codebook_sizes=(64, 64),
)
SMALL = VAEConfig(
    resolution=32, channels=32, channel_multipliers=(1,), num_res_blocks=1, embed_dim=32, codebook_sizes=(9, 9)
)
MEASURE = """
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, {tests!r})
from test_activation_memory import CONFIG, codes

from hqtvae_fast.model import HQVAE


def held(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


torch.set_num_threads(1)
vae = HQVAE(CONFIG).to(memory_format=torch.channels_last).eval().fold()
taken = []
with torch.no_grad():
    vae.decode(codes(CONFIG, 1))  # libraries set themselves up
    for count in (2, 6):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = held("VmRSS:")
        vae.decode(codes(CONFIG, count))
        taken.append(held("VmHWM:") - before)
print("taken:" + json.dumps(taken))
"""


def codes(config: VAEConfig, count: int) -> list[torch.Tensor]:
    return [torch.zeros(count, side, side, dtype=torch.int64) for side in config.level_sides]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from Linux's /proc")
def test_the_model_against_measured_peaks():
    """Of a process of its own. What convolutions take as scratch is counted in what is measured alone."""
    program = MEASURE.format(tests=str(__file__).rpartition("/")[0])
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # freed maps go back to the system at once
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr
    two, six = json.loads(result.stdout.rpartition("taken:")[2])
    model = decoding_memory(CONFIG, torch.float32)
    assert (six - two) / 4 == pytest.approx(model.per_image, rel=0.1)
    assert 0.9 * model.total(6) <= six <= 1.25 * model.total(6)


def test_peak_bytes_counts_what_is_alive_together():
    weights = torch.zeros(1000)

    def run():
        first = weights + 1
        second = first * 2
        del first
        return second.view(10, 100)[:5] + 0

    assert peak_bytes(run) == 8000
    assert peak_bytes(lambda: weights.view(10, 100)) == 0
    assert peak_bytes(lambda: [weights + 1 for _ in range(3)]) == 12000


def test_bytes_follow_dtype_and_batch():
    single, half = (decoding_memory(CONFIG, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert half.per_image == pytest.approx(single.per_image / 2, rel=0.01)  # codes and statistics stay as wide
    maps = single.per_image / (4 * CONFIG.channels * CONFIG.resolution**2)
    assert 2 < maps < 2.2  # of the last level's size: before and after the last norm, and the picture


@pytest.mark.parametrize("budget,images", [(99, 0), (149, 0), (150, 1), (199, 1), (200, 2), (1100, 20)])
def test_largest_chunk(budget, images):
    memory = ActivationMemory(fixed=100, per_image=50)
    assert memory.largest_chunk(budget) == images
    assert images == 0 or memory.total(images) <= budget < memory.total(images + 1)


def test_a_budget_sets_the_chunk(monkeypatch):
    vae = HQVAE(SMALL).eval()
    memory = decoding_memory(SMALL, torch.float32)
    cpu = torch.device("cpu")
    assert chunk_size(vae, cpu, memory.total(7)) == 7
    assert chunk_size(vae, cpu) == coding.SMALL // decoding_flops(SMALL) > coding.CPU_CHUNK
    monkeypatch.setattr(coding, "SMALL", 0.0)
    assert chunk_size(vae, cpu) == coding.CPU_CHUNK
    seen = []
    original = vae.decode
    monkeypatch.setattr(vae, "decode", lambda part: seen.append(len(part[0])) or original(part))
    decode_codes(vae, codes(SMALL, 8), budget=memory.total(3))
    assert seen == [3, 3, 2]
    with pytest.raises(ValueError, match=r"budget: expected at least [\d,]+ bytes, for one image; got 1,000"):
        decode_codes(vae, codes(SMALL, 1), budget=1000)


@pytest.mark.parametrize("asked", ["upsample_conv=triton", "group_norm_silu=triton", "triton", "library"])
def test_what_is_asked_for_on_a_gpu_is_not_asked_of_tensors_without_values(asked, monkeypatch):
    wanted = decoding_memory(CONFIG, torch.float32)
    monkeypatch.setenv(VARIABLE, asked)
    decoding_memory.cache_clear()
    assert decoding_memory(CONFIG, torch.float32) == wanted


def test_the_estimate_goes_by_no_plan_and_is_no_part_of_a_record():
    wanted = decoding_memory(CONFIG, torch.float32)
    decoding_memory.cache_clear()
    with using(Plan("library")), recording() as found:
        assert decoding_memory(CONFIG, torch.float32) == wanted
    assert not found


def test_maps_stay_below_2_31_elements(monkeypatch):
    """Of 256 images of 256 x 256, the last level's maps of 128 channels have just as many."""
    config = VAEConfig(codebook_sizes=(64, 64))
    memory = decoding_memory(config, torch.bfloat16)
    assert memory.largest == 128 * 256 * 256
    assert memory.most_short == 255
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**13, 10**13))
    vae = HQVAE(SMALL).eval()
    monkeypatch.setattr(coding, "decoding_memory", lambda config, dtype: memory)
    assert chunk_size(vae, torch.device("cuda")) == 255


@pytest.mark.parametrize("images,most,chunk", [(50, 255, 50), (256, 255, 128), (512, 255, 171), (7, 3, 3), (1, 9, 1)])
def test_chunks_are_even(images, most, chunk):
    assert even_chunk(images, most) == chunk <= most
