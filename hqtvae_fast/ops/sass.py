"""What a kernel's main loop asks of a multiprocessor, read from its machine code.

Four schedulers issue an instruction of a warp a cycle each; the tensor cores multiply beside them. A loop whose
instructions take longer to issue than its products take to multiply is bound by the former, whatever memory does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hqtvae_fast.ops.aot_budgets import SCHEDULERS

# Multiply-adds of 16-bit numbers that a multiprocessor's tensor cores take in a cycle (NVIDIA's data sheets: 312
# TFLOP/s of 108 at 1.41 GHz, 989 of 132 at 1.83). Numbers of half the bits take half the time.
MULTIPLIED = {80: 1024, 90: 2048}
WARPS_OF_A_GROUP = 4  # which multiply together on Hopper, each issuing the instruction
_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+([^;]*);")
_BRANCH = re.compile(r"\bBRA\b.*\b0x([0-9a-f]+)")
_GROUPED = re.compile(r"\b[HIQ]GMMA\.64x(\d+)x(\d+)")
_SINGLE = re.compile(r"\b[HIQ]MMA\.(?:SP\.)?16(8)(\d+)")


@dataclass(frozen=True)
class Loop:
    """Of a block, each time around: cycles to issue its instructions, and to multiply its products."""

    issued: int
    multiplied: int

    def __str__(self) -> str:
        return f"{self.issued}:{self.multiplied}"


def main_loop(sass: str, arch: int, warps: int) -> Loop | None:
    """The innermost loop with the most products, for ``arch`` (80, 90); None where no loop has any."""
    code = [(int(address, 16), text) for address, text in _LINE.findall(sass)]
    found = [_loop(body, arch, warps) for body in _innermost(code)]
    return max((loop for loop in found if loop.multiplied), key=lambda loop: loop.multiplied, default=None)


def _innermost(code: Sequence[tuple[int, str]]) -> list[list[str]]:
    """Instructions of each loop in which there is no other."""
    spans = []
    for address, text in code:
        branch = _BRANCH.search(text)
        if branch and int(branch[1], 16) < address:
            spans.append((int(branch[1], 16), address))
    inner = [(a, b) for a, b in spans if not any((a, b) != (c, d) and a <= c and d <= b for c, d in spans)]
    return [[text for address, text in code if first <= address <= last] for first, last in inner]


def _loop(body: Sequence[str], arch: int, warps: int) -> Loop:
    products = 0.0
    for text in body:
        grouped, single = _GROUPED.search(text), _SINGLE.search(text)
        if grouped:
            products += warps / WARPS_OF_A_GROUP * 64 * int(grouped[1]) * int(grouped[2]) * _bits(text) / 16
        elif single:
            products += warps * 16 * int(single[1]) * int(single[2]) * _bits(text) / 16
    return Loop(round(len(body) * warps / SCHEDULERS), round(products / MULTIPLIED[arch]))


def _bits(text: str) -> int:
    """Of a number that is multiplied."""
    if re.search(r"\b[IQ]G?MMA\b", text):
        return 8
    return 32 if "TF32" in text else 16
