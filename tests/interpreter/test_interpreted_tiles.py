"""Every tile of every Triton kernel, interpreted on the CPU, against its op's definition: one in each op at once, the
others where there is time."""

from __future__ import annotations

import pytest
import torch
from interpreted import file_outcomes, main, needs_triton

from hqtvae_fast.ops.spec import all_specs

SPECS = all_specs()
TILES = {op: [each for each in spec.backends if each.tile and each.base == "triton"] for op, spec in SPECS.items()}
FIRST = tuple(f"{op} {tiles[0].name}" for op, tiles in TILES.items() if tiles)
OTHERS = tuple(f"{op} {tile.name}" for op, tiles in TILES.items() for tile in tiles[1:])


def holds(op, name):
    """On the last small case that the variant can take: cases grow more special."""
    spec, cpu = SPECS[op], torch.device("cpu")
    (variant,) = (each for each in spec.backends if each.name == name)
    taken = [case for case in spec.small if variant.why_not(*spec.make_inputs(case, cpu, 0)) is None]
    assert taken, "no small case that it can take"
    for case in taken[-2:]:
        inputs = (spec.make_inputs(case, cpu, 0) for _ in range(3))
        spec.check(spec.run(*next(inputs), backend=name), spec.reference(*next(inputs)), next(inputs))


@needs_triton
@pytest.mark.parametrize("check", FIRST)
def test_one_tile_of_each_op(check):
    assert file_outcomes(__file__, FIRST)[check] == ""


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("check", OTHERS)
def test_the_other_tiles(check):
    assert file_outcomes(__file__, OTHERS)[check] == ""


if __name__ == "__main__":
    main({check: lambda check=check: holds(*check.split(" ")) for check in (*FIRST, *OTHERS)})
