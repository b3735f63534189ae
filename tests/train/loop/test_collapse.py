"""What is said of a run that goes wrong, and that nothing is said of one that goes well."""

from __future__ import annotations

import math
import random

import pytest

from hqtvae_fast.train.loop.watch import Watch


def said(figures, *, updates=1500, fresh=True, every=1) -> list[tuple[int, str]]:
    """What a watch says of updates whose metrics ``figures(step)`` gives, and when."""
    watch, noise = Watch(fresh=fresh), random.Random(0)
    return [
        (step, message)
        for step in range(every, updates + 1, every)
        for message in watch.look(step, figures(step, noise.uniform(-1, 1)))
    ]


def healthy(step, noise):
    loss = 0.02 + 0.4 * math.exp(-step / 150)
    return {"loss": loss * (1 + 0.3 * noise), "usage_0": 0.5, "perplexity_0": 20.0, "usage_1": 0.2, "perplexity_1": 9.0}


@pytest.mark.parametrize("every", [1, 10])
def test_nothing_is_said_of_a_run_that_goes_well(every):
    assert said(healthy, every=every) == []
    assert said(lambda step, noise: {"loss": 7 - 3 * step / 1500 + 0.2 * noise}, every=every) == []


def test_nothing_is_said_of_few_updates():
    assert said(lambda step, noise: {"loss": 5.0, "usage_0": 0.01, "perplexity_0": 1.0}, updates=150) == []


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("figures", [{"usage_1": 0.03, "perplexity_1": 20.0}, {"usage_1": 0.9, "perplexity_1": 1.2}])
def test_a_level_that_collapses_is_said_once(figures, every):
    ((step, message),) = said(lambda at, noise: {**healthy(at, noise), **(figures if at > 300 else {})}, every=every)
    assert 500 <= step <= 520
    assert ("only 3% of" if figures["usage_1"] == 0.03 else "nearly always the same one") in message
    assert "bottom" in message
    assert "restart_unused" in message


def test_what_is_done_already_is_no_advice():
    watch = Watch(restarts=True)
    (message,) = [told for step in range(300) for told in watch.look(step, {"usage_0": 0.01, "loss": 1 / (step + 1)})]
    assert "restart_unused" not in message
    assert "smaller codebooks" in message


@pytest.mark.slow
def test_a_real_collapse_is_told(tmp_path, capsys):
    """Pictures of four colours: a code each is all there is to say."""
    pytest.importorskip("accelerate", reason="training needs the train extra")
    from PIL import Image
    from small_runs import VAE, losses, stage1

    from hqtvae_fast.train.run import train_stage1

    (tmp_path / "pictures").mkdir()
    for index, colour in enumerate(((200, 30, 30), (30, 200, 30), (30, 30, 200), (90, 90, 90))):
        Image.new("RGB", (16, 16), colour).save(tmp_path / "pictures" / f"{index}.png")
    model = {**VAE, "codebook_sizes": [256, 256]}
    changes = {"model": model, "steps": 320, "validation": "none", "adversarial": 0.0, "save_every": 0}
    train_stage1(stage1(tmp_path / "pictures", tmp_path / "out", **changes))
    told = [record["warning"] for record in losses(tmp_path / "out") if "warning" in record]
    assert told
    assert all("codes have been in use" in message or "nearly always the same" in message for message in told)
    assert f"warning: {told[0]}" in capsys.readouterr().err


def test_each_level_is_told_of():
    dead = {"usage_0": 0.01, "usage_1": 0.01, "usage_2": 0.01}
    told = [message for _, message in said(lambda step, noise: {**healthy(step, noise), **dead})]
    assert [next(name for name in ("top", "middle", "bottom") if name in message) for message in told] == [
        "top",
        "middle",
        "bottom",
    ]


def test_codes_that_come_into_use_are_no_collapse():
    assert said(lambda step, noise: {**healthy(step, noise), "usage_0": 0.01 if step % 150 else 0.4}) == []


@pytest.mark.parametrize("every", [1, 10])
def test_a_loss_that_rises_is_said(every):
    def figures(step, noise):
        return {"loss": (0.1 if step < 600 else 0.1 + (step - 600) / 3000) * (1 + 0.2 * noise)}

    ((step, message),) = said(figures, fresh=False, every=every)
    assert 750 < step < 1000
    assert "rises" in message
    assert "lower learning_rate" in message


def test_a_loss_that_rises_from_the_first_update_on_is_said():
    ((step, message),) = said(lambda step, noise: {"loss": 7 + step / 50}, updates=800)
    assert "rises" in message
    assert step < 500


def test_the_picture_s_error_counts_not_a_discriminator_that_sets_in():
    assert said(lambda step, noise: {**healthy(step, noise), "mse": healthy(step, 0)["loss"], "loss": step}) == []


@pytest.mark.parametrize("every", [1, 10])
def test_a_loss_that_never_falls_is_said(every):
    ((step, message),) = said(lambda step, noise: {"loss": 6.9 + 0.1 * noise}, every=every)
    assert 300 <= step <= 400
    assert "no lower than at the start" in message
    assert "learning_rate" in message


def test_a_model_that_was_trained_before_may_stay_where_it_is():
    assert said(lambda step, noise: {"loss": 6.9 + 0.1 * noise}, fresh=False) == []
