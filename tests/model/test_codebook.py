"""Restarting unused codes, and the precision that codes are chosen in."""

from __future__ import annotations

import torch

from hqtvae_fast.model.hqvae import RESTART_COUNT, RESTART_SHARE, Codebook, _full_precision


def codebook(size: int = 64, dim: int = 4) -> Codebook:
    torch.manual_seed(0)
    return Codebook(size, dim, decay=0.9, epsilon=1e-5)


def train(book: Codebook, vectors: torch.Tensor, steps: int) -> None:
    """EMA steps on the same vectors, with restarts."""
    for step in range(steps):
        codes = book.search(vectors[:, :, None, None]).flatten()
        counts = torch.bincount(codes, minlength=len(book.embedding)).float()
        sums = torch.zeros_like(book.embedding).index_add_(0, codes, vectors)
        generator = torch.Generator().manual_seed(step)
        chosen = vectors[torch.randint(len(vectors), (len(book.embedding),), generator=generator)]
        book.apply_statistics(counts, sums, lambda count, chosen=chosen: chosen)


def test_a_batch_smaller_than_the_codebook_leaves_codes_in_use_alone():
    """16 vectors over 64 codes: a count of 1 is out of reach for most, and yet a fifth of the codes is enough."""
    centres = torch.randn(8, 4) * 5
    vectors = centres.repeat(2, 1) + torch.randn(16, 4) * 0.01
    book = codebook()
    train(book, vectors, 200)
    nearest = torch.cdist(vectors, book.embedding).amin(dim=1)
    assert float(nearest.max()) < 0.1


def test_an_unused_code_restarts_from_the_batch_and_a_used_one_does_not():
    book = codebook(4, 2)
    book.embedding.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [50.0, 50.0], [-50.0, 0.0]]))
    book.embedding_sum.copy_(book.embedding)
    book.cluster_size.fill_(1.0)
    book.cluster_size[2:] = 0.0
    fresh = torch.full((4, 2), 7.0)
    book.apply_statistics(
        torch.tensor([2.0, 2.0, 0.0, 0.0]),
        torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]),
        lambda _: fresh,
    )
    assert torch.equal(book.embedding[2:], fresh[2:])
    assert float(book.embedding[:2].max()) < 2
    start = RESTART_COUNT * 1.0  # of the mean count, above the threshold: not restarted again in the next step
    assert start > RESTART_SHARE
    assert torch.allclose(book.cluster_size[2:], torch.full((2,), start))
    assert torch.allclose(book.embedding_sum[2:], fresh[2:] * start)


def test_full_precision_changes_tf32_alone():
    cudnn = torch.backends.cudnn

    def flags():
        return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.conv.fp32_precision

    before = flags()
    with _full_precision(torch.device("cuda")):
        assert flags() == (*before[:3], "ieee")
    assert flags() == before
