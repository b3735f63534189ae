"""What a compiled kernel takes and what it may take: the rows of ``aot_budgets.json``, and the verdict.

    {"versions": ["3.7", "3.6"],
     "sm_80": {"draw 1024 bf16": {"registers": 120, "shared": 16, "needs": [], "3.6": {"registers": 128}}, ...}, ...}

A row is what one variant may take with the first of these versions of Triton; under another version's name stands what
is different there. No row, of whatever version, allows a stack or spills.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hqtvae_fast.files import read_text, write_file
from hqtvae_fast.hardware import DEVICES, KIB

# The most shared memory that one block may have, by architecture: Triton compiles beyond it without a word, and the
# launch fails.
SHARED_LIMIT = {80: DEVICES["A100-80GB"].shared_memory, 90: DEVICES["H100"].shared_memory}
# One multiprocessor, the same on both. Four schedulers have a quarter of the registers each, and give them to whole
# warps in units of 256: eight for each thread.
SCHEDULERS, REGISTERS, WARPS, BLOCKS, REGISTER_UNIT, SHARED_UNIT = 4, 2**16, 64, 32, 256, 128
RESERVED = KIB  # of shared memory, which the driver keeps in every block beside the block's own
MOST_REGISTERS = 255  # of a thread

Budget = Mapping[str, Any]
Budgets = dict[str, dict[str, Budget]]  # by architecture ("sm_80"), then by the variant's name
FIELDS = ("registers", "shared", "needs")


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers, bytes of stack and bytes spilled (stored plus loaded) for each thread;
    bytes of shared memory (static plus dynamic) and warps for each block. ``mma``, ``copies`` and ``dependent`` name
    the kinds of tensor-core instructions, of asynchronous copies and of those of a dependent launch found, empty if
    none; ``needs`` is the variant's own. ``loop``: cycles to issue the main loop's instructions, and to multiply its
    products ("278:256"), empty if it has none."""

    registers: int
    stack: int
    spills: int
    shared: int
    warps: int
    mma: str
    copies: str
    needs: tuple[str, ...] = ()
    dependent: str = ""
    loop: str = ""


# -------------------------------------------------------------------------------------------------------------- judging


def occupancy(resources: Resources, arch: int) -> tuple[int, str]:
    """The most blocks that one multiprocessor holds at once, and what forbids one more."""
    warp_registers = _round_up(resources.registers * 32, REGISTER_UNIT)
    limits = {  # of equal ones the first is named: what no kernel can change comes before what it takes
        "blocks": BLOCKS,
        "warps": WARPS // resources.warps,
        "registers": SCHEDULERS * (REGISTERS // SCHEDULERS // warp_registers) // resources.warps,
        "shared memory": (SHARED_LIMIT[arch] + RESERVED) // (_round_up(resources.shared, SHARED_UNIT) + RESERVED),
    }
    limited_by = min(limits, key=lambda what: limits[what])
    return limits[limited_by], limited_by


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def judge(resources: Resources, budget: Budget | None, arch: int) -> list[str]:
    """What is wrong with a compiled kernel, a line each; nothing if it is within its row of the budgets."""
    problems, limit = [], SHARED_LIMIT[arch]
    if budget is None:
        problems.append("no row in the budgets: --update writes one")
        budget = {"registers": MOST_REGISTERS, "shared": limit, "needs": []}
    missing = [key for key in FIELDS if key not in budget]
    if missing:
        return [*problems, f"the budgets' row lacks {', '.join(missing)}"]
    if resources.shared > limit:
        problems.append(f"shared: {resources.shared} bytes, sm_{arch} has {limit} for a block")
    ceilings = {"registers": budget["registers"], "stack": 0, "spills": 0, "shared": budget["shared"]}
    for what, ceiling in ceilings.items():
        got = getattr(resources, what)
        if got > ceiling and not (what == "shared" and got > limit):
            problems.append(f"{what}: {got}, budget {ceiling}")
    found = {"mma": resources.mma, "async": resources.copies, **{kind: kind for kind in resources.dependent.split("+")}}
    # The row's needs count as well: a spec that asks for less than before is no way around them.
    for need in sorted({*resources.needs, *budget["needs"]}):
        if not found.get(need):
            problems.append(f"needs {need}, which the machine code lacks")
    return problems


def new_budget(resources: Resources) -> Budget:
    """The row that ``--update`` writes. Registers are rounded up to the eights in which they are given out, so that
    one more that costs nothing passes."""
    registers = min(_round_up(resources.registers, REGISTER_UNIT // 32), MOST_REGISTERS)
    return {"registers": registers, "shared": resources.shared, "needs": list(resources.needs)}


# --------------------------------------------------------------------------------------------------------- the file


@dataclass(frozen=True)
class BudgetFile:
    """The budgets of every version of Triton ("3.7"), the one that the rows are written for first."""

    by_version: dict[str, Budgets]

    @classmethod
    def read(cls, file: Path) -> BudgetFile:
        """No version if there is no file."""
        if not file.exists():
            return cls({})
        document = json.loads(read_text(file))
        return cls({version: _of_version(document, version) for version in document["versions"]})

    def of(self, version: str) -> Budgets:
        """What kernels may take there. With a version that none were written for (see :attr:`by_version`) any number
        of registers and bytes that the hardware has; the instructions that are needed stay needed."""
        if version in self.by_version or not self.by_version:
            return self.by_version.setdefault(version, {})
        rows = next(iter(self.by_version.values()))
        roomy = {f"sm_{arch}": {"registers": MOST_REGISTERS, "shared": limit} for arch, limit in SHARED_LIMIT.items()}
        return {arch: {name: {**row, **roomy[arch]} for name, row in own.items()} for arch, own in rows.items()}

    def write(self, file: Path) -> None:
        """As JSON with one row a line, in order, so that a diff shows the rows that changed."""
        parts = [f'  "versions": {json.dumps(list(self.by_version))}']
        for arch in sorted({arch for budgets in self.by_version.values() for arch in budgets}):
            own = {version: budgets.get(arch, {}) for version, budgets in self.by_version.items()}
            lines = [
                f"    {json.dumps(name)}: {json.dumps(_together(name, own))}"
                for name in sorted({name for rows in own.values() for name in rows})
            ]
            parts.append(f"  {json.dumps(arch)}: {{" + ("\n" + ",\n".join(lines) + "\n  " if lines else "") + "}")
        write_file(file, ("{\n" + ",\n".join(parts) + "\n}\n").encode())


def _of_version(document: Mapping[str, Any], version: str) -> Budgets:
    budgets: Budgets = {arch: {} for arch in document if arch != "versions"}
    for arch, rows in budgets.items():
        for name, row in document[arch].items():
            whole = {key: value for key, value in row.items() if key not in document["versions"]}
            whole |= row.get(version, {})
            if whole:
                rows[name] = whole
    return budgets


def _together(name: str, by_version: Mapping[str, Mapping[str, Budget]]) -> dict[str, Any]:
    """One variant's row for all versions: the first version's, then what is different in others."""
    first, *others = by_version
    base = by_version[first].get(name, {})
    row = dict(base)
    for version in others:
        own = by_version[version].get(name, {})
        if different := {key: value for key, value in own.items() if base.get(key) != value}:
            row[version] = different
    return row
