"""hqtvae_fast: a performance engine for HQ-TVAE, locally hierarchical auto-regressive image generation.

>>> from hqtvae_fast import HQTVAEPipeline
>>> pipe = HQTVAEPipeline.from_pretrained("path/to/checkpoint")
>>> images = pipe(class_labels=[3, 7], num_images=4, top_k=2048, temperature=0.95, seed=0).images

``from_pretrained`` opens released checkpoint directories and this package's own format alike.
"""

from importlib.metadata import version

from hqtvae_fast import ops
from hqtvae_fast.config import PRESETS, HQTVAEConfig, TransformerConfig, VAEConfig, preset
from hqtvae_fast.model import HQVAE, HQLogits, HQTransformer
from hqtvae_fast.ops.explain import explain
from hqtvae_fast.output import HQTVAEImage, HQTVAEOutput
from hqtvae_fast.pipeline import HQTVAEPipeline

__version__ = version("hqtvae_fast")

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
