"""Compiles every op's Triton kernels ahead of time, without a GPU, and holds what they take against budgets.

``python -m hqtvae_fast.ops.aot`` compiles each variant that the specs name for sm_80 and sm_90, and reads registers,
stack, spills, shared memory and the instructions used from the machine code. The exit code is 1 if a variant does not
compile, is over its row of ``aot_budgets.json`` or has none, spills, has more shared memory than a block may have, or
lacks an instruction that it needs; also if a row's variant is gone. ``--update`` writes the rows of this version of
Triton anew; others keep theirs. With a version that has no rows, only what the hardware sets is asked.

The blocks that fit on a multiprocessor are an estimate: what the sizes allow, not what a launch fills.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hqtvae_fast.ops.aot_budgets import (
    SHARED_LIMIT,
    Budget,
    BudgetFile,
    Budgets,
    Resources,
    judge,
    new_budget,
    occupancy,
)
from hqtvae_fast.ops.sass import main_loop
from hqtvae_fast.ops.spec import Spec, Variant, all_specs
from hqtvae_fast.ops.triton_launch import triton_version

BUDGETS = Path(__file__).with_name("aot_budgets.json")
FILE_WIDTH = 260  # columns of a table that does not go to a terminal

# Machine code, not PTX, is searched: what ptxas dropped does not count.
MMA = {"wgmma": r"\b[BHIQ]GMMA\b", "mma.sync": r"\b[BDHIQ]MMA\b"}
COPIES = {"bulk": r"\b(UBLKCP|UTMALDG|UTMASTG)\b", "cp.async": r"\bLDGSTS\b"}
# Of a dependent launch: the wait for the kernel before, and a cache told to fetch meanwhile.
DEPENDENT = {"wait": r"\bACQBULK\b", "prefetch": r"\bCCTL\b"}


@dataclass(frozen=True)
class Row:
    """One variant for one architecture, or a stale row of the budgets (no op). ``resources``: None if not compiled."""

    op: str
    name: str
    arch: int
    variant: Variant | None
    resources: Resources | None
    problems: tuple[str, ...]


# ------------------------------------------------------------------------------------------------------------ compiling


def compile_variant(variant: Variant, arch: int, instructions: bool = True) -> Resources:
    """Compile for ``arch`` (80, 90) and read the machine code: without ``instructions`` only what it takes, which is
    half the work. Raises what Triton raises, ValueError on a variant that does not fit its kernel, RuntimeError where a
    tool of Triton's is absent or fails."""
    from triton import knobs
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    compiled = _compile(variant, arch)
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(compiled.asm["cubin"])
        ptx.write_text(compiled.asm["ptx"])
        disassembler = knobs.nvidia.cuobjdump.path
        usage = _run(disassembler, "--dump-resource-usage", str(cubin))
        sass = _run(disassembler, "--dump-sass", str(cubin)) if instructions else ""
        # The cubin does not tell spills from other uses of the stack: Triton's ptxas does, given Triton's own options.
        options = [] if triton_version() == "3.6" else ["--regAllocOptLevel=2"]
        options += [] if variant.fp_fusion else ["--fmad=false"]
        options += [f"--gpu-name={sm_arch_from_capability(arch)}", "-o", str(Path(folder, "again.cubin"))]
        log = _run(get_ptxas(arch).path, "-v", *options, str(ptx))
    registers, again = max(_numbers(r"REG:(\d+)", usage)), max(_numbers(r"Used (\d+) registers", log))
    if registers != again:
        raise RuntimeError(f"Triton's machine code has {registers} registers, ptxas by itself {again}: options differ")
    mma = _kinds(MMA, sass) + (", serialized" if re.search(r"wgmma.* serialized", log) else "")
    return Resources(
        registers=registers,
        stack=max(_numbers(r"STACK:(\d+)", usage)),
        spills=sum(_numbers(r"(\d+) bytes spill", log)),
        # Static memory as ptxas tells it: cuobjdump adds the driver's own from sm_90 on.
        shared=compiled.metadata.shared + sum(_numbers(r"(\d+) bytes smem", log)),
        warps=compiled.metadata.num_warps,  # more than the variant's where Triton adds warps that load
        mma=mma,
        copies=_kinds(COPIES, sass),
        needs=variant.needs,
        dependent=_kinds(DEPENDENT, sass),
        loop=str(main_loop(sass, arch, compiled.metadata.num_warps) or ""),
    )


def _compile(variant: Variant, arch: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(variant.kernel.arg_names)
    if {*variant.signature, *variant.constants} != set(names) or set(variant.signature) & set(variant.constants):
        got = ", ".join([*variant.signature, *variant.constants])
        raise ValueError(f"expected the kernel's arguments, {', '.join(names)}; got {got}")
    source = ASTSource(
        fn=variant.kernel,
        signature={name: variant.signature.get(name, "constexpr") for name in names},
        constexprs=dict(variant.constants),
        # Without these Triton may not load 16 bytes at once, and the asynchronous copies vanish.
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned},
    )
    options: dict[str, Any] = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    options |= {"enable_fp_fusion": variant.fp_fusion}
    with contextlib.redirect_stdout(io.StringIO()):  # where ptxas fails, Triton prints the whole PTX
        return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def _run(program: str, *arguments: str) -> str:
    """Standard output and error of one of the programs that come with Triton."""
    result = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        name, why = Path(program).name, result.stderr.strip()
        raise RuntimeError(f"{name} failed with exit code {result.returncode}: {why}")
    return result.stdout + result.stderr


def _numbers(pattern: str, text: str) -> list[int]:
    return [int(number) for number in re.findall(pattern, text)]


def _kinds(patterns: Mapping[str, str], sass: str) -> str:
    return "+".join(kind for kind, pattern in patterns.items() if re.search(pattern, sass))


def _why(error: Exception) -> str:
    """One line of what may be a page: where in the kernel, and the message proper."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    last = next((line for line in lines if re.search(r"; (error|fatal) *:", line)), lines[-1])  # ptxas's own
    where = f"{lines[0]} " if lines[0].startswith("at ") and lines[0] != last else ""
    return f"does not compile: {type(error).__name__}: {where}{last}"


# -------------------------------------------------------------------------------------------------------------- program


def check(specs: Mapping[str, Spec], ops: Sequence[str], arch: int, budgets: Budgets, update: bool) -> list[Row]:
    """Compile and judge the variants of ``ops``, and find the rows whose variant no op has any more. With ``update``
    the rows in ``budgets`` are first set to what was found; that of a variant that does not compile stays."""
    rows: list[Row] = []
    budget = budgets.setdefault(f"sm_{arch}", {})
    known: set[str] = set()
    for op, spec in specs.items():
        for variant in spec.variants(arch):
            if variant.name in known:
                rows.append(Row(op, variant.name, arch, variant, None, ("another variant has this name",)))
            elif op in ops:
                rows.append(_check_one(op, variant, arch, budget, update))
            known.add(variant.name)
    for name in sorted(set(budget) - known):
        if update:
            del budget[name]
        else:
            rows.append(Row("", name, arch, None, None, ("stale: no op has this variant; --update drops the row",)))
    return rows


def _check_one(op: str, variant: Variant, arch: int, budget: dict[str, Budget], update: bool) -> Row:
    try:
        resources = compile_variant(variant, arch)
    except Exception as error:  # whatever a compiler raises is this row's result, and the others' go on
        return Row(op, variant.name, arch, variant, None, (_why(error),))
    if update:
        budget[variant.name] = new_budget(resources)
    problems = judge(resources, budget.get(variant.name), arch)
    return Row(op, variant.name, arch, variant, resources, tuple(problems))


def _cells(row: Row) -> dict[str, str]:
    """A row of the table, by the columns' titles."""
    variant, resources = row.variant, row.resources
    cells = {"op": row.op, "variant": row.name, "arch": f"sm_{row.arch}"}
    if variant is not None:
        cells["constants"] = " ".join(f"{name}={value}" for name, value in variant.constants.items())
        cells |= {"warps": str(variant.num_warps), "stages": str(variant.num_stages)}
    if resources is not None:
        blocks, limited_by = occupancy(resources, row.arch)
        cells |= {"registers": str(resources.registers), "stack": str(resources.stack)}
        cells |= {"spills": str(resources.spills), "shared": f"{resources.shared:,}"}
        cells |= {"blocks/SM": str(blocks), "limited by": limited_by}
        cells |= {"mma": resources.mma or "-", "async": resources.copies or "-", "issue:mma": resources.loop or "-"}
    return cells | {"verdict": "[red]fails[/red]" if row.problems else "ok"}


def _print(rows: Sequence[Row]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=FILE_WIDTH)
    titles = ["op", "variant", "arch", "constants", "warps", "stages", "registers", "stack", "spills", "shared"]
    titles += ["blocks/SM", "limited by", "mma", "async", "issue:mma", "verdict"]
    table = Table(box=box.SIMPLE)
    for title in titles:
        table.add_column(title, justify="right" if title in titles[4:11] else "left", overflow="fold")
    for row in rows:
        cells = _cells(row)
        table.add_row(*(cells.get(t, "") if t == "verdict" else escape(cells.get(t, "")) for t in titles))
    if rows:
        console.print(table)
    failed = [row for row in rows if row.problems]
    for row in failed:
        for problem in row.problems:
            name = f"{row.op} {row.name}".strip()
            console.print(f"sm_{row.arch} {name}: {problem}", markup=False, soft_wrap=True)
    kernels = sum(row.variant is not None for row in rows)
    console.print(f"{kernels} kernels, {len(failed)} failures" if rows else "no op has a kernel: nothing to compile")


def _as_json(row: Row) -> dict[str, Any]:
    variant, resources = row.variant, row.resources
    facts: dict[str, Any] = {"op": row.op, "variant": row.name, "arch": f"sm_{row.arch}", "problems": row.problems}
    if variant is not None:
        facts["constants"] = {name: str(value) for name, value in variant.constants.items()}
        facts |= {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    if resources is not None:
        blocks, limited_by = occupancy(resources, row.arch)
        facts |= {"resources": asdict(resources), "blocks_per_sm": blocks, "limited_by": limited_by}
    return facts


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    description = "Compile the Triton kernels of the ops ahead of time and check what they take against budgets."
    parser = argparse.ArgumentParser("python -m hqtvae_fast.ops.aot", description=description)
    known = [f"sm_{arch}" for arch in SHARED_LIMIT]
    parser.add_argument("--arch", nargs="+", choices=known, default=known, help="which to compile for; default: all")
    parser.add_argument("--op", nargs="+", metavar="NAME", help="which ops' kernels to compile; default: all")
    parser.add_argument("--update", action="store_true", help="write the budgets anew, as found")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The program: its exit code."""
    arguments = _parse(argv)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        print(
            "TRITON_INTERPRET is set: Triton would interpret the kernels, not compile them. Unset it.", file=sys.stderr
        )
        return 1
    if importlib.util.find_spec("triton") is None:
        print("Triton is not installed: it compiles the kernels (pip install triton).", file=sys.stderr)
        return 1
    specs = all_specs()
    ops = arguments.op or list(specs)
    unknown = sorted(set(ops) - set(specs))
    if unknown:
        print(f"--op: expected some of {', '.join(specs)}; got {', '.join(unknown)}", file=sys.stderr)
        return 2
    every, version = BudgetFile.read(BUDGETS), triton_version()
    if arguments.update:
        every.by_version.setdefault(version, {})
    elif version not in every.by_version:
        known = ", ".join(every.by_version) or "none"
        print(f"Triton: expected a version that has budgets ({known}); got {version}: only the hardware's limits count")
    budgets = every.of(version)
    rows: list[Row] = []
    for name in arguments.arch:
        rows += check(specs, ops, int(name.removeprefix("sm_")), budgets, arguments.update)
    if arguments.update:
        every.write(BUDGETS)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([_as_json(row) for row in rows], indent=1) + "\n")
    _print(rows)
    return 1 if any(row.problems for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
