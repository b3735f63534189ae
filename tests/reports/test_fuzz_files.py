"""Damaged files of every kind that is read: an error of ours that names the file, or a right result; nothing else.

A short run of each, and a long one that is slow. Mutations are drawn from a seed: a number of a run that fails can be
run alone.
"""

from __future__ import annotations

import copy
import io
import json
import math
import random
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from conftest import GOLDEN

from hqtvae_fast import checkpoint
from hqtvae_fast.checkpoint_config import find_config
from hqtvae_fast.cli.sample import _read_prompts
from hqtvae_fast.config import HQTVAEConfig, from_dict, to_dict
from hqtvae_fast.evaluate.reference import Reference, read_reference
from hqtvae_fast.files.tensors import read_state

RUNS = pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
SECONDS, MEGABYTES = 10.0, 400  # of one file; of all files together
ODD: list[Any] = [
    *(None, True, False, -1, 0, 1, 3, 7, 64.0, 0.5, -0.0, 1e-320, 10**9, 2**31, 2**63, 10**18, 10**400),
    *(math.nan, math.inf, -math.inf, "", "64", "nan", "x" * 1000, "\ud800", "\x00", [], {}, [1], [1] * 1000),
    *([[1]], [None], {"a": {}}, [1024, 1024], [8192.0], "transformer1", "pixelshuffle2", "none", "class"),
]


def nodes(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a tree of dictionaries and lists, but the root."""
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from nodes(value, (*path, key))


def changed_tree(rng: random.Random, data: Any) -> Any:
    """With one to three entries replaced, left out, moved or added."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        paths = list(nodes(data))
        if not paths:
            break
        *above, key = rng.choice(paths)
        section = data
        for step in above:
            section = section[step]
        what = rng.random()
        if what < 0.75:
            section[key] = copy.deepcopy(rng.choice(ODD))
        elif what < 0.85 and isinstance(section, dict):
            del section[key]
        elif what < 0.95 and isinstance(section, dict):
            section[rng.choice(["extra", "", "vae", "stage1", "dim"])] = section.pop(key)
        else:
            section[key] = copy.deepcopy(section)
    return data


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """With one to four stretches flipped, cut out, doubled or written over."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        first = rng.randrange(len(changed) + 1)
        last = min(len(changed), first + rng.choice([1, 1, 2, 8, 100]))
        what = rng.random()
        if what < 0.4 and first < last:
            changed[first] ^= 1 << rng.randrange(8)
        elif what < 0.55:
            del changed[first:last]
        elif what < 0.7:
            changed[first:first] = changed[first:last]
        elif what < 0.9:
            changed[first:last] = rng.choice([b"\x00", b"\xff" * 8, b"9" * 12, b"[" * 3000, b"\x7f", b"-1", b"&a *a"])
        else:
            del changed[first:]
    return bytes(changed)


def fuzz(
    count: int,
    file: Path,
    change: Callable[[random.Random], bytes],
    read: Callable[[], object],
    named: tuple[Path, ...] = (),
) -> int:
    """How many of ``count`` changed files were read all the same; the others' errors name it (or one of ``named``)."""
    names = tuple(f"{name}: " for name in (file, *named))
    start, sound = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for number in range(count):
        file.unlink(missing_ok=True)
        file.write_bytes(change(random.Random(number)))
        began = time.perf_counter()
        try:
            read()
            sound += 1
        except Exception as error:
            if not isinstance(error, ValueError) or not str(error).startswith(names):
                raise AssertionError(f"run {number}: {error!r}") from error
        assert time.perf_counter() - began < SECONDS, f"run {number}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
    assert grown < MEGABYTES << 10, "in kilobytes"
    return sound


def is_right(config: HQTVAEConfig) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(config), allow_nan=False))) == config


@RUNS
def test_fuzz_of_our_configuration(tmp_path, count):
    data = json.loads((checkpoint.DEMO_DIRECTORY / "config.json").read_text())

    def change(rng: random.Random) -> bytes:
        text = json.dumps(changed_tree(rng, data) if rng.random() < 0.7 else data).encode()
        return changed_bytes(rng, text) if rng.random() < 0.4 else text

    file = tmp_path / "config.json"
    assert 0 < fuzz(count, file, change, lambda: is_right(find_config(tmp_path)[0])) < count


@RUNS
def test_fuzz_of_a_released_configuration(tmp_path, count):
    cases = [yaml.safe_load(file.read_text()) for file in sorted(GOLDEN.glob("*/config.yaml"))]

    def change(rng: random.Random) -> bytes:
        data = rng.choice(cases)
        tree = changed_tree(rng, data) if rng.random() < 0.7 else data
        text = json.dumps({key: tree[key] for key in tree if key != "dataset"}).encode()  # which is YAML, too
        return changed_bytes(rng, text) if rng.random() < 0.4 else text

    file = tmp_path / "config.yaml"
    assert 0 < fuzz(count, file, change, lambda: is_right(find_config(tmp_path)[0])) < count


@RUNS
def test_fuzz_of_whole_checkpoints(tmp_path, count):
    """Configurations that are right but of another model: the weights do not fit."""
    checkpoint.save(checkpoint.load(GOLDEN / "stage1_conv2"), tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())

    def change(rng: random.Random) -> bytes:
        return json.dumps(changed_tree(rng, data)).encode()

    names = (tmp_path / "config.json", tmp_path / "model.safetensors")
    assert fuzz(count // 10, names[0], change, lambda: checkpoint.load(tmp_path), names) < count // 10


@RUNS
def test_fuzz_of_safetensors(tmp_path, count):
    state = {"a.weight": torch.randn(3, 4), "b": torch.arange(5), "c": torch.zeros(2, 2, dtype=torch.bfloat16)}
    whole = safetensors.torch.save(state)
    length = 8 + int.from_bytes(whole[:8], "little")
    header, rest = json.loads(whole[8:length]), whole[length:]

    def change(rng: random.Random) -> bytes:
        if rng.random() < 0.4:
            return changed_bytes(rng, whole)
        text = json.dumps(changed_tree(rng, header)).encode()
        text = changed_bytes(rng, text) if rng.random() < 0.3 else text
        return len(text).to_bytes(8, "little") + text + rest

    def read() -> None:
        size = file.stat().st_size
        assert sum(value.nbytes for value in read_state(file).values()) <= size

    file = tmp_path / "model.safetensors"
    assert 0 < fuzz(count, file, change, read) < count


@RUNS
def test_fuzz_of_statistics(tmp_path, count):
    features = np.random.default_rng(0).normal(size=(20, 6))
    names = {"count": np.int64(20), "extractor": np.str_("pooled"), "resolution": np.int64(16)}
    arrays = {"mu": features.mean(0), "sigma": np.cov(features, rowvar=False), "features": features, **names}

    def packed(values: dict[str, Any], compressed: bool) -> bytes:
        data = io.BytesIO()
        (np.savez_compressed if compressed else np.savez)(data, **values)
        return data.getvalue()

    def changed_array(rng: random.Random, array: np.ndarray) -> np.ndarray:
        if array.dtype.kind not in "fi":
            return rng.choice([np.array("x" * 99), np.array(2), array])
        odd = [array.reshape(-1), array[None], array.astype(np.complex64), array.astype(str), array.astype(np.float16)]
        odd += [np.full(np.shape(array), np.nan), np.array([]), np.asarray(array).T.copy(order="F"), np.array(-3.5)]
        return rng.choice(odd)

    def change(rng: random.Random) -> bytes:
        compressed = rng.random() < 0.5
        if rng.random() < 0.6:
            return changed_bytes(rng, packed(arrays, compressed))
        name = rng.choice(list(arrays))
        return packed({**arrays, name: changed_array(rng, np.asarray(arrays[name]))}, compressed)

    def read() -> None:
        reference: Reference = read_reference(file)
        assert bool(reference.gaussian.mean.isfinite().all())
        assert bool(reference.gaussian.covariance.isfinite().all())

    file = tmp_path / "statistics.npz"
    assert 0 < fuzz(count, file, change, read) < count


@RUNS
def test_fuzz_of_prompts(tmp_path, count):
    text = "a red cube\n\n  два кота \nÜber den Wolken\n🦊 in the snow\n".encode()

    def read() -> None:
        found = _read_prompts(file)
        assert found
        assert all(prompt == prompt.strip() != "" for prompt in found)

    file = tmp_path / "prompts.txt"
    assert 0 < fuzz(count, file, lambda rng: changed_bytes(rng, text), read) < count
