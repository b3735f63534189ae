from __future__ import annotations

import pytest
import torch

from hqtvae_fast.seeds import image_seeds


def test_first_image_has_the_seed_itself():
    assert int(image_seeds(7, 3)[0]) == 7
    assert torch.equal(image_seeds([7], 1), image_seeds(7, 1))


def test_seeds_are_distinct_over_seeds_and_images():
    seeds = torch.cat([image_seeds(seed, 2000) for seed in range(100)])
    assert len(seeds.unique()) == len(seeds)


def test_fewer_images_are_a_prefix():
    assert torch.equal(image_seeds(3, 5), image_seeds(3, 9)[:5])


def test_a_list_is_taken_as_it_is():
    values = [0, -1, 2**63 - 1, -(2**63)]
    assert image_seeds(values, 4).tolist() == values
    assert image_seeds([2**64 - 1], 1).tolist() == [-1]  # the same 64 bits


@pytest.mark.parametrize("seed,message", [([1, 2], "expected an int, or 3 of them"), (2**64, "fits 64 bits")])
def test_refusals(seed, message):
    with pytest.raises(ValueError, match=message):
        image_seeds(seed, 3)
