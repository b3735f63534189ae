"""GroupNorm with SiLU in plain torch: the definition that kernels are held to, for any layout."""

from __future__ import annotations

import torch
from torch import Tensor

from hqtvae_fast.ops.kernels.round_map.reference import round_map


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    shift: Tensor | None = None,
    form: str | None = None,
    scale: float = 1.0,
    zero: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result and x + residual + shift (empty without a residual), in x's dtype and layout; means and 1 / deviations
    [B, G]. Sums are rounded once, to x's dtype where they are stored. ``form`` (uint8, int8, fp8): the result in
    8 bits, of the numbers that it has in x's dtype."""
    wide = x if shift is None else x.to(torch.promote_types(x.dtype, torch.float32)) + shift[:, None, None]
    total = torch.empty(0, dtype=x.dtype, device=x.device) if residual is None else (wide + residual).to(x.dtype)
    groups_BSGE = _groups(wide if residual is None else total, num_groups)
    variance, mean = torch.var_mean(groups_BSGE, dim=(1, 3), correction=0)
    rstd = (variance + eps).rsqrt()
    n_BSGE = (
        _normalised(groups_BSGE, mean, rstd).mul_(_channels(weight, groups_BSGE)).add_(_channels(bias, groups_BSGE))
    )
    if silu:
        n_BSGE = torch.nn.functional.silu(n_BSGE, inplace=True)
    return in_form(_like(n_BSGE, x), form, scale, zero), total, mean, rstd


def in_form(y: Tensor, form: str | None, scale: float, zero: int) -> Tensor:
    """The result as it is asked for."""
    return y if form is None else round_map(y, None, None, form, scale, zero)


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x (in its dtype and layout), of weight and of bias."""
    G = mean.shape[1]
    unit_BSGE = _normalised(_groups(x, G), mean, rstd)
    weight_GE, bias_GE = _channels(weight, unit_BSGE), _channels(bias, unit_BSGE)
    grad_BSGE = _groups(dy, G)
    if silu:
        grad_BSGE = torch.ops.aten.silu_backward(grad_BSGE, unit_BSGE * weight_GE + bias_GE)
    dweight, dbias = (grad_BSGE * unit_BSGE).sum(dim=(0, 1)).flatten(), grad_BSGE.sum(dim=(0, 1)).flatten()
    along_BSGE = grad_BSGE * weight_GE
    dot_B1G1 = (along_BSGE * unit_BSGE).mean(dim=(1, 3), keepdim=True)
    dx_BSGE = (along_BSGE - along_BSGE.mean(dim=(1, 3), keepdim=True) - unit_BSGE * dot_B1G1) * rstd[:, None, :, None]
    return _like(dx_BSGE, x), dweight.to(weight.dtype), dbias.to(bias.dtype)


def _groups(x_BCHW: Tensor, G: int) -> Tensor:
    """[B, H*W, G, C/G] in fp32 at least: for channels-last fp32 maps a view."""
    B, C = x_BCHW.shape[:2]
    x_BSC = x_BCHW.permute(0, 2, 3, 1).reshape(B, -1, C)
    return x_BSC.to(torch.promote_types(x_BCHW.dtype, torch.float32)).unflatten(2, (G, C // G))


def _normalised(x_BSGE: Tensor, mean_BG: Tensor, rstd_BG: Tensor) -> Tensor:
    return (x_BSGE - mean_BG[:, None, :, None]).mul_(rstd_BG[:, None, :, None])


def _channels(parameter_C: Tensor, groups_BSGE: Tensor) -> Tensor:
    return parameter_C.to(groups_BSGE.dtype).unflatten(0, tuple(groups_BSGE.shape[2:]))


def _like(values_BSGE: Tensor, x_BCHW: Tensor) -> Tensor:
    B, C, H, W = x_BCHW.shape
    return torch.empty_like(x_BCHW).copy_(values_BSGE.reshape(B, H, W, C).permute(0, 3, 1, 2))
