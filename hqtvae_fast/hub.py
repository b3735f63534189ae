"""A checkpoint on the Hugging Face Hub, with a model card that says what it is."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.checkpoint import Checkpoint
from hqtvae_fast.checkpoint_config import condition_words
from hqtvae_fast.classes import Classes
from hqtvae_fast.config import HQTVAEConfig

CARD_FILE = "README.md"
TEMPLATE = Path(__file__).parent / "assets" / "model_card.md"
LISTED = 100  # names of classes
NOT_SAID = "Not said by whoever uploaded this model."

_CALLS = {
    "class": "pipe(class_labels=CLASSES, num_images=4).images[0].save('picture.png')",
    "text": "pipe(prompt='a red vase on a table', num_images=4).images[0].save('picture.png')",
    "none": "pipe(num_images=4).images[0].save('picture.png')",
    "codes": "pipe(given_top_codes=top_codes, num_images=4).images[0].save('picture.png')",
}
_VAE_CALL = "codes = pipe.encode([picture])  # a PIL image; top level first\npipe.decode(codes)[0].save('rebuilt.png')"


@dataclass(frozen=True)
class CardFacts:
    """What a card says that the model itself does not know. ``license``: the Hub's identifier, such as apache-2.0."""

    license: str | None = None
    trained_on: str = NOT_SAID
    evaluation: str = NOT_SAID
    limits: str = NOT_SAID


def model_card(checkpoint: Checkpoint, repo_id: str, facts: CardFacts | None = None) -> str:
    """The card's text, the Hub's metadata first."""
    from huggingface_hub import ModelCardData  # a second of imports that local work does not need

    facts, config = facts or CardFacts(), checkpoint.config
    condition = None if config.transformer is None else config.transformer.condition
    data = ModelCardData(
        license=facts.license,
        library_name="hqtvae_fast",
        pipeline_tag=_task(condition),
        tags=["hq-tvae", "image-generation", "autoregressive", "vq-vae"],
    )
    text = TEMPLATE.read_text(encoding="utf-8").format(
        name=repo_id.rpartition("/")[2],
        repo_id=repo_id,
        condition=condition_words(config),
        classes=_class_list(config.classes),
        call=_call(config),
        **_figures(checkpoint),
        trained_on=facts.trained_on,
        evaluation=facts.evaluation,
        limits=facts.limits,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def _call(config: HQTVAEConfig) -> str:
    """What draws, or codes, a picture."""
    if config.transformer is None:
        return _VAE_CALL
    two = [config.classes.name(label) or label for label in config.classes.trained[:2]]
    return _CALLS[config.transformer.condition].replace("CLASSES", repr(two))


def _class_list(classes: Classes) -> str:
    if not classes.names:
        return f"{classes.count:,}, without names" if classes.count else "none"
    names = [f"`{name}`".replace("|", "\\|") for name in classes.names if name is not None]
    more = f" and {len(names) - LISTED:,} more, in `config.json`" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _task(condition: str | None) -> str:
    """The Hub's name of what the model does."""
    if condition is None:
        return "image-to-image"
    return "text-to-image" if condition == "text" else "unconditional-image-generation"


def _figures(checkpoint: Checkpoint) -> dict[str, Any]:
    config: HQTVAEConfig = checkpoint.config
    stage2, parts = config.transformer, checkpoint.modules()
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for part in parts.values() for p in part.parameters()})
    drawing = [part for name, part in parts.items() if name != "vae"]
    return {
        "resolution": config.vae.resolution,
        "codes": " + ".join(f"{side}x{side}" for side in config.vae.level_sides),
        "codebooks": " + ".join(f"{size:,}" for size in config.vae.codebook_sizes),
        "vae_parameters": f"{_count(parts['vae']):,}",
        "transformer_parameters": f"{sum(map(_count, drawing)):,}" if drawing else "none",
        "decoding": "none" if stage2 is None else stage2.decoding,
        "dtype": ", ".join(dtypes),
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def push(
    checkpoint: Checkpoint,
    repo_id: str,
    facts: CardFacts | None = None,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload HQ-TVAE with hqtvae_fast",
    create_pr: bool = False,
) -> str:
    """Upload to a repository, which is made if there is none; returns the commit's address.

    A card that is there stays as it is, unless ``facts`` are given. ``revision``: a branch, made if there is none.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(name, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save(checkpoint, folder)
        if facts is not None or not api.file_exists(name, CARD_FILE, revision=revision):
            (Path(folder) / CARD_FILE).write_text(model_card(checkpoint, name, facts), encoding="utf-8")
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=commit_message, revision=revision, create_pr=create_pr
        )
    return commit.commit_url
