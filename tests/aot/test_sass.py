"""What is read of a main loop, from machine code written by hand."""

from __future__ import annotations

import pytest

from hqtvae_fast.ops.sass import Loop, main_loop


def code(*instructions):
    """As the disassembler prints them, 16 bytes each; "@@3" stands for the address of the fourth."""
    lines = []
    for index, text in enumerate(instructions):
        head, _, target = text.partition("@@")
        text = f"{head}0x{16 * int(target):x}" if target else text
        lines.append(f"        /*{16 * index:04x}*/                   {text} ;   /* 0x000fe200078e00ff */")
        lines.append("                                                     /* 0x000fc400078e0203 */")
    return "\n".join(lines)


HOPPER = "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, !UPT"
AMPERE = "HMMA.16816.F32.BF16 R12, R20, R36, R12"


def test_a_loop_is_its_instructions_and_its_products():
    """Two groups of four warps: 64 cycles each for 64x128x16 at 2048 a cycle; eight warps of four instructions."""
    sass = code("MOV R1, c[0x0][0x28]", "IADD3 R4, R4, 0x1, RZ", HOPPER, "NOP", "@!P0 BRA @@1", "EXIT", "BRA @@6")
    assert main_loop(sass, 90, warps=8) == Loop(8, 128)
    assert str(main_loop(sass, 90, warps=8)) == "8:128"


@pytest.mark.parametrize(
    "instruction,cycles",
    [  # four warps at 1024 multiply-adds of 16 bits a cycle
        (AMPERE, 8),
        ("HMMA.1688.F32.TF32 R12, R20, R36, R12", 8),
        ("IMMA.16832.S8.S8 R12, R20.ROW, R36.COL, R12", 8),
        ("HMMA.1688.F32 R12, R20, R36, R12", 4),
    ],
)
def test_products_of_each_kind(instruction, cycles):
    assert main_loop(code(instruction, "BRA @@0"), 80, warps=4) == Loop(2, cycles)


def test_the_innermost_loop_with_the_most_products_counts():
    outer = code("S2R R0, SR_TID.X", AMPERE, "@P1 BRA @@1", AMPERE, AMPERE, "@P1 BRA.U UP0, @@3", "@P0 BRA @@0", "EXIT")
    assert main_loop(outer, 80, warps=4) == Loop(3, 16)


def test_without_products_there_is_none():
    assert main_loop(code("FADD R0, R0, R1", "@P0 BRA @@0", AMPERE, "EXIT"), 80, warps=4) is None
    assert main_loop("", 80, warps=4) is None
