"""The tensors of a released training file under the names that its model gives them."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from torch import Tensor

# What a training file carries besides the two stages.
_DROPPED = ("stage1.discriminator.", "stage1.perceptual_loss.", "discriminator.", "perceptual_loss.")
_WRAPPERS = re.compile(r"^(?:(?:module|model|_orig_mod)\.)+|(?<=\.)_orig_mod\.|(?<=\.)module\.")
"""Of data parallelism, Lightning and torch.compile: around the whole model, or around a part of it."""
_AVERAGES = re.compile(r"^(?:(?:module|model|_orig_mod)\.)*(ema_model|model_ema|ema)\.")


def plain_keys(state: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Keys as ``stage1.*`` and ``stage2.*``, without wrappers' prefixes, discriminator, or counters.

    Of weights and an average of them beside each other, the weights are taken; a warning says which.
    """
    averages = {key: match for key in state if (match := _AVERAGES.match(key))}
    if averages:
        name = next(iter(averages.values())).group(1) + "."
        plain = {key: value for key, value in state.items() if key not in averages}
        if _names(plain):
            state, what = plain, f"the weights without {name!r} are taken, not this EMA copy"
        else:
            state = {key[match.end() :]: state[key] for key, match in averages.items()}
            what = f"the EMA copy under {name!r} is taken: it holds no other"
        warnings.warn(f"{file}: {what}", stacklevel=2)
    return _names(state)


def _names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for key, value in state.items():
        name = _WRAPPERS.sub("", key)
        counter = value.ndim == 0 and not value.is_floating_point()  # of updates; no weight is one integer
        if not name.startswith(_DROPPED) and not counter:
            found[re.sub(r"^(stage1\.generator|generator)\.", "stage1.", name)] = value
    return found
