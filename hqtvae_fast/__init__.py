"""hqtvae_fast: a performance engine for HQ-TVAE, locally hierarchical auto-regressive image generation.

>>> from hqtvae_fast import HQTVAEPipeline
>>> pipe = HQTVAEPipeline.from_pretrained("path/to/checkpoint")
>>> images = pipe(class_labels=[3, 7], num_images=4, top_k=2048, temperature=0.95, seed=0).images

``from_pretrained`` opens released checkpoint directories and this package's own format alike.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hqtvae_fast import ops
    from hqtvae_fast.config import PRESETS, HQTVAEConfig, TransformerConfig, VAEConfig, preset
    from hqtvae_fast.model import HQVAE, HQLogits, HQTransformer
    from hqtvae_fast.ops.explain import explain
    from hqtvae_fast.output import HQTVAEImage, HQTVAEOutput
    from hqtvae_fast.pipeline import HQTVAEPipeline

    __version__: str

__all__ = [
    "HQVAE",
    "PRESETS",
    "HQLogits",
    "HQTVAEConfig",
    "HQTVAEImage",
    "HQTVAEOutput",
    "HQTVAEPipeline",
    "HQTransformer",
    "TransformerConfig",
    "VAEConfig",
    "explain",
    "ops",
    "preset",
]

_HOMES = {
    "config": ("PRESETS", "HQTVAEConfig", "TransformerConfig", "VAEConfig", "preset"),
    "model": ("HQVAE", "HQLogits", "HQTransformer"),
    "ops.explain": ("explain",),
    "output": ("HQTVAEImage", "HQTVAEOutput"),
    "pipeline": ("HQTVAEPipeline",),
}


def __getattr__(name: str) -> Any:
    """A name is imported when it is asked for (PEP 562): the command's help must not wait for torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("hqtvae_fast")
    if name == "ops":
        return import_module("hqtvae_fast.ops")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"hqtvae_fast.{home}"), name)
    raise AttributeError(f"module 'hqtvae_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
