"""What an HQ-TVAE is made of, as frozen dataclasses, and the presets of the paper.

Every architectural choice is a field here; the modules under :mod:`hqtvae_fast.model` read these fields and nothing
else. Configurations are written to and read from ``config.json`` by :func:`to_dict` and :func:`from_dict`, which
refuse unknown fields by name.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Resampler = Literal["pixel_shuffle", "average", "conv"]
Combine = Literal["concat", "sum"]
Decoding = Literal["hierarchical", "sequential", "bidirectional", "global"]
Condition = Literal["none", "class", "text", "codes"]
Embedding = Literal["local", "reduce"]
Position = Literal["1d", "2d"]
Gelu = Literal["exact", "sigmoid"]

WINDOW = 2  # r: a code's side, in codes of the next finer level. HQ-Transformer's layouts are built on 2.
# Images at a time: the paper's protocol; enough rows on a CPU that the weights' stream is shared.
DEFAULT_BATCH = {"cuda": 50, "cpu": 8}


class ConfigError(ValueError):
    """A configuration that cannot describe a model; the message says what was expected and what came."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_choice(name: str, value: str, choices: Any) -> None:
    _require(value in get_args(choices), f"{name}: expected one of {', '.join(get_args(choices))}; got {value!r}")


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(isinstance(value, int) and value > 0, f"{name}: expected a positive integer; got {value!r}")


@dataclass(frozen=True)
class VAEConfig:
    """HQ-VAE, stage 1 (eq. 1-4): VQGAN's encoder and decoder around a pyramid of codebooks, top level first."""

    resolution: int = 256
    """Side R of the square RGB image, in pixels."""
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    """Nominal sides at which attention blocks are placed; see :class:`hqtvae_fast.model.autoencoder.Encoder`."""
    latent_channels: int = 256
    """Channels of the encoder's output, before the 1x1 convolution to ``embed_dim``."""
    init_downsample: bool = True
    """The encoder's first convolution halves the image (and the decoder doubles it last)."""
    mid_block: bool = True
    attention: bool = True
    dropout: float = 0.0
    embed_dim: int = 256
    """d: the width of the finest level's codes."""
    codebook_sizes: tuple[int, ...] = (8192, 8192)
    """K of each level, top first; their number is the number of levels."""
    resampler: Resampler = "pixel_shuffle"
    factor: int = WINDOW
    combine: Combine = "concat"
    """How the decoder reads the levels: two of them concatenated, or any number summed while upsampling."""
    commitment_weight: float = 0.25
    ema_decay: float = 0.99
    ema_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        _require_choice("resampler", self.resampler, Resampler)
        _require_choice("combine", self.combine, Combine)
        _require_positive(self, "resolution", "channels", "num_res_blocks", "latent_channels", "embed_dim", "factor")
        _require(len(self.channel_multipliers) > 0, "channel_multipliers: expected at least one, got none")
        _require(self.num_levels >= 2, f"codebook_sizes: expected two levels or more; got {self.codebook_sizes}")
        _require(min(self.codebook_sizes) > 0, f"codebook_sizes: expected positive sizes; got {self.codebook_sizes}")
        _require(
            self.combine == "sum" or self.num_levels == 2,
            f"combine='concat' joins two levels; got {self.num_levels} (use 'sum')",
        )
        stride = self.downsampling * self.factor ** (self.num_levels - 1)
        _require(
            self.resolution % stride == 0,
            f"resolution: expected a multiple of {stride} (encoder stride x levels); got {self.resolution}",
        )

    @property
    def num_levels(self) -> int:
        return len(self.codebook_sizes)

    @property
    def downsampling(self) -> int:
        """Image pixels per latent position along a side."""
        return 2 ** (len(self.channel_multipliers) - 1 + int(self.init_downsample))

    @property
    def level_sides(self) -> tuple[int, ...]:
        """Side of each level's square code map, top first: (8, 16) for the paper's model."""
        latent = self.resolution // self.downsampling
        return tuple(latent // self.factor ** (self.num_levels - 1 - level) for level in range(self.num_levels))

    @property
    def code_dims(self) -> tuple[int, ...]:
        """Width of each level's code embeddings: d * (r*r)^(levels below) with pixel-unshuffle, else d."""
        if self.resampler != "pixel_shuffle":
            return (self.embed_dim,) * self.num_levels
        area = self.factor**2
        return tuple(self.embed_dim * area ** (self.num_levels - 1 - level) for level in range(self.num_levels))


@dataclass(frozen=True)
class BlocksConfig:
    """A stack of pre-norm transformer blocks."""

    num_layers: int = 12
    num_heads: int = 24
    attention_bias: bool = True
    mlp_bias: bool = True
    gelu: Gelu = "exact"
    """``exact`` is x*Phi(x); ``sigmoid`` is x*sigmoid(1.702x)."""
    residual_dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        _require_choice("gelu", self.gelu, Gelu)
        _require_positive(self, "num_heads")
        _require(self.num_layers >= 0, f"num_layers: expected 0 or more; got {self.num_layers}")


@dataclass(frozen=True)
class TransformerConfig:
    """HQ-Transformer, stage 2 (eq. 5-14), in any of the paper's decoding policies.

    ``hierarchical``: a top code, then each finer level's codes in parallel (eq. 12-14). ``sequential``: the local codes
    one after the other. ``bidirectional``: all local codes from the same pass. ``global``: one code a position over a
    whole map (VQ-VAE-2's way): a prior over the top map, or, conditioned on ``codes``, over the bottom map.
    """

    codebook_sizes: tuple[int, ...] = (8192, 8192)
    """K of each level that is predicted, top first."""
    side: int = 8
    """Side of the map that the body walks over; side*side steps."""
    dim: int = 1536
    body: BlocksConfig = field(default_factory=BlocksConfig)
    head: BlocksConfig = field(default_factory=lambda: BlocksConfig(num_layers=4))
    decoding: Decoding = "hierarchical"
    condition: Condition = "class"
    embedding: Embedding = "local"
    """How a local pyramid becomes one token: ``local`` averages its n code embeddings (after ``iet_layers`` blocks of
    full attention, eq. 5-8), ``reduce`` interleaves four dim/4-wide bottom embeddings (the FFHQ model)."""
    iet_layers: int = 0
    """N_IET. The paper's text says 1, the released checkpoints have 0."""
    num_classes: int = 1000
    prefix_vocab_size: int = 16384
    """Vocabulary of the prefix: text tokens, or the top level's codes when the condition is ``codes``."""
    prefix_length: int = 64
    position: Position = "1d"
    max_positions: int = 256
    """Rows of the position table; only the first side*side are read."""
    scrambled_middle: bool = False
    """The released sequential model over three levels (``top2mid2bot``) reads middle codes of other windows than those
    it predicts, as its reshaping takes a [2l, 2l] map for a [4l, l] one. Such a model can be evaluated but not drawn
    from, since those codes are not known yet."""
    embedding_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in (("decoding", Decoding), ("condition", Condition), ("embedding", Embedding)):
            _require_choice(name, getattr(self, name), choices)
        _require_choice("position", self.position, Position)
        _require_positive(self, "side", "dim", "num_classes", "prefix_vocab_size", "prefix_length", "max_positions")
        sizes, one_level = self.codebook_sizes, len(self.codebook_sizes) == 1
        _require(sizes != () and min(sizes) > 0, f"codebook_sizes: expected positive sizes; got {sizes}")
        for name, blocks in (("body", self.body), ("head", self.head)):
            heads = blocks.num_heads
            _require(self.dim % heads == 0, f"{name}.num_heads: expected a divisor of dim = {self.dim}; got {heads}")
        levels = "one level" if self.decoding == "global" else "two levels or more"
        _require(
            (self.decoding == "global") == one_level,
            f"decoding={self.decoding!r}: expected codebook_sizes for {levels}; got {sizes}",
        )
        _require(
            self.condition != "codes" or self.decoding == "global",
            f"condition='codes': expected decoding='global'; got {self.decoding!r}",
        )
        _require(
            self.embedding != "reduce" or (len(sizes) == 2 and self.dim % WINDOW**2 == 0),
            f"embedding='reduce': expected two levels and a dim divisible by 4; got {sizes} and {self.dim}",
        )
        _require(
            not self.scrambled_middle or (self.decoding == "sequential" and len(sizes) == 3),
            f"scrambled_middle: expected decoding='sequential' over three levels; got {self.decoding!r} and {sizes}",
        )
        rows = self.position_rows**2 if self.position == "2d" else self.max_positions
        _require(rows >= self.num_steps, f"max_positions: expected at least {self.num_steps}; got {self.max_positions}")

    @property
    def num_levels(self) -> int:
        return len(self.codebook_sizes)

    @property
    def num_steps(self) -> int:
        """T: autoregressive steps of the body."""
        return self.side**2

    @property
    def prefix_positions(self) -> int:
        """P: body positions before the first top code is predicted, counting the one that predicts it."""
        return self.prefix_length if self.condition in ("text", "codes") else 1

    @property
    def position_rows(self) -> int:
        """Rows of each of the two tables of ``position='2d'``."""
        return int(self.max_positions**0.5)

    @property
    def level_widths(self) -> tuple[int, ...]:
        """Codes of each level in one local pyramid: (1, 4) or (1, 4, 16)."""
        return tuple(WINDOW ** (2 * level) for level in range(self.num_levels))

    @property
    def num_local(self) -> int:
        """n: codes in one local pyramid."""
        return sum(self.level_widths)

    @property
    def local_levels(self) -> tuple[int, ...]:
        """Level of each local position: (0, 1, 1, 1, 1)."""
        return tuple(level for level, width in enumerate(self.level_widths) for _ in range(width))

    @property
    def groups(self) -> tuple[range, ...]:
        """Local positions that are drawn together, in drawing order; a position sees its own and earlier groups."""
        if self.decoding == "sequential":
            return tuple(range(q, q + 1) for q in range(self.num_local))
        if self.decoding == "bidirectional":
            return (range(self.num_local),)
        ends = [sum(self.level_widths[: level + 1]) for level in range(self.num_levels)]
        return tuple(range(end - width, end) for end, width in zip(ends, self.level_widths, strict=True))


@dataclass(frozen=True)
class HQTVAEConfig:
    """A pipeline: stage 1, and stage 2 where there is one.

    ``refiner`` is the second transformer of global conditioning: it draws the bottom map given the top map that
    ``transformer`` has drawn.
    """

    vae: VAEConfig = field(default_factory=VAEConfig)
    transformer: TransformerConfig | None = field(default_factory=TransformerConfig)
    refiner: TransformerConfig | None = None

    def __post_init__(self) -> None:
        if self.transformer is not None:
            self._check_fits("transformer", self.transformer)
        if self.refiner is not None:
            _require(self.refiner.condition == "codes", "refiner: expected condition='codes'")
            _require(
                self.transformer is not None and self.transformer.decoding == "global",
                "refiner: expected a transformer with decoding='global' before it",
            )
            self._check_fits("refiner", self.refiner)

    def _check_fits(self, name: str, stage2: TransformerConfig) -> None:
        first = first_level(stage2)
        levels = slice(first, first + stage2.num_levels)
        sizes, sides = self.vae.codebook_sizes[levels], self.vae.level_sides[levels]
        wanted = stage2.codebook_sizes
        _require(sizes == wanted, f"{name}.codebook_sizes: expected the VAE's {sizes}; got {wanted}")
        _require(sides[0] == stage2.side, f"{name}.side: expected the VAE's {sides[0]}; got {stage2.side}")
        _require(self.vae.factor == WINDOW, f"vae.factor: expected {WINDOW} with stage 2; got {self.vae.factor}")


def first_level(config: TransformerConfig) -> int:
    """Index of the first of the VAE's levels that this transformer draws: 1 for a refiner, else 0."""
    return 1 if config.condition == "codes" else 0


def _size(body_layers: int, head_layers: int) -> TransformerConfig:
    return TransformerConfig(
        body=BlocksConfig(num_layers=body_layers, residual_dropout=0.1),
        head=BlocksConfig(num_layers=head_layers, residual_dropout=0.1),
    )


_FFHQ = TransformerConfig(
    dim=1024,
    body=BlocksConfig(num_layers=24, num_heads=16, residual_dropout=0.1),
    head=BlocksConfig(num_layers=4, num_heads=16, residual_dropout=0.1),
    condition="none",
    embedding="reduce",
)
_VAE_3LEVEL = VAEConfig(
    channel_multipliers=(1, 2, 4),
    attention_resolutions=(32,),
    codebook_sizes=(8192, 8192, 8192),
    combine="sum",
)

PRESETS: dict[str, HQTVAEConfig] = {
    "S": HQTVAEConfig(transformer=_size(12, 4)),
    "M": HQTVAEConfig(transformer=_size(24, 4)),
    "L": HQTVAEConfig(transformer=_size(42, 6)),
    "S-text": HQTVAEConfig(transformer=dataclasses.replace(_size(12, 4), condition="text", max_positions=64)),
    "FFHQ": HQTVAEConfig(transformer=_FFHQ),
    "S-3level": HQTVAEConfig(
        vae=_VAE_3LEVEL,
        transformer=dataclasses.replace(_size(12, 4), codebook_sizes=(8192, 8192, 8192)),
    ),
}
"""The paper's models, by name. Weights for them come from a checkpoint."""


def preset(name: str) -> HQTVAEConfig:
    """The preset called ``name``; a ValueError lists the names when there is none."""
    if name not in PRESETS:
        raise ConfigError(f"preset: expected one of {', '.join(PRESETS)}; got {name!r}")
    return PRESETS[name]


def to_dict(config: HQTVAEConfig) -> dict[str, Any]:
    """Plain dictionaries and lists, as written to ``config.json``."""
    return dataclasses.asdict(config)


def from_dict(data: dict[str, Any]) -> HQTVAEConfig:
    """The inverse of :func:`to_dict`. Unknown or missing sections raise :class:`ConfigError` naming the field."""
    _require(isinstance(data, dict), f"config: expected a mapping; got {type(data).__name__}")
    known = {"vae", "transformer", "refiner"}
    _require(set(data) <= known, f"config: unknown field {sorted(set(data) - known)}; expected {sorted(known)}")
    _require("vae" in data, "config: expected a field 'vae', found none")
    return HQTVAEConfig(
        vae=_parse(VAEConfig, data["vae"], "vae"),
        transformer=_parse_transformer(data.get("transformer"), "transformer"),
        refiner=_parse_transformer(data.get("refiner"), "refiner"),
    )


def _parse_transformer(data: dict[str, Any] | None, where: str) -> TransformerConfig | None:
    if data is None:
        return None
    _require(isinstance(data, dict), f"{where}: expected a mapping; got {type(data).__name__}")
    blocks: dict[str, Any] = {
        name: _parse(BlocksConfig, data[name], f"{where}.{name}") for name in ("body", "head") if name in data
    }
    return _parse(TransformerConfig, {**data, **blocks}, where)


def _parse(cls: type[Any], data: dict[str, Any], where: str) -> Any:
    _require(isinstance(data, dict), f"{where}: expected a mapping; got {type(data).__name__}")
    fields = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - fields)
    _require(not unknown, f"{where}: unknown field {unknown}; expected some of {sorted(fields)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except TypeError as error:  # a value of the wrong type met a comparison or len()
        raise ConfigError(f"{where}: a field has the wrong type ({error})") from None
