"""hqtvae_fast: a performance engine for HQ-TVAE, locally hierarchical auto-regressive image generation.

>>> from hqtvae_fast import HQTVAEPipeline
>>> pipe = HQTVAEPipeline.from_pretrained("path/to/checkpoint")
>>> images = pipe(class_labels=[3, 7], num_images=4, top_k=2048, temperature=0.95, seed=0).images

``from_pretrained`` opens released checkpoint directories and this package's own format alike.

Importing the package loads none of it, and no torch: each name is fetched when it is first asked for.
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
    "hqtvae_fast.config": ("PRESETS", "HQTVAEConfig", "TransformerConfig", "VAEConfig", "preset"),
    "hqtvae_fast.model": ("HQVAE", "HQLogits", "HQTransformer"),
    "hqtvae_fast.ops.explain": ("explain",),
    "hqtvae_fast.output": ("HQTVAEImage", "HQTVAEOutput"),
    "hqtvae_fast.pipeline": ("HQTVAEPipeline",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name from its module, a module of the package, or the version; kept once it has been asked for."""
    if name == "__version__":
        from importlib.metadata import version  # 30 ms, which few need

        found: Any = version("hqtvae_fast")
    elif name in _HOME:
        found = getattr(import_module(_HOME[name]), name)
    elif name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    else:
        try:
            found = import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
