"""CLIP with a vision transformer, from a local folder in Hugging Face's format.

``config.json``, ``model.safetensors`` (or ``pytorch_model.bin``) and ``tokenizer.json``, as the repository
``openai/clip-vit-base-patch32`` has them. Written here so that neither transformers nor torchvision is needed; tensors
keep the names of the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from hqtvae_fast.evaluate.extractors.resize import antialiased
from hqtvae_fast.evaluate.extractors.weights import fill
from hqtvae_fast.fields import Between, ConfigError, check_fields, parse
from hqtvae_fast.files import parse_json, read_text
from hqtvae_fast.files.kinds import refuse_others
from hqtvae_fast.files.tensors import read_state
from hqtvae_fast.modes import single_precision
from hqtvae_fast.text import open_tokenizer

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training pictures, RGB in [0, 1]
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
Width = Annotated[int, Between(1, 16_384)]


@dataclass(frozen=True)
class TowerConfig:
    """What of a ``config.json`` is read, and what it may leave out."""

    hidden_size: Width = 512
    intermediate_size: Annotated[int, Between(1, 65_536)] = 2048
    num_attention_heads: Annotated[int, Between(1, 1024)] = 8
    num_hidden_layers: Annotated[int, Between(1, 256)] = 12
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: Annotated[float, Between(0, 1)] = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)
        if self.hidden_size % self.num_attention_heads:
            expected = f"expected a divisor of hidden_size = {self.hidden_size}"
            raise ConfigError(f"num_attention_heads: {expected}; got {self.num_attention_heads}")


@dataclass(frozen=True)
class TextConfig(TowerConfig):
    vocab_size: Annotated[int, Between(1, 1_048_576)] = 49408
    max_position_embeddings: Annotated[int, Between(1, 65_536)] = 77
    eos_token_id: Annotated[int, Between(0)] = 49407


@dataclass(frozen=True)
class VisionConfig(TowerConfig):
    hidden_size: Width = 768
    intermediate_size: Annotated[int, Between(1, 65_536)] = 3072
    num_attention_heads: Annotated[int, Between(1, 1024)] = 12
    image_size: Annotated[int, Between(1, 8192)] = 224
    patch_size: Annotated[int, Between(1, 8192)] = 32


@dataclass(frozen=True)
class CLIPConfig:
    text_config: TextConfig = TextConfig()
    vision_config: VisionConfig = VisionConfig()
    projection_dim: Width = 512


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        B, N, D = x.shape
        q, k, v = (
            project(x).view(B, N, self.heads, D // self.heads).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).reshape(B, N, D))


class Layer(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, activation: str, epsilon: float) -> None:
        super().__init__()
        self.activation = activation
        self.self_attn = Attention(width, heads)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, epsilon), nn.LayerNorm(width, epsilon)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), causal)
        hidden = self.mlp["fc1"](self.layer_norm2(x))
        hidden = F.gelu(hidden) if self.activation == "gelu" else hidden * torch.sigmoid(1.702 * hidden)
        return x + self.mlp["fc2"](hidden)


def _encoder(config: TowerConfig) -> nn.ModuleDict:
    sizes = (config.hidden_size, config.intermediate_size, config.num_attention_heads)
    layers = (Layer(*sizes, config.hidden_act, config.layer_norm_eps) for _ in range(config.num_hidden_layers))
    return nn.ModuleDict({"layers": nn.ModuleList(layers)})


class PictureTower(nn.Module):
    """Pictures, uint8 [B, 3, R, R], to CLIP's embeddings [B, d], of unit length."""

    mean: Tensor
    deviation: Tensor

    @single_precision()
    def __init__(self, config: VisionConfig, width: int) -> None:
        super().__init__()
        size, self.side, patch = config.hidden_size, config.image_size, config.patch_size
        self.vision_model = nn.Module()
        self.vision_model.embeddings = nn.Module()
        self.vision_model.embeddings.class_embedding = nn.Parameter(torch.zeros(size, dtype=torch.float32))
        self.vision_model.embeddings.patch_embedding = nn.Conv2d(3, size, patch, stride=patch, bias=False)
        self.vision_model.embeddings.position_embedding = nn.Embedding((self.side // patch) ** 2 + 1, size)
        self.vision_model.pre_layrnorm = nn.LayerNorm(size)  # spelt so in the files
        self.vision_model.encoder = _encoder(config)
        self.vision_model.post_layernorm = nn.LayerNorm(size)
        self.visual_projection = nn.Linear(size, width, bias=False)
        self.register_buffer("mean", torch.tensor(MEAN, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION, dtype=torch.float32).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        model: Any = self.vision_model
        pixels = (antialiased(images, self.side).round() / 255 - self.mean) / self.deviation
        patches = model.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = model.embeddings.class_embedding.expand(len(patches), 1, -1)
        x = torch.cat([first, patches], dim=1) + model.embeddings.position_embedding.weight
        x = model.pre_layrnorm(x)
        for layer in model.encoder["layers"]:
            x = layer(x, causal=False)
        return F.normalize(self.visual_projection(model.post_layernorm(x[:, 0])), dim=-1)


class TextTower(nn.Module):
    """Tokens [B, T] to CLIP's embeddings [B, d], of unit length."""

    @single_precision()
    def __init__(self, config: TextConfig, width: int) -> None:
        super().__init__()
        size, self.length, self.end = config.hidden_size, config.max_position_embeddings, config.eos_token_id
        self.text_model = nn.Module()
        self.text_model.embeddings = nn.Module()
        self.text_model.embeddings.token_embedding = nn.Embedding(config.vocab_size, size)
        self.text_model.embeddings.position_embedding = nn.Embedding(self.length, size)
        self.text_model.encoder = _encoder(config)
        self.text_model.final_layer_norm = nn.LayerNorm(size)
        self.text_projection = nn.Linear(size, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        model: Any = self.text_model
        x = model.embeddings.token_embedding(tokens)
        x = x + model.embeddings.position_embedding.weight[: tokens.shape[1]]
        for layer in model.encoder["layers"]:
            x = layer(x, causal=True)
        # The text's embedding is read at its end. Configs of 2021 name 2 as the end's token; the end then is the
        # token of the highest number, as in OpenAI's code.
        ends = tokens.argmax(dim=1) if self.end == 2 else (tokens == self.end).int().argmax(dim=1)
        last = model.final_layer_norm(x[torch.arange(len(x), dtype=torch.int64, device=x.device), ends])
        return F.normalize(self.text_projection(last), dim=-1)


class CLIP:
    """Both towers and the tokenizer."""

    def __init__(self, pictures: PictureTower, texts: TextTower, tokenizer: Tokenizer) -> None:
        self.pictures, self.texts, self.tokenizer = pictures, texts, tokenizer

    def to(self, device: torch.device | str) -> CLIP:
        self.pictures.to(device)
        self.texts.to(device)
        return self

    @torch.no_grad()
    def similarities(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosine of each picture, uint8 [B, 3, R, R], and its caption: [B], in [-1, 1]."""
        device = self.pictures.visual_projection.weight.device
        pictures, texts = self.pictures(images.to(device)), self.texts(self.tokens(captions).to(device))
        return (pictures * texts).sum(dim=-1)

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """[B, T], T the longest caption's tokens up to the model's; a longer caption is cut, its end mark kept."""
        length = self.texts.length
        encoded = [encoding.ids for encoding in self.tokenizer.encode_batch(list(captions))]
        cut = [ids if len(ids) <= length else [*ids[: length - 1], ids[-1]] for ids in encoded]
        longest = max(map(len, cut))
        # Padding stands after the end mark, where causal attention and the reading of the end do not see it.
        return torch.tensor([ids + [0] * (longest - len(ids)) for ids in cut], dtype=torch.int64, device="cpu")


def load_clip(folder: Path) -> CLIP:
    """From a local folder. ValueError naming the file that is missing or does not fit."""
    files = {name: folder / name for name in ("config.json", "tokenizer.json")}
    for file in files.values():
        if not file.is_file():
            raise ValueError(f"{file}: no such file; expected a CLIP folder in Hugging Face's format")
    refuse_others(files["config.json"], "a configuration")
    data = parse_json(read_text(files["config.json"]), files["config.json"])
    try:
        config = parse(CLIPConfig, data, others=True)
    except ConfigError as error:
        raise ConfigError(f"{files['config.json']}: {error}") from error
    pictures = PictureTower(config.vision_config, config.projection_dim)
    texts = TextTower(config.text_config, config.projection_dim)
    weights = next((file for file in _weight_files(folder) if file.is_file()), _weight_files(folder)[0])
    state = read_state(weights)
    for tower in (pictures, texts):
        fill(tower, state, weights)
        tower.eval().requires_grad_(False)
    return CLIP(pictures, texts, open_tokenizer(files["tokenizer.json"]))


def _weight_files(folder: Path) -> list[Path]:
    return [folder / "model.safetensors", folder / "pytorch_model.bin"]
