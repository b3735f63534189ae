"""Nearest codes by other people's libraries: brute force in fp32, for comparison only. Rows [N, C], codes [K, C]."""

from __future__ import annotations

import functools
import importlib.util
import shutil
from typing import Any

import torch
from torch import Tensor

from hqtvae_fast.backend import BackendError
from hqtvae_fast.ops.third_party import installed


def scores_argmin(z: Tensor, codebook: Tensor) -> Tensor:
    """As one would write it: all scores in memory, in the inputs' own precision; wrong where rounding decides."""
    return torch.addmm(codebook.square().sum(dim=1), z, codebook.T, alpha=-2).argmin(dim=1)


def compiled(z: Tensor, codebook: Tensor) -> Tensor:
    """:func:`scores_argmin` by torch.compile, anew for each shape; on a GPU products may take its own kernels."""
    if z.is_cuda and importlib.util.find_spec("triton") is None:
        raise BackendError("torch.compile: triton is not installed")
    if not z.is_cuda and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise BackendError("torch.compile: no C++ compiler on PATH")
    return _compiled("max-autotune-no-cudagraphs" if z.is_cuda else "default")(z, codebook)


@functools.cache
def _compiled(mode: str) -> Any:
    return torch.compile(scores_argmin, mode=mode, dynamic=False)


def faiss(z: Tensor, codebook: Tensor) -> Tensor:
    """Its search without an index, on whichever device the rows are."""
    package = installed("faiss")
    if z.is_cuda and not hasattr(package, "StandardGpuResources"):
        raise BackendError("faiss: the build that is installed knows no GPU")
    installed("faiss.contrib.torch_utils")  # makes it take tensors, on torch's current stream
    package.omp_set_num_threads(torch.get_num_threads())
    rows, codes = z.float().contiguous(), codebook.float().contiguous()
    if z.is_cuda:
        return package.knn_gpu(_faiss_memory(package), rows, codes, 1)[1][:, 0]
    return package.knn(rows, codes, 1)[1][:, 0]


@functools.cache
def _faiss_memory(package: Any) -> Any:
    """Its scratch memory, taken once."""
    return package.StandardGpuResources()


def cuvs(z: Tensor, codebook: Tensor) -> Tensor:
    """Its index only computes the codes' lengths, which is part of a search with codes that change."""
    if not z.is_cuda:
        raise BackendError(f"cuvs: expected a CUDA device; got {z.device}")
    installed("cuvs")
    brute_force, common = installed("cuvs.neighbors.brute_force"), installed("cuvs.common")
    resources = common.Resources(stream=torch.cuda.current_stream(z.device).cuda_stream)
    rows, codes = z.float().contiguous(), codebook.float().contiguous()
    found = torch.empty(len(z), 1, dtype=torch.int64, device=z.device)
    distances = torch.empty(len(z), 1, dtype=torch.float32, device=z.device)
    index = brute_force.build(codes, metric="sqeuclidean", resources=resources)
    brute_force.search(index, rows, 1, neighbors=found, distances=distances, resources=resources)
    return found[:, 0]
