"""What 8-bit convolutions do to decoded pictures: int8 and fp8 in the decoder, beside bf16, against fp32.

``python -m benchmarks.studies.decode_quantization CHECKPOINT --data pictures/``. The decoder's 3x3 convolutions and
its folded upsamplings (all but the last convolution, which makes pixels) are computed as
:func:`hqtvae_fast.ops.quantized_conv.quantized_conv` computes them, by its reference: weights with a scale an output
channel; inputs with a scale a map, or one for each 32 channels, so that the largest value of the first ``--calibrate``
pictures is the format's largest number; exact int32 sums for int8, fp32 sums for fp8. Their outputs are rounded to
bf16; everything else is fp32. It says nothing about speed.

Result: decode_quantization.md.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.measuring.environment import describe
from benchmarks.measuring.schema import Results, Row, write
from hqtvae_fast import HQTVAEPipeline
from hqtvae_fast.engine import decode_codes
from hqtvae_fast.model import HQVAE
from hqtvae_fast.model.autoencoder import Upsample
from hqtvae_fast.model.convolution import Conv3x3
from hqtvae_fast.ops.kernels.quantized_conv import LARGEST, quantize, quantize_weights, quantized_conv
from hqtvae_fast.ops.kernels.upsample_conv import fold_upsampling, upsample_conv
from hqtvae_fast.pictures.images import psnr

BLOCK = 32
FORMATS = {"int8": torch.int8, "fp8 e4m3": torch.float8_e4m3fn}
ROWS = (("bf16", "none"), *((name, scale) for name in FORMATS for scale in ("map", f"{BLOCK} channels")))
Largest = dict[str, Tensor]
"""Of each layer's input channels, by the layer's name in the decoder: [C]."""


class Quantized(nn.Module):
    """A convolution in 8 bits. ``largest`` [C]: of its input's channels."""

    def __init__(self, layer: Conv3x3 | Upsample, form: torch.dtype, largest: Tensor, block: int) -> None:
        super().__init__()
        conv = _conv_of(layer)
        assert conv.bias is not None
        self.form, self.bias = form, conv.bias
        self.numbers, self.scales = quantize_weights(_weights(layer), form)
        whole = block if len(largest) % block == 0 else len(largest)
        self.x_scales = largest.view(-1, whole).amax(dim=1).clamp_(min=1e-12) / LARGEST[form]

    def forward(self, x: Tensor) -> Tensor:
        numbers = quantize(x, self.x_scales, self.form)
        y = quantized_conv(numbers, self.numbers, self.x_scales, self.scales, self.bias, backend="reference")
        return y.float()  # from bf16


class Rounded(nn.Module):
    """A convolution of bf16 numbers, summed in fp32."""

    def __init__(self, layer: Conv3x3 | Upsample) -> None:
        super().__init__()
        conv = _conv_of(layer)
        assert conv.bias is not None
        self.doubled, self.bias = isinstance(layer, Upsample), _round(conv.bias)
        self.weight = _round(_weights(layer))

    def forward(self, x: Tensor) -> Tensor:
        if self.doubled:
            return _round(upsample_conv(_round(x), self.weight, self.bias, backend="reference"))
        return _round(torch.conv2d(_round(x), self.weight, self.bias, padding=1))


def _conv_of(layer: Conv3x3 | Upsample) -> nn.Conv2d:
    return layer.conv if isinstance(layer, Upsample) else layer


def _weights(layer: Conv3x3 | Upsample) -> Tensor:
    return fold_upsampling(layer.conv.weight) if isinstance(layer, Upsample) else layer.weight


def _round(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def layers(vae: HQVAE) -> Iterator[tuple[str, Conv3x3 | Upsample]]:
    """Those that are computed in 8 bits, by their names in the decoder."""
    for name, module in vae.decoder.named_modules():
        if isinstance(module, (Conv3x3, Upsample)):
            yield name, module


def calibrate(vae: HQVAE, codes: Sequence[Tensor]) -> Largest:
    """The largest absolute value of each channel that each layer reads, over the pictures with these codes."""
    found: Largest = {}

    def note(name: str, x: Tensor) -> None:
        largest = x.abs().amax(dim=(0, 2, 3))
        found[name] = torch.maximum(found[name], largest) if name in found else largest

    hooks = [
        layer.register_forward_pre_hook(lambda module, inputs, name=name: note(name, inputs[0]))
        for name, layer in layers(vae)
    ]
    decode_codes(vae, codes)
    for hook in hooks:
        hook.remove()
    return found


def with_convolutions(vae: HQVAE, kind: str, scale: str, largest: Largest) -> HQVAE:
    """A copy of the VAE whose decoder's convolutions are of one of ROWS."""
    other = copy.deepcopy(vae)
    for name, layer in list(layers(other)):
        parent, _, own = name.rpartition(".")
        block = BLOCK if scale != "map" else _weights(layer).shape[1]
        made = Rounded(layer) if kind == "bf16" else Quantized(layer, FORMATS[kind], largest[name], block)
        setattr(other.decoder.get_submodule(parent), own, made)
    return other


def measure(vae: HQVAE, pictures: Tensor, calibration: Tensor) -> list[Row]:
    """A row for fp32 and one for each of ROWS, on ``pictures`` [B, 3, R, R] in [-1, 1].

    ``calibration``: others, for the scales. Samples are mean squared differences from fp32's pictures in [0, 1]; PSNR
    in dB is in ``work``: of those (mean and lowest; None for fp32), and against the originals.
    """
    codes = vae.encode(pictures)
    largest = calibrate(vae, vae.encode(calibration))
    originals, exact = pictures * 0.5 + 0.5, decode_codes(vae, codes)
    rows = [_row("fp32", "none", exact, exact, originals)]
    for kind, scale in ROWS:
        images = decode_codes(with_convolutions(vae, kind, scale, largest), codes)
        rows.append(_row(kind, scale, images, exact, originals))
    return rows


def _row(kind: str, scale: str, images: Tensor, exact: Tensor, originals: Tensor) -> Row:
    errors, beside = (images - exact).square().flatten(1).mean(dim=1), psnr(images, exact)
    same = bool(beside.isinf().all())
    work = {"psnr": None if same else float(beside.mean()), "lowest_psnr": None if same else float(beside.min())}
    work["psnr_of_originals"] = float(psnr(images, originals).mean())
    return Row("decoded pictures", f"{kind}, scale: {scale}", (tuple(errors.tolist()),), unit="MSE", work=work)


def _pictures(paths: Sequence[str], resolution: int, count: int) -> Tensor:
    """The first ``count`` whole ones."""
    from hqtvae_fast.train.data import open_source
    from hqtvae_fast.train.data.squares import CentreSquares

    whole: list[Tensor] = []
    for image, broken in CentreSquares(open_source([Path(path) for path in paths]), resolution):
        if not broken:
            whole.append(image)
        if len(whole) == count:
            return torch.stack(whole)
    raise SystemExit(f"--data: expected {count} pictures that can be read; got {len(whole)}")


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, and write ``--json``."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.studies.decode_quantization", description="8-bit convolutions."
    )
    parser.add_argument("checkpoint", help="a directory, or demo")
    parser.add_argument("--data", nargs="+", required=True, metavar="PATH", help="pictures: a folder, or shards")
    parser.add_argument("--calibrate", default=32, type=int, help="pictures that scales are chosen by")
    parser.add_argument("--images", default=128, type=int, help="pictures after those, on which rows are judged")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    options = parser.parse_args(argv)
    vae = HQTVAEPipeline.from_pretrained(options.checkpoint, device="cpu", dtype="fp32").vae
    pictures = _pictures(options.data, vae.config.resolution, options.calibrate + options.images)
    rows = measure(vae, pictures[options.calibrate :], pictures[: options.calibrate])
    table = Table("convolutions", "PSNR against fp32", "lowest", "against originals", box=box.SIMPLE)
    for row in rows:
        numbers = (row.work[key] for key in ("psnr", "lowest_psnr", "psnr_of_originals"))
        table.add_row(row.entrant, *("" if number is None else f"{number:.2f} dB" for number in numbers))
    Console(highlight=False, width=120).print(table)
    if options.json is not None:
        facts = describe(torch.device("cpu"), "studies.decode_quantization")
        write(Results("decode_quantization", facts, tuple(rows), {"calibrated_on": options.calibrate}), options.json)


if __name__ == "__main__":
    main()
