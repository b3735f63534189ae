"""PSNR and SSIM against torchmetrics, use of codes against counting, and the sum of parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.evaluate import Extractor, open_pictures, spans
from hqtvae_fast.evaluate.reconstruction import measure_reconstructions
from hqtvae_fast.evaluate.report import judge

from .conftest import make_pixels, write_folder

SIDE, COUNT = 64, 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "set", make_pixels(COUNT, side=SIDE))


def test_figures_of_reconstructions(folder: Path, class_pipeline: HQTVAEPipeline, extractor: Extractor):
    from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

    state = measure_reconstructions(class_pipeline, open_pictures(folder), extractor, batch=2)
    metrics = {metric.key: metric.value for metric in judge(state, extractor)}
    images = torch.from_numpy(make_pixels(COUNT, side=SIDE)).permute(0, 3, 1, 2) / 255
    codes = class_pipeline.encode(images * 2 - 1)
    rebuilt = class_pipeline.decode(codes, "pt")
    by_picture = PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3))
    assert metrics["psnr"] == pytest.approx(float(by_picture(rebuilt, images)), rel=1e-4)
    ssim = StructuralSimilarityIndexMeasure(data_range=1.0)
    assert metrics["ssim"] == pytest.approx(float(ssim(rebuilt, images)), rel=1e-4)
    for level, size in enumerate(class_pipeline.config.vae.codebook_sizes):
        used = np.unique(codes[level].numpy(), return_counts=True)[1]
        assert metrics[f"usage_{level}"] == pytest.approx(len(used) / size)
        share = used / used.sum()
        assert metrics[f"perplexity_{level}"] == pytest.approx(float(np.exp(-(share * np.log(share)).sum())))
    assert metrics["reconstruction_frechet"] > 0


def test_parts_add_up(folder: Path, class_pipeline: HQTVAEPipeline, extractor: Extractor):
    pictures = open_pictures(folder)
    whole = measure_reconstructions(class_pipeline, pictures, extractor)
    first, second = (measure_reconstructions(class_pipeline, pictures, extractor, span) for span in spans(COUNT, 2))
    joined = second + first
    assert joined.count == COUNT
    assert joined.psnr == pytest.approx(whole.psnr, rel=1e-5)
    assert joined.rfid() == pytest.approx(whole.rfid(), rel=1e-4)
    assert all(map(torch.equal, joined.use.counts, whole.use.counts))


def test_another_resolution_is_refused(folder: Path, class_pipeline: HQTVAEPipeline, extractor: Extractor):
    with pytest.raises(ValueError, match="expected pictures of 64 pixels; got 32"):
        measure_reconstructions(class_pipeline, open_pictures(folder, 32), extractor)
