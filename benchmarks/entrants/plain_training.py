"""Training as one writes it down in plain torch: what ``hqtvae bench train --plain`` holds ours against.

The same weights in the same modules, which are used as places for weights alone: every operation is torch's own.
Nothing is fused, nothing is channels-last, codes are found by ``cdist`` and ``argmin``, and losses and optimisers are
``torch.nn.functional``'s and ``torch.optim``'s as they come. Held to this package's losses by a test.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.entrants.plain_decoder import decoded, encoded
from benchmarks.entrants.plain_transformer import plain_block, plain_norm, refuse_unknown
from hqtvae_fast.config import ConfigError
from hqtvae_fast.model import HQVAE, HQTransformer
from hqtvae_fast.model.embedding import LocalEmbedding
from hqtvae_fast.model.head import PyramidHead, _group_mask
from hqtvae_fast.model.hqvae import Codebook
from hqtvae_fast.model.layers import Blocks
from hqtvae_fast.model.pyramid import split_windows
from hqtvae_fast.train.loop.optim import (
    STAGE1_BETAS,
    STAGE1_LEARNING_RATE,
    STAGE2_BETAS,
    STAGE2_LEARNING_RATE,
    STAGE2_TEXT_LEARNING_RATE,
    STAGE2_WEIGHT_DECAY,
    parameter_groups,
)
from hqtvae_fast.train.losses.discriminator import PatchDiscriminator

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
ADVERSARIAL, TEXT, IMAGE = 0.75, 0.1, 0.9


class PlainStage1:
    """HQ-VAE of two levels between pixel shuffles, and its discriminator where one is given."""

    def __init__(self, vae: HQVAE, discriminator: PatchDiscriminator | None, device: torch.device, precision: str):
        config = vae.config
        if (config.num_levels, config.resampler, config.combine) != (2, "pixel_shuffle", "concat"):
            got = f"{config.num_levels} levels, {config.resampler} and {config.combine}"
            raise ConfigError(f"plain torch: expected two levels, pixel_shuffle and concat; got {got}")
        # Torch's own group norm takes ten times as long on channels-last maps in bf16.
        self.vae, self.discriminator = vae.to(device, memory_format=torch.contiguous_format).train(), discriminator
        self.precision, self.device = precision, device
        self.optimizer = torch.optim.Adam(vae.parameters(), lr=STAGE1_LEARNING_RATE, betas=STAGE1_BETAS)
        if discriminator is not None:
            discriminator.to(device, memory_format=torch.contiguous_format)
            self.adversary = torch.optim.Adam(discriminator.parameters(), lr=STAGE1_LEARNING_RATE, betas=STAGE1_BETAS)

    def update(self, images: Tensor) -> dict[str, float]:
        """One update; its figures as numbers, as a loop that logs them has them."""
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        with _autocast(self.device, self.precision):
            z = self.vae.quant_conv(encoded(self.vae.encoder, images))
            rebuilt, residuals, codes, commitment = self._reconstruct(z)
            mse = F.mse_loss(rebuilt.float(), images)
            loss = mse + commitment
            if self.discriminator is not None:
                fooled = -self.discriminator(rebuilt).float().mean()
                loss = loss + ADVERSARIAL * self._weight(mse, fooled) * fooled
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        figures = {"loss": loss, "mse": mse, "commitment": commitment}
        if self.discriminator is not None:
            figures["discriminator"] = self._update_discriminator(images, rebuilt.detach())
        for codebook, residual_NC, codes_N in zip(self.vae.codebooks, residuals, codes, strict=True):
            _update_codebook(codebook, residual_NC, codes_N)
        return {name: value.item() for name, value in figures.items()}

    def _reconstruct(self, z: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
        top, bottom = self.vae.codebooks
        with torch.autocast(self.device.type, enabled=False):
            z = z.float()
            coarse = F.pixel_unshuffle(z, 2)
            top_codes, top_embedding = _nearest(top, coarse)
            top_through = coarse + (top_embedding - coarse).detach()  # straight through
            fine = z - F.pixel_shuffle(top_through, 2)
            bottom_codes, bottom_embedding = _nearest(bottom, fine)
            bottom_through = fine + (bottom_embedding - fine).detach()
            beta = self.vae.config.commitment_weight
            commitment = beta * (F.mse_loss(coarse, top_embedding) + F.mse_loss(fine, bottom_embedding))
        joined = torch.cat([F.pixel_shuffle(top_through, 2), bottom_through], dim=1)
        rebuilt = decoded(self.vae.decoder, self.vae.post_quant_conv(joined))
        residuals = [residual.detach().permute(0, 2, 3, 1).flatten(0, 2) for residual in (coarse, fine)]
        return rebuilt, residuals, [top_codes, bottom_codes], commitment

    def _weight(self, mse: Tensor, fooled: Tensor) -> Tensor:
        last = self.vae.decoder.last_layer
        wanted, pulled = (torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (mse, fooled))
        return (wanted / (pulled + 1e-4)).clamp(0, 1e4).detach()

    def _update_discriminator(self, images: Tensor, rebuilt: Tensor) -> Tensor:
        assert self.discriminator is not None
        self.discriminator.requires_grad_(True)
        with _autocast(self.device, self.precision):
            real, fake = self.discriminator(images).float(), self.discriminator(rebuilt).float()
            loss = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
        loss.backward()
        self.adversary.step()
        self.adversary.zero_grad()
        return loss


def _nearest(codebook: Codebook, z: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [N], and their embeddings as a map."""
    B, C, H, W = z.shape
    codes_N = torch.cdist(z.detach().permute(0, 2, 3, 1).reshape(-1, C), codebook.embedding).argmin(dim=1)
    return codes_N, F.embedding(codes_N, codebook.embedding).view(B, H, W, C).permute(0, 3, 1, 2)


@torch.no_grad()
def _update_codebook(codebook: Codebook, residual_NC: Tensor, codes_N: Tensor) -> None:
    counts_K = torch.bincount(codes_N, minlength=len(codebook.embedding)).float()
    sums_KC = torch.zeros_like(codebook.embedding_sum).index_add_(0, codes_N, residual_NC)
    codebook.cluster_size.mul_(codebook.decay).add_(counts_K, alpha=1 - codebook.decay)
    codebook.embedding_sum.mul_(codebook.decay).add_(sums_KC, alpha=1 - codebook.decay)
    total = codebook.cluster_size.sum()
    smoothed_K = (codebook.cluster_size + codebook.epsilon) / (total + codebook.epsilon * len(counts_K)) * total
    codebook.embedding.copy_(codebook.embedding_sum / smoothed_K[:, None])


class PlainStage2:
    """HQ-Transformer on codes that are there already, labels being the codes."""

    def __init__(self, model: HQTransformer, device: torch.device, precision: str) -> None:
        refuse_unknown(model)
        self.model, self.precision, self.device = model.to(device).train(), precision, device
        groups = parameter_groups(model, STAGE2_WEIGHT_DECAY)
        rate = STAGE2_TEXT_LEARNING_RATE if model.config.condition == "text" else STAGE2_LEARNING_RATE
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=STAGE2_BETAS)
        self._trained = [value for group in groups for value in group["params"]]

    def update(self, codes: list[Tensor], condition: Tensor | None) -> dict[str, float]:
        """One update on code maps [B, h, w], top first, and labels or tokens; its figures as numbers."""
        with _autocast(self.device, self.precision):
            levels, text = self._logits(codes, condition)
        losses = [F.cross_entropy(logits.float(), target) for logits, target in levels]
        weights = [float(count) for count in self.model.config.level_widths]
        loss = torch.stack([weight * part for weight, part in zip(weights, losses, strict=True)]).sum()
        if text is not None:
            loss = IMAGE * loss + TEXT * sum(weights[:2]) * F.cross_entropy(text[0].float(), text[1])
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._trained, float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad()
        named = {f"level_{level}": value for level, value in enumerate(losses)}
        return {name: value.item() for name, value in {"loss": loss, **named, "gradient_norm": norm}.items()}

    def _logits(self, codes: list[Tensor], condition: Tensor | None) -> tuple[list[tuple[Tensor, Tensor]], Any]:
        """Logits [N, K] and codes [N] of each level, and tokens' likewise."""
        model, config, B = self.model, self.model.config, len(codes[0])
        local_BTN = torch.cat([split_windows(level, config.side, index) for index, level in enumerate(codes)], dim=2)
        prefix_BPD = model.prefix(condition, B)
        x_BSD = torch.cat([prefix_BPD, self._tokens(local_BTN[:, :-1])], dim=1)
        h_BSD = plain_norm(model.norm, _blocks(model.body, model.dropout(x_BSD), None))
        P, T = prefix_BPD.shape[1], local_BTN.shape[1]
        x_MND = self._head_inputs(h_BSD[:, P - 1 :].reshape(B * T, -1), local_BTN.view(B * T, -1))
        mask = _group_mask(config).to(self.device)
        x_MND = _blocks(model.head.blocks, x_MND, mask)
        levels, start = [], 0
        for level, width in enumerate(config.level_widths):
            part = plain_norm(model.head.norms[level], x_MND[:, start : start + width])
            logits = F.linear(part, model.head.logits[level].weight)
            levels.append((logits.flatten(0, 1), local_BTN.view(B * T, -1)[:, start : start + width].flatten()))
            start += width
        if config.condition != "text":
            return levels, None
        tokens = plain_norm(model.prefix.norm, h_BSD[:, : P - 1])
        assert condition is not None
        return levels, (F.linear(tokens, model.prefix.head.weight).flatten(0, 1), condition[:, 1:].flatten())

    def _tokens(self, local_BLN: Tensor) -> Tensor:
        embedding = self.model.embedding
        assert isinstance(embedding, LocalEmbedding)
        levels = zip(embedding.codes, local_BLN.split(list(embedding.widths), dim=2), strict=True)
        m_BLND = torch.cat([F.embedding(codes, table.weight) for table, codes in levels], dim=2)
        place_LD = embedding.top_position.table.weight[: local_BLN.shape[1]]
        return (m_BLND + embedding.local_position.weight).mean(dim=2) + place_LD / local_BLN.shape[2]

    def _head_inputs(self, h_MD: Tensor, local_MN: Tensor) -> Tensor:
        head, config = self.model.head, self.model.config
        assert isinstance(head, PyramidHead)
        inputs = [h_MD + head.start]
        for q in range(1, config.num_local):
            x_MD = head.position.weight[q - 1].expand_as(h_MD)
            for source in head.sources[q]:
                x_MD = x_MD + F.embedding(local_MN[:, source], head.codes[config.local_levels[source]].weight)
            inputs.append(x_MD)
        return torch.stack(inputs, dim=1)


def _blocks(blocks: Blocks, x_BTD: Tensor, mask: Tensor | None) -> Tensor:
    """Without a mask, each position sees those before it."""
    for block in blocks.layers:
        x_BTD = plain_block(block, x_BTD, mask)
    return x_BTD


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST)
