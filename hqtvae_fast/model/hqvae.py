"""HQ-VAE, stage 1: an image as a pyramid of codes, and back (eq. 1-4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hqtvae_fast.codes import read_levels
from hqtvae_fast.config import VAEConfig
from hqtvae_fast.hardware import fp32_products
from hqtvae_fast.model.autoencoder import Decoder, Encoder, Upsample
from hqtvae_fast.model.code_tables import CodeTables, fold_tables
from hqtvae_fast.model.convolution import Remade
from hqtvae_fast.model.images import check_images, check_shape, none_yet, refuse_invalid
from hqtvae_fast.model.plain import plain
from hqtvae_fast.model.prepared import Prepared
from hqtvae_fast.modes import is_traced, no_autocast, single_precision
from hqtvae_fast.ops.kernels.ema_update import code_statistics, ema_update
from hqtvae_fast.ops.kernels.hierarchical_quantize import Resampler, commitment, hierarchical_quantize, straight_through
from hqtvae_fast.ops.kernels.nearest_code import nearest_code, not_finite
from hqtvae_fast.ops.kernels.sample_logits import check_temperature
from hqtvae_fast.ops.kernels.soft_label_cross_entropy import soft_labels
from hqtvae_fast.ops.made import Made, tree

FOLDABLE = (nn.Conv2d, nn.ConvTranspose2d, nn.PixelShuffle, nn.UpsamplingNearest2d)
RESTART_SHARE = 0.1  # of the count that each code would have if all were chosen alike
RESTART_COUNT = 1.3 * RESTART_SHARE
"""Where a restarted code begins: some 25 updates above the threshold at a decay of 0.99. From the whole count it is 230
until a vector that nothing chooses is tried anew: on sixty pictures 44% and 33% of the codes (top and bottom) were in
use after 300 updates, and PSNR was 0.8 dB lower, after 875 too (two seeds, size tiny)."""


class Codebook(nn.Module):
    """K code embeddings of width C, kept up to date by exponential moving averages instead of gradients."""

    embedding: Tensor
    cluster_size: Tensor
    embedding_sum: Tensor

    def __init__(self, size: int, dim: int, decay: float, epsilon: float) -> None:
        super().__init__()
        self.decay, self.epsilon = decay, epsilon
        embedding_KC = torch.randn(size, dim, dtype=torch.float32)
        self.register_buffer("embedding", embedding_KC)
        self.register_buffer("cluster_size", torch.zeros(size, dtype=torch.float32))
        self.register_buffer("embedding_sum", embedding_KC.clone())

    def search(self, z_BCHW: Tensor, invalid: Tensor | None = None) -> Tensor:
        """Nearest codes, [B, H, W] int64; ``invalid``, bool [B], is set where z holds NaN or infinity."""
        B, _, H, W = z_BCHW.shape
        if invalid is not None:
            invalid |= not_finite(z_BCHW)
        return nearest_code(_rows(z_BCHW), self.embedding).view(B, H, W)

    def lookup(self, codes_BHW: Tensor) -> Tensor:
        """Embeddings of codes as a channels-last map [B, C, H, W]."""
        return F.embedding(codes_BHW, self.embedding).permute(0, 3, 1, 2)

    def soft_codes(self, z_BCHW: Tensor, temperature: float) -> Tensor:
        """softmax(-squared distance / temperature) over the codes: [B, H, W, K]."""
        B, _, H, W = z_BCHW.shape
        return soft_labels(_rows(z_BCHW), self.embedding, temperature).view(B, H, W, -1)

    @torch.no_grad()
    def update(self, z_BCHW: Tensor, codes_BHW: Tensor) -> None:
        """One EMA step on a batch that was coded as ``codes_BHW``."""
        self.apply_statistics(*code_statistics(_rows(z_BCHW), codes_BHW.flatten(), len(self.embedding)))

    @torch.no_grad()
    def apply_statistics(
        self, counts_K: Tensor, sums_KC: Tensor, restart: Callable[[int], Tensor] | None = None
    ) -> None:
        """One EMA step on statistics of :func:`code_statistics`, summed over all ranks.

        ``restart``: gives K vectors [K, C]. Codes whose running count is below a tenth of what each would have if all
        were chosen alike start anew from those vectors, a little above that threshold: what nothing chooses is soon
        given another vector. (A fixed threshold would restart codes in use where a batch has fewer vectors than there
        are codes.)
        """
        state = (self.embedding, self.cluster_size, self.embedding_sum)
        ema_update(*state, counts_K, sums_KC, self.decay, self.epsilon)
        if restart is not None:
            uniform = counts_K.mean()
            unused_K = self.cluster_size < RESTART_SHARE * uniform
            fresh_KC = restart(len(self.embedding)).to(self.embedding.dtype)
            start = RESTART_COUNT * uniform
            self.cluster_size.copy_(torch.where(unused_K, start, self.cluster_size))
            self.embedding.copy_(torch.where(unused_K[:, None], fresh_KC, self.embedding))
            self.embedding_sum.copy_(torch.where(unused_K[:, None], fresh_KC * start, self.embedding_sum))


def _rows(z_BCHW: Tensor) -> Tensor:
    return z_BCHW.permute(0, 2, 3, 1).reshape(-1, z_BCHW.shape[1])


@dataclass(frozen=True)
class Level:
    """What quantization did at one level: its input (a residual, but at the top), codes [B, h, w] and embeddings."""

    residual: Tensor
    codes: Tensor
    embedding: Tensor


@dataclass(frozen=True)
class HQVAEOutput:
    """A training pass: ``reconstruction`` [B, 3, R, R], the ``levels``, and each level's commitment loss.

    ``top_only``: the reconstruction from the top codes alone, where it was asked for.
    """

    reconstruction: Tensor
    levels: tuple[Level, ...]
    commitment: tuple[Tensor, ...]
    top_only: Tensor | None = None


class HQVAE(Prepared):
    """Encoder, residual quantization over a pyramid, decoder. See :class:`hqtvae_fast.config.VAEConfig`.

    The decoder and its 1x1 convolution may be in another dtype than the rest (:meth:`set_decoder_dtype`): codes are
    chosen by comparing distances, which is worth fp32, while pixels are not.
    """

    codebooks: Sequence[Codebook]  # an nn.ModuleList, typed by what it holds

    @single_precision()
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embed_dim, 1)
        self.codebooks = nn.ModuleList(  # type: ignore[assignment]
            Codebook(size, dim, config.ema_decay, config.ema_epsilon)
            for size, dim in zip(config.codebook_sizes, config.code_dims, strict=True)
        )
        steps = config.num_levels - 1
        self.downsamples = nn.ModuleList(_downsample(config) for _ in range(steps))  # [i]: level i+1 -> level i
        self.upsamples = nn.ModuleList(_upsample(config) for _ in range(steps))  # [i]: level i -> level i+1
        joined = config.embed_dim * (config.num_levels if config.combine == "concat" else 1)
        self.post_quant_conv = nn.Conv2d(joined, config.latent_channels, 1)
        self.decoder = Decoder(config)
        self._tables: Made[CodeTables] = Made()
        self.remember()

    def set_decoder_dtype(self, dtype: torch.dtype) -> HQVAE:
        """Decode in ``dtype``; the encoder and the codebooks are left alone."""
        self.post_quant_conv.to(dtype)
        self.decoder.to(dtype)
        return self

    def fold(self) -> HQVAE:
        """Fold the decoder's upsampling, and what comes before it into a table a level (K x f x f x latent_channels
        values, 42 MB in fp32 by default), in inference."""
        for layer in self._folding():
            layer.fold()
        return self.prepare()

    def _folding(self) -> Iterator[Upsample]:
        return (module for module in tree(self.decoder) if isinstance(module, Upsample))

    def _make(self) -> list[Tensor]:
        made = [folded for layer in self._folding() if (folded := layer.folded) is not None]
        for layer in tree(self.decoder):
            if isinstance(layer, Remade):  # after the folded weights, of which an upsampling's 8-bit ones are made
                layer.look()
        tables = self.code_tables
        return made if tables is None else [*made, *tables.tables, tables.base]

    @property
    def code_tables(self) -> CodeTables | None:
        """Of the weights as they are. None in training, where :meth:`fold` was not called, and where what they stand
        for is not what was built."""
        between, conv = list(self.upsamples), self.post_quant_conv
        if not self.prepared or self.training or is_traced():
            return None
        if not all(plain(module, *FOLDABLE) for module in (*between, conv)):
            return None
        books = [codebook.embedding for codebook in self.codebooks]
        weights = [*conv.parameters(), *(weight for module in between for weight in module.parameters())]
        return self._tables.of(lambda: fold_tables(self.config, books, between, conv), *books, *weights)

    def train(self, mode: bool = True) -> HQVAE:
        if mode:
            self._tables.drop()  # the weights are about to change
        return super().train(mode)

    def latents(self, images: Tensor) -> Tensor:
        """z = conv1x1(Encoder(image)): [B, 3, R, R] in [-1, 1] -> [B, d, R/f, R/f]."""
        check_shape(images, self.config.resolution)
        return self.quant_conv(self.encoder(images))

    def quantize(self, z: Tensor, invalid: Tensor | None = None) -> tuple[Level, ...]:
        """Top level first, each finer level codes what the coarser ones have left over (eq. 2-3).

        What is not finite gets code 0; ``invalid``, bool [B], is set for such an image, and nothing waits for it.
        """
        resampler = self.config.resampler
        if resampler == "conv":
            return self._quantize_level_by_level(z, invalid)
        codes, embeddings = self._quantize_at_once(z, resampler, invalid)
        residuals, embeddings = straight_through(z, embeddings, resampler=resampler)
        return tuple(Level(*parts) for parts in zip(residuals, codes, embeddings, strict=True))

    def _quantize_at_once(
        self, z: Tensor, resampler: Resampler, invalid: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Codes and embeddings of all levels, where resampling has no weights."""
        books = [codebook.embedding for codebook in self.codebooks]
        return hierarchical_quantize(z, books, resampler=resampler, invalid=invalid)

    def _quantize_level_by_level(self, z: Tensor, invalid: Tensor | None = None) -> tuple[Level, ...]:
        """With modules between the levels, which have gradients of their own."""
        pyramid = [z]
        for downsample in reversed(self.downsamples):
            pyramid.insert(0, downsample(pyramid[0]))
        levels: list[Level] = []
        carried: Tensor | None = None  # what the coarser levels say of this one
        for index, (codebook, target) in enumerate(zip(self.codebooks, pyramid, strict=True)):
            residual = target if carried is None else target - carried
            codes = codebook.search(residual, invalid)
            embedding = codebook.lookup(codes)
            if torch.is_grad_enabled():  # straight through: the gradient of the embedding is the residual's
                embedding = residual + (embedding - residual).detach()
            levels.append(Level(residual, codes, embedding))
            if index < len(self.upsamples):
                carried = self.upsamples[index](self._join(carried, embedding))
        return tuple(levels)

    def _join(self, carried: Tensor | None, embedding: Tensor) -> Tensor:
        return embedding if carried is None else carried + embedding

    def combine(self, embeddings: Sequence[Tensor]) -> Tensor:
        """The decoder's input from the levels' embeddings (eq. 4): [B, latent_channels, R/f, R/f]."""
        carried: Tensor | None = None
        for upsample, embedding in zip(self.upsamples, embeddings, strict=False):
            carried = upsample(self._join(carried, embedding))
        assert carried is not None  # a VAE has two levels or more
        concat = self.config.combine == "concat"
        joined = torch.cat([carried, embeddings[-1]], dim=1) if concat else carried + embeddings[-1]
        return self.post_quant_conv(joined.to(self.post_quant_conv.weight.dtype))

    def encode(self, images: Tensor, *, invalid: Tensor | None = None) -> tuple[Tensor, ...]:
        """Codes of images [B, 3, R, R] in [-1, 1]: int64 [B, h, w] a level, top first.

        Raises ValueError on other shapes, on integers, on values beyond [-1, 1] (looked at on the CPU only), and at the
        end on images that are not finite, for which it waits. ``invalid``, bool [B] on the images' device: set for such
        images instead, their codes being of no use, and nothing waits.
        """
        if invalid is None:
            check_images(images, self.config.resolution)
        found = none_yet(images) if invalid is None else invalid
        with torch.no_grad(), _full_precision(images.device):
            z = self.latents(images)
            resampler = self.config.resampler
            if resampler == "conv":
                codes = tuple(level.codes for level in self._quantize_level_by_level(z, found))
            else:
                codes = self._quantize_at_once(z, resampler, found)[0]
        if invalid is None:
            refuse_invalid(images, found)
        return codes

    def decode(self, codes: Sequence[Tensor | None]) -> Tensor:
        """Images [B, 3, R, R], nominally in [-1, 1], of codes [B, h, w] a level, top first.

        Integers of any width. None leaves a level out: zeros stand in for its embeddings (figure 1's top-only and
        bottom-only pictures).
        """
        with self.in_own_dtype():
            return self.decoder(self._decoder_input(codes))

    @torch.no_grad()
    def decode_bytes(self, codes: Sequence[Tensor | None]) -> Tensor:
        """:meth:`decode`, as uint8 [B, R, R, 3]: -1 is 0, 1 is 255, what lies beyond is cut off."""
        with self.in_own_dtype():
            return self.decoder.to_bytes(self._decoder_input(codes))

    def _decoder_input(self, codes: Sequence[Tensor | None]) -> Tensor:
        codes, batch = read_levels(codes, self.config)
        tables = None if torch.is_grad_enabled() else self.code_tables
        if tables is not None:
            return tables(codes)
        embeddings = []
        for index, (codebook, level) in enumerate(zip(self.codebooks, codes, strict=True)):
            if level is None:
                side, dim = self.config.level_sides[index], self.config.code_dims[index]
                zeros = codebook.embedding.new_zeros(batch, dim, side, side)
                embeddings.append(zeros.contiguous(memory_format=torch.channels_last))
            else:
                embeddings.append(codebook.lookup(level))
        return self.combine(embeddings)

    def soft_codes(self, images: Tensor, temperature: float) -> tuple[Tensor, ...]:
        """Soft labels softmax(-|residual - e_k|^2 / temperature): [B, h, w, K] a level, top first. Errors as
        :meth:`encode` has."""
        check_temperature(temperature)
        check_images(images, self.config.resolution)
        with torch.no_grad(), _full_precision(images.device):
            found = none_yet(images)
            levels = self.quantize(self.latents(images), found)
            refuse_invalid(images, found)
            pairs = zip(self.codebooks, levels, strict=True)
            return tuple(codebook.soft_codes(level.residual, temperature) for codebook, level in pairs)

    def forward(self, images: Tensor, *, top_only: bool = False) -> HQVAEOutput:
        """A training pass: reconstruct through straight-through codes. Codebooks are updated by the trainer.

        ``top_only``: a second time with zeros for all embeddings below the top, for a loss on that picture too.
        Under autocast, quantization stays in fp32: codes are chosen by comparing distances.
        """
        z = self.latents(images)
        with no_autocast():
            levels = self.quantize(z.to(self.quant_conv.weight.dtype))
        embeddings = [level.embedding for level in levels]
        losses = commitment([level.residual for level in levels], embeddings)
        reconstruction = self.decoder(self.combine(embeddings))
        coarse = None
        if top_only:
            coarse = self.decoder(self.combine([embeddings[0], *map(torch.zeros_like, embeddings[1:])]))
        return HQVAEOutput(
            reconstruction, levels, tuple(self.config.commitment_weight * each for each in losses), coarse
        )

    def check_codes(self, codes: Sequence[Tensor | None]) -> int:
        """The batch size of codes that :meth:`decode` takes; ValueError otherwise (range: on the CPU only)."""
        return read_levels(codes, self.config)[1]


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, and no TF32, torch's default in convolutions on Ampere and later: codes would change."""
    with no_autocast(), fp32_products(device, tf32=False):
        yield


def _downsample(config: VAEConfig) -> nn.Module:
    if config.resampler == "pixel_shuffle":
        return nn.PixelUnshuffle(config.factor)
    if config.resampler == "average":
        return nn.AvgPool2d(config.factor)
    return nn.Conv2d(config.embed_dim, config.embed_dim, config.factor, stride=config.factor)


def _upsample(config: VAEConfig) -> nn.Module:
    if config.resampler == "pixel_shuffle":
        return nn.PixelShuffle(config.factor)
    if config.resampler == "average":
        return nn.UpsamplingNearest2d(scale_factor=config.factor)
    return nn.ConvTranspose2d(config.embed_dim, config.embed_dim, config.factor, stride=config.factor)
