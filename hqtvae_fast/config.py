"""What an HQ-TVAE is made of, as frozen dataclasses, and the presets of the paper.

Every architectural choice is a field here; the modules under :mod:`hqtvae_fast.model` read these fields and nothing
else. Configurations are written to and read from ``config.json`` by :func:`to_dict` and :func:`from_dict`, which
refuse unknown fields by name. What a field may hold is said by its type; see :mod:`hqtvae_fast.fields`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal

from hqtvae_fast.classes import Classes, Names, check_names, names_from_mapping, names_to_mapping
from hqtvae_fast.fields import Between, check_fields, parse
from hqtvae_fast.fields import ConfigError as ConfigError

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
BUCKETS = (1, 2, 4, 8, 16, 32, 50, 64, 128, 256, 512)
"""Batch sizes where none were measured (:mod:`hqtvae_fast.engine.batches`). 50 is the paper's; the others fill
whole tiles of a matrix product."""
GROUPS = 32
"""Of every GroupNorm: HQ-VAE's channels are a multiple of it."""

# Far above any model's, and low enough that no product of them overflows and that no model takes minutes to describe.
MAX_LEVELS = 5
Layers = Annotated[int, Between(0, 256)]
Heads = Annotated[int, Between(1, 1024)]
Width = Annotated[int, Between(1, 16_384)]
Side = Annotated[int, Between(1, 8192)]
Count = Annotated[int, Between(1, 1_048_576)]
"""Rows of a table: codes, classes, tokens, positions."""
Share = Annotated[float, Between(0, 1)]


class CheckpointError(ValueError):
    """A checkpoint that cannot be opened; the message names the file and, where there is one, the key."""


def level_names(count: int) -> tuple[str, ...]:
    """What people call so many levels of codes, the coarsest first: top, middle, bottom; or top, 2nd, 3rd, bottom."""
    between = ("middle",) if count == 3 else ("2nd", "3rd", "4th")[: count - 2]
    return ("top",) if count < 2 else ("top", *between, "bottom")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class VAEConfig:
    """HQ-VAE, stage 1 (eq. 1-4): VQGAN's encoder and decoder around a pyramid of codebooks, top level first."""

    resolution: Side = 256
    """Side R of the square RGB image, in pixels."""
    channels: Width = 128
    channel_multipliers: Annotated[tuple[Annotated[int, Between(1, 64)], ...], Between(1, 12)] = (1, 2, 4, 4)
    num_res_blocks: Annotated[int, Between(1, 32)] = 2
    attention_resolutions: Annotated[tuple[Side, ...], Between(0, 12)] = (16,)
    """Nominal sides at which attention blocks are placed; see :class:`hqtvae_fast.model.autoencoder.Encoder`."""
    latent_channels: Width = 256
    """Channels of the encoder's output, before the 1x1 convolution to ``embed_dim``."""
    init_downsample: bool = True
    """The encoder's first convolution halves the image (and the decoder doubles it last)."""
    mid_block: bool = True
    attention: bool = True
    dropout: Share = 0.0
    embed_dim: Width = 256
    """d: the width of the finest level's codes."""
    codebook_sizes: Annotated[tuple[Count, ...], Between(2, MAX_LEVELS)] = (8192, 8192)
    """K of each level, top first; their number is the number of levels."""
    resampler: Resampler = "pixel_shuffle"
    factor: Annotated[int, Between(1, 16)] = WINDOW
    combine: Combine = "concat"
    """How the decoder reads the levels: two of them concatenated, or any number summed while upsampling."""
    commitment_weight: Annotated[float, Between(0)] = 0.25
    ema_decay: Share = 0.99
    ema_epsilon: Share = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)
        _require(
            self.combine == "sum" or self.num_levels == 2,
            f"combine: expected 'sum' with {self.num_levels} levels; got 'concat', which joins two",
        )
        stride = self.downsampling * self.factor ** (self.num_levels - 1)
        _require(
            self.resolution % stride == 0,
            f"resolution: expected a multiple of {stride} (encoder stride x levels); got {self.resolution}",
        )
        _require(self.channels % GROUPS == 0, f"channels: expected a multiple of {GROUPS}; got {self.channels}")

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

    num_layers: Layers = 12
    num_heads: Heads = 24
    attention_bias: bool = True
    mlp_bias: bool = True
    gelu: Gelu = "exact"
    """``exact`` is x*Phi(x); ``sigmoid`` is x*sigmoid(1.702x)."""
    residual_dropout: Share = 0.0
    attention_dropout: Share = 0.0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class TransformerConfig:
    """HQ-Transformer, stage 2 (eq. 5-14), in any of the paper's decoding policies.

    ``hierarchical``: a top code, then each finer level's codes in parallel (eq. 12-14). ``sequential``: the local codes
    one after the other. ``bidirectional``: all local codes from the same pass. ``global``: one code a position over a
    whole map (VQ-VAE-2's way): a prior over the top map, or, conditioned on ``codes``, over the bottom map.
    """

    codebook_sizes: Annotated[tuple[Count, ...], Between(1, MAX_LEVELS)] = (8192, 8192)
    """K of each level that is predicted, top first."""
    side: Annotated[int, Between(1, 1024)] = 8
    """Side of the map that the body walks over; side*side steps."""
    dim: Width = 1536
    body: BlocksConfig = field(default_factory=BlocksConfig)
    head: BlocksConfig = field(default_factory=lambda: BlocksConfig(num_layers=4))
    decoding: Decoding = "hierarchical"
    condition: Condition = "class"
    embedding: Embedding = "local"
    """How a local pyramid becomes one token: ``local`` averages its n code embeddings (after ``iet_layers`` blocks of
    full attention, eq. 5-8), ``reduce`` interleaves four dim/4-wide bottom embeddings (the FFHQ model)."""
    iet_layers: Layers = 0
    """N_IET. The paper's text says 1, the released checkpoints have 0."""
    num_classes: Count = 1000
    prefix_vocab_size: Count = 16384
    """Vocabulary of the prefix: text tokens, or the top level's codes when the condition is ``codes``."""
    prefix_length: Count = 64
    position: Position = "1d"
    max_positions: Count = 256
    """Rows of the position table; only the first side*side are read."""
    scrambled_middle: bool = False
    """The released sequential model over three levels (``top2mid2bot``) reads middle codes of other windows than those
    it predicts, as its reshaping takes a [2l, 2l] map for a [4l, l] one. Such a model can be evaluated but not drawn
    from, since those codes are not known yet."""
    embedding_dropout: Share = 0.0
    null_condition: bool = False
    """The prefix's table has a last row more, which stands for a withheld condition: guidance draws against it."""

    def __post_init__(self) -> None:
        check_fields(self)
        sizes, one_level = self.codebook_sizes, len(self.codebook_sizes) == 1
        for name, blocks in (("body", self.body), ("head", self.head)):
            heads = blocks.num_heads
            _require(self.dim % heads == 0, f"{name}.num_heads: expected a divisor of dim = {self.dim}; got {heads}")
        levels = "one level" if self.decoding == "global" else "two levels or more"
        _require(
            (self.decoding == "global") == one_level,
            f"codebook_sizes: expected {levels} with decoding={self.decoding!r}; got {sizes}",
        )
        _require(
            self.condition != "codes" or self.decoding == "global",
            f"decoding: expected 'global' with condition='codes'; got {self.decoding!r}",
        )
        _require(
            self.embedding != "reduce" or (len(sizes) == 2 and self.dim % WINDOW**2 == 0),
            f"embedding: expected two levels and a dim divisible by 4 with 'reduce'; got {sizes} and {self.dim}",
        )
        _require(
            not self.scrambled_middle or (self.decoding == "sequential" and len(sizes) == 3),
            f"scrambled_middle: expected decoding='sequential' over three levels; got {self.decoding!r} and {sizes}",
        )
        _require(
            not self.null_condition or self.condition in ("class", "text"),
            f"null_condition: expected condition='class' or 'text', of which it is a row; got {self.condition!r}",
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
    def prefix_entries(self) -> int:
        """Classes or tokens that a picture may be drawn from."""
        return self.num_classes if self.condition == "class" else self.prefix_vocab_size

    @property
    def null_index(self) -> int | None:
        """The class, or the token at every place of the prefix, that stands for a withheld condition; None without
        one."""
        return self.prefix_entries if self.null_condition else None

    @property
    def position_rows(self) -> int:
        """Rows of each of the two tables of ``position='2d'``."""
        return int(self.max_positions**0.5)

    @property
    def level_widths(self) -> tuple[int, ...]:
        """Codes of each level in one local pyramid: (1, 4) or (1, 4, 16)."""
        return _level_widths(self.num_levels)

    @property
    def num_local(self) -> int:
        """n: codes in one local pyramid."""
        return sum(self.level_widths)

    @property
    def local_levels(self) -> tuple[int, ...]:
        """Level of each local position: (0, 1, 1, 1, 1)."""
        return _local_levels(self.num_levels)

    @property
    def groups(self) -> tuple[range, ...]:
        """Local positions that are drawn together, in drawing order; a position sees its own and earlier groups."""
        return _groups(self.decoding, self.num_levels)


# Asked for at every step of a drawing. Functions with a cache, not cached properties: torch.compile takes none of those
# before Python 3.12, whose first call holds a lock.


@cache
def _level_widths(num_levels: int) -> tuple[int, ...]:
    return tuple(WINDOW ** (2 * level) for level in range(num_levels))


@cache
def _local_levels(num_levels: int) -> tuple[int, ...]:
    return tuple(level for level, width in enumerate(_level_widths(num_levels)) for _ in range(width))


@cache
def _groups(decoding: Decoding, num_levels: int) -> tuple[range, ...]:
    widths = _level_widths(num_levels)
    if decoding == "sequential":
        return tuple(range(q, q + 1) for q in range(sum(widths)))
    if decoding == "bidirectional":
        return (range(sum(widths)),)
    ends = [sum(widths[: level + 1]) for level in range(num_levels)]
    return tuple(range(end - width, end) for end, width in zip(ends, widths, strict=True))


@dataclass(frozen=True)
class HQTVAEConfig:
    """A pipeline: stage 1, and stage 2 where there is one.

    ``refiner`` is the second transformer of global conditioning: it draws the bottom map given the top map that
    ``transformer`` has drawn.
    """

    vae: VAEConfig = field(default_factory=VAEConfig)
    transformer: TransformerConfig | None = field(default_factory=TransformerConfig)
    refiner: TransformerConfig | None = None
    id2label: Names = field(default=(), repr=False)
    """No part of the repr, which tells what weights are for."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_names(self.id2label, self.classes.count or None)
        if self.transformer is not None:
            self._check_fits("transformer", self.transformer)
        if self.refiner is not None:
            _require(self.refiner.condition == "codes", "refiner: expected condition='codes'")
            _require(
                self.transformer is not None and self.transformer.decoding == "global",
                "refiner: expected a transformer with decoding='global' before it",
            )
            self._check_fits("refiner", self.refiner)

    @property
    def classes(self) -> Classes:
        """The classes that the model is drawn from, none where it is not."""
        stage2 = self.transformer
        count = stage2.num_classes if stage2 is not None and stage2.condition == "class" else 0
        return Classes(count, self.id2label)

    def _check_fits(self, name: str, stage2: TransformerConfig) -> None:
        first = first_level(stage2)
        levels = slice(first, first + stage2.num_levels)
        sizes, sides = self.vae.codebook_sizes[levels], self.vae.level_sides[levels]
        wanted = stage2.codebook_sizes
        _require(sizes == wanted, f"{name}.codebook_sizes: expected the VAE's {sizes}; got {wanted}")
        _require(sides[0] == stage2.side, f"{name}.side: expected the VAE's {sides[0]}; got {stage2.side}")
        if first > 0:
            codes, positions = self.vae.codebook_sizes[0], self.vae.level_sides[0] ** 2
            for field_name, fits in (("prefix_vocab_size", codes), ("prefix_length", positions)):
                got = getattr(stage2, field_name)
                _require(got == fits, f"{name}.{field_name}: expected {fits}, of the top level's codes; got {got}")
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


def check_condition(config: HQTVAEConfig, given: Sequence[str]) -> str | None:
    """What a drawing is conditioned on: ``class_labels``, ``prompt`` or None. ValueError where something else is
    ``given``, by the same names, or where the model does not draw."""
    if config.transformer is None:
        raise ValueError("this checkpoint has stage 1 only: it can encode and decode, but not draw")
    wanted = {"class": "class_labels", "text": "prompt"}.get(config.transformer.condition)
    if list(given) != ([wanted] if wanted else []):
        kind = {"class_labels": "class-conditional", "prompt": "text-conditional", None: "not conditional on either"}
        got = " and ".join(given) or "none"
        raise ValueError(f"this model is {kind[wanted]}: expected {wanted or 'none'}; got {got}")
    return wanted


def to_dict(config: HQTVAEConfig) -> dict[str, Any]:
    """Plain dictionaries and lists, as written to ``config.json``: names of classes as a mapping from labels, if there
    are any."""
    data = dataclasses.asdict(config)
    names = names_to_mapping(data.pop("id2label"))
    return {**data, "id2label": names} if names else data


def from_dict(data: dict[str, Any]) -> HQTVAEConfig:
    """The inverse of :func:`to_dict`. Unknown or missing sections raise :class:`ConfigError` naming the field."""
    _require(isinstance(data, dict), f"config: expected a mapping; got {type(data).__name__}")
    _require("vae" in data, "config: expected a field 'vae', found none")
    config = parse(HQTVAEConfig, {"transformer": None, **data, "id2label": ()})
    classes = 1 if config.transformer is None else config.transformer.num_classes
    return dataclasses.replace(config, id2label=names_from_mapping(data.get("id2label", {}), classes))
