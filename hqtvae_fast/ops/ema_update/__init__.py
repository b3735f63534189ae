"""The codebook's exponential-moving-average update."""

from hqtvae_fast.ops.ema_update.reference import code_statistics, ema_update

__all__ = ["code_statistics", "ema_update"]
