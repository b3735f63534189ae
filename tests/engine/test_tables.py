"""A step with tables: the same numbers but for rounding, less work, and the memory that is stated."""

from __future__ import annotations

import pytest
import torch
from conftest import GOLDEN, engine, golden_pipeline
from test_fused_step import DRAWN, condition_of, draw, same

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.config import preset
from hqtvae_fast.engine.cache import table_bytes
from hqtvae_fast.engine.fused_step import FusedStep, make_step, make_tables
from hqtvae_fast.engine.graph import DrawReplay
from hqtvae_fast.engine.loop import SamplingParams
from hqtvae_fast.seeds import image_seeds


@pytest.mark.parametrize("case", DRAWN)
def test_numbers_are_those_without_tables(case):
    model = golden_pipeline(case).transformer
    config, batch, tables = model.config, 3, make_tables(model)
    assert tables.bytes == table_bytes(config, torch.float32)
    generator = torch.Generator().manual_seed(0)
    codes = [
        torch.randint(config.codebook_sizes[level], (batch, config.num_steps), generator=generator)
        for level in config.local_levels
    ]
    local, condition = torch.stack(codes, dim=2), condition_of(config, batch)
    with torch.inference_mode():
        plain, tabled = FusedStep(model, batch), FusedStep(model, batch, tables=tables)
        for step in range(3):
            h, h_tabled = (own.body(step, condition, local) for own in (plain, tabled))
            torch.testing.assert_close(h_tabled, h, rtol=1e-5, atol=1e-5)
            for group in config.groups:
                pairs = zip(*(own.head(h, local[:, step], group) for own in (plain, tabled)), strict=True)
                for without, using in pairs:
                    torch.testing.assert_close(using.logits, without.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", DRAWN)
def test_codes_are_those_without_tables(case):
    model = golden_pipeline(case).transformer
    assert same(draw(model, None, tables=make_tables(model)), draw(model, "reference"))


def test_tables_are_read():
    """Not the weights that they stand for: other numbers in them are other codes."""
    model = golden_pipeline("class_parallel").transformer
    plain = draw(model, "fused")
    for name in ("qkv", "start"):
        tables = make_tables(model)
        assert same(draw(model, "fused", tables=tables), plain)
        tensor = next(iter(tables.qkv.values())) if name == "qkv" else tables.start.h
        with torch.inference_mode():
            tensor.copy_(tensor.flip(0))
        assert not same(draw(model, "fused", tables=tables), plain), name


def test_a_replay_and_the_pipeline():
    model = golden_pipeline("class_parallel").transformer
    levels = model.config.num_levels
    params = SamplingParams((0.9,) * levels, (40,) * levels, (0.95,) * levels)
    replay = DrawReplay(model, 3, tables=make_tables(model))
    assert same(replay(condition_of(model.config, 3), image_seeds(7, 3), params), draw(model, "reference"))
    found = [
        HQTVAEPipeline.from_pretrained(GOLDEN / "class_parallel", device="cpu", dtype="fp32", plan=engine(text))(
            class_labels=[1, 0], seed=3, output_type="codes", progress=False
        ).codes
        for text in ("", "tables")
    ]
    assert same(*found)


def test_memory_of_presets():
    """As the docstrings state it, in bf16."""
    config = preset("S").transformer
    assert table_bytes(config) == 2 * 1536 * (8192 * 4 * 3 + config.num_classes * 25) == 378_789_888
    assert (
        table_bytes(preset("S-text").transformer) == 2 * 1536 * 3 * 4 * preset("S-text").transformer.codebook_sizes[0]
    )


def test_the_reference_reads_none():
    model = golden_pipeline("class_parallel").transformer
    with pytest.raises(ValueError, match="options: expected engine 'fused', which alone has any; got 'reference'"):
        make_step(model, 1, "reference", tables=make_tables(model))
    assert isinstance(make_step(model, 1, tables=make_tables(model)), FusedStep)
