"""Uploading to the Hub: the files, the card, and what is asked of huggingface_hub. Nothing is sent anywhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from conftest import golden_pipeline
from huggingface_hub import ModelCard

from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast import checkpoint as checkpoints
from hqtvae_fast.hub import NOT_SAID, CardFacts, model_card


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that keeps what it is sent in a folder, and the calls it had."""
    state = SimpleNamespace(folder=tmp_path / "hub", calls=[], files=set())

    class Api:
        def __init__(self, token=None):
            state.calls.append(("token", token))

        def create_repo(self, repo_id, *, private, exist_ok):
            assert exist_ok
            state.calls.append(("create_repo", repo_id, private))
            return SimpleNamespace(repo_id=f"me/{repo_id}" if "/" not in repo_id else repo_id)

        def create_branch(self, repo_id, *, branch, exist_ok):
            assert exist_ok
            state.calls.append(("create_branch", repo_id, branch))

        def file_exists(self, repo_id, filename, *, revision):
            return filename in state.files

        def upload_folder(self, *, repo_id, folder_path, commit_message, revision, create_pr):
            state.calls.append(("upload_folder", repo_id, commit_message, revision, create_pr))
            Path(folder_path).rename(state.folder)
            Path(folder_path).mkdir()
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return state


def test_what_is_uploaded_opens_and_draws_the_same(hub, class_pipeline):
    options = {"private": True, "token": "secret", "revision": "fp32", "commit_message": "first", "create_pr": True}
    address = class_pipeline.push_to_hub("tiny", CardFacts(license="apache-2.0"), **options)
    assert address == "https://hub/me/tiny/commit/1"
    assert hub.calls == [
        ("token", "secret"),
        ("create_repo", "tiny", True),
        ("create_branch", "me/tiny", "fp32"),
        ("upload_folder", "me/tiny", "first", "fp32", True),
    ]
    assert sorted(file.name for file in hub.folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = HQTVAEPipeline.from_pretrained(hub.folder, device="cpu", dtype="fp32")
    wanted, got = (pipe(3, output_type="codes", progress=False).codes for pipe in (class_pipeline, again))
    assert all(torch.equal(left, right) for left, right in zip(wanted, got, strict=True))


def test_a_card_that_is_there_stays(hub, class_pipeline):
    hub.files.add("README.md")
    class_pipeline.push_to_hub("me/tiny")
    assert sorted(file.name for file in hub.folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_card_is_replaced_where_facts_are_given(hub, class_pipeline):
    hub.files.add("README.md")
    class_pipeline.push_to_hub("me/tiny", CardFacts(trained_on="Sixteen pictures."))
    assert "Sixteen pictures." in (hub.folder / "README.md").read_text()


@pytest.mark.parametrize(
    "case, task, words",
    [("class_parallel", "unconditional-image-generation", ("class labels", "class_labels=[0, 1]", "hierarchical")),
     ("text_parallel", "text-to-image", ("descriptions", "prompt='a red vase on a table'")),
     ("uncond_reduce", "unconditional-image-generation", ("nothing in particular", "pipe(num_images=4)")),
     ("global_bottom", "unconditional-image-generation", ("given_top_codes=top_codes", "global")),
     ("stage1_avgpool", "image-to-image", ("it codes and decodes only", "pipe.encode([picture])", "| none |"))],
)  # fmt: skip
def test_cards_say_what_the_model_is(case, task, words):
    pipe = golden_pipeline(case)
    made = checkpoints.Checkpoint(pipe.config, pipe.vae, pipe.transformer)
    card = ModelCard(model_card(made, "someone/tiny-model", CardFacts(license="mit")))
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == ("mit", "hqtvae_fast", task)
    for word in ("# tiny-model", 'from_pretrained("someone/tiny-model")', "64x64", "float32", NOT_SAID, *words):
        assert word in card.text
    vae = sum(parameter.numel() for parameter in pipe.vae.parameters())
    assert f"| parameters, HQ-VAE | {vae:,} |" in card.text
    assert "{" not in card.text


def test_a_card_without_a_licence_names_none(class_pipeline):
    card = ModelCard(model_card(class_pipeline._checkpoint, "a/b"))
    assert card.data.license is None
