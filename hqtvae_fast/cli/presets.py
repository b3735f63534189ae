"""``hqtvae train presets``: the paper's training runs, by name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hqtvae_fast.cli.output import show, table, waiting

if TYPE_CHECKING:
    from hqtvae_fast.train.presets import Preset

COLUMNS = ("stage", "paper", "what it is", "parameters", "batch", "epochs", "rate")
TEXTS = (1, 2, 3)  # columns to align to the left, beside the first


def presets() -> None:
    """List the presets: where the paper has them, what they are, and their size, batch and peak learning rate."""
    with waiting("Starting"):
        from hqtvae_fast.train.presets import STAGES, load_preset, preset_names

        found = [[load_preset(stage, name) for name in preset_names(stage)] for stage in STAGES]
        rows = [[_row(preset) for preset in sorted(presets, key=_place)] for presets in found]
    shown = table("Presets of hqtvae train", "name", *COLUMNS)
    shown.columns[0].no_wrap = True
    for index in TEXTS:
        shown.columns[index].justify = "left"
    for of_stage in rows:
        for row in of_stage:
            shown.add_row(*row)
        shown.add_section()
    show(shown)


def _place(preset: Preset) -> tuple[bool, str, str, int, str]:
    """By table, then row or, where models are its rows, size; what is in no table comes last."""
    row = re.search(r"row \d+", preset.source)
    size = 0 if row else preset.fields["model"].get("body", {}).get("num_layers", 0)
    table_name = preset.source.partition(",")[0]
    return not table_name.startswith("Table"), table_name, row.group() if row else "", size, preset.source


def _row(preset: Preset) -> tuple[str, ...]:
    from hqtvae_fast.model import cost
    from hqtvae_fast.train.sizing.models import preset_config

    fields, part = preset.fields, {"stage1": "vae", "stage2": "transformer"}[preset.stage]
    size = f"{cost.sizes(preset_config(preset))[part] / 1e6:,.1f} M"
    rate = f"{fields['learning_rate']:.0e}".replace("e-0", "e-")
    numbers = (str(fields["batch_size"]), str(fields["epochs"]), rate)
    return (preset.name, preset.stage.removeprefix("stage"), preset.source, preset.description, size, *numbers)
