"""HQ-VAE and HQ-Transformer in plain torch, written to be read beside the paper."""

from hqtvae_fast.model.hqtransformer import HQLogits, HQTransformer
from hqtvae_fast.model.hqvae import HQVAE, HQVAEOutput

__all__ = ["HQVAE", "HQLogits", "HQTransformer", "HQVAEOutput"]
