"""Writes ``benchmarks/STATUS.md``: what has been checked how without a GPU, and what has met one.

python -m benchmarks.report.status            # writes it
python -m benchmarks.report.status --check    # exit code 1 where the file is not what this would write

Operations and their kernels are those of the specs. Where a kernel was verified is what plans say that ``hqtvae tune``
made on a GPU and that come with the package (``assets/plans``); where one was timed, and at what share of its floor,
these and the results files in ``benchmarks/results``: the newest of a GPU that holds the part's rows. A first run of
``gpu.sh`` puts them there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measuring.environment import HERE
from benchmarks.measuring.schema import Results, Row, read
from hqtvae_fast.ops.spec import Spec, all_specs
from hqtvae_fast.plan_file import SHIPPED, PlanFile

FILE = HERE / "STATUS.md"
PROOF = "proof"
"""The benchmark that ``tests/tune/test_parent.py`` writes."""
CHECKED = {  # by backend whose kernels on a GPU are this package's own
    "cuda": "CUDA: compiled by nvcc, {}",
    "triton": "Triton: interpreted, compiled for sm_80 and sm_90",
}
CUDA_KERNELS = {  # of csrc/cuda, by op: beyond compiling without a spill for sm_80 and sm_90a
    "nearest_code": "in an emulator (sm_80's path)",
    "prediction_head": "in an emulator (one kernel, and one a phase)",
    "sample_logits": "its device functions on a CPU",
}
HEAD = """# Status

Written by `python -m benchmarks.report.status`, from the operations' specs, the plans that come with the package and
the files in [`benchmarks/results`](results); nothing here is written by hand. A CUDA kernel marked * runs only where it
is asked for by name. "no" means: no figure, no result of a tensor core, no proof that it runs on a GPU.
[`gpu.sh`](gpu.sh) is all that a first run needs, [what it should look at](studies/first_run.md) is listed.
"""


@dataclass(frozen=True)
class Part:
    """What is no operation. ``checked``: how, without a GPU. ``met``: whether a row of a results file is of it."""

    name: str
    checked: str
    met: Callable[[Results, Row], bool]


def _generate(part: str = "") -> Callable[[Results, Row], bool]:
    """Ours in a run of ``generate``: one part of it, or any."""
    return lambda results, row: results.benchmark == "generate" and row.ours and part in ("", row.work.get("part"))


def _asked(*options: str) -> Callable[[Results, Row], bool]:
    """Rows of a run of ``generate`` or ``steps`` that was asked for these options."""
    return lambda results, row: row.ours and all(option in results.environment["command"] for option in options)


def _suite(name: str, entrant: str = "") -> Callable[[Results, Row], bool]:
    return lambda results, row: results.benchmark == name and entrant in row.entrant


def _other(entrant: str) -> Callable[[Results, Row], bool]:
    return lambda results, row: not row.ours and entrant in row.entrant


def _passed(part: int) -> Callable[[Results, Row], bool]:
    """Of ``gpu.sh``."""
    return lambda results, row: results.benchmark == "gpu" and row.work == {"part": part, "outcome": "ok"}


PATHS = (
    Part("drawing codes, a captured step", "its code over static buffers gives the loop's codes", _generate("draw")),
    Part("decoding, captured", "its code over static buffers gives the decoder's pictures", _generate("decode")),
    Part(
        "drawing and decoding overlapped on two streams",
        "two threads on a CPU; a stand-in for torch",
        _generate("stream"),
    ),
    Part("int8 weights", "logits against fp32's on a CPU", _asked("--quantize", "int8")),
    Part("fp8 weights", "logits against fp32's on a CPU", _asked("--quantize", "fp8")),
    Part("TF32", "-", _asked("--dtype", "tf32")),
    Part("tables", "codes as without, on a CPU", _suite("engine", "tables")),
    Part("a draw fused behind the head's product", "interpreter", _suite("engine", "fused_draw")),
    Part("no first query in the head", "codes as with it, on a CPU", _suite("engine", "skip_query")),
    Part(
        "keys and values in 8 bits",
        "codes of whole, split and captured batches; logits against those without, on a CPU",
        _suite("engine", "kv=int8"),
    ),
    Part("encoding, captured", "its code gives the encoder's codes", _suite("encode", "captured")),
    Part("head as one kernel", "emulator", _suite("head", "one kernel")),
    Part("training, stage 1 and 2", "on a CPU, beside plain torch", _suite("train")),
)
BENCHMARKS = (
    Part("ops: CUDA events, rotating inputs, cleared L2", "-", _suite("ops")),
    Part("generate: AR and decode apart", "on a CPU", _generate()),
    Part("images per joule", "a made-up NVML", lambda results, row: bool(row.work.get("joules"))),
    Part("clocks, and rows unfit to quote", "a made-up NVML", lambda results, row: bool(row.clocks)),
    Part("paper's protocol", "on a CPU", _other("paper")),
    Part("torch.compile", "on a CPU", _other("compile")),
    Part("the released implementation", "on a CPU", _other("released")),
    Part("generate --decode-only", "on a CPU", _suite("decode")),
    Part("the gate", "on a CPU: how often it is right is measured there", _suite("compare")),
    Part("pytest -m gpu", "-", _passed(8)),
    Part("compute-sanitizer, with planted faults", "the faults compile", _passed(9)),
)


def status(results: Sequence[Results], specs: Sequence[Spec], plans: Sequence[PlanFile] = ()) -> str:
    """The page."""
    plans = [plan for plan in plans if plan.facts.get("multiprocessors")]  # of a GPU
    found = [one for one in results if one.device != one.environment["cpu"]]
    found.sort(key=lambda one: one.environment["date"], reverse=True)
    columns = ("operation", "its kernels", "checked without a GPU", "verified", "timed, and the share of its floor")
    lines = [HEAD, _line(*columns), _line(*["---"] * len(columns)).replace(" ", "")]
    lines += [_line(spec.op, *_checks(spec), *_on_a_gpu(spec, found, plans)) for spec in specs]
    for title, parts in (("engine path", PATHS), ("benchmark", BENCHMARKS)):
        lines += ["", f"| {title} | checked without a GPU | met a GPU |", "|---|---|---|"]
        lines += [_line(part.name, part.checked, _evidence(found, part.met)) for part in parts]
    proofs = [one for one in results if one.benchmark == PROOF]
    lines += ["", *_proofs(max(proofs, key=lambda one: one.environment["date"]))] if proofs else []
    return "\n".join(lines) + "\n"


def _proofs(results: Results) -> list[str]:
    """How often tuning's proof of a variant is right, as the tests of ``hqtvae tune`` counted it."""
    runs = len(results.rows[0].runs)
    told = [f"{sum(row.runs):g} of {runs * row.work['tried']:,} {row.name}" for row in results.rows]
    return [f"Proof of variants by `hqtvae tune` ({_where(results)}), in {runs} runs: {', '.join(told)}."]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _kernels(spec: Spec) -> list[str]:
    """Backends whose kernels on a GPU are this package's own."""
    return list(dict.fromkeys(backend.base for backend in spec.backends if backend.base in CHECKED))


def _checks(spec: Spec) -> tuple[str, str]:
    """An op's kernels, and how they are checked."""
    in_order = {backend.base for backend in spec.backends if not backend.only_by_name}
    named = [f"{name}{'' if name in in_order else '*'}" for name in _kernels(spec)]
    how = [CHECKED[name].format(CUDA_KERNELS.get(spec.op)) for name in _kernels(spec)]
    return ", ".join(named) or "-", "; ".join(["reference", *how])


def _on_a_gpu(spec: Spec, found: Sequence[Results], plans: Sequence[PlanFile]) -> tuple[str, str]:
    """Where each of an op's kernels was verified, and where timed."""
    kernels = _kernels(spec)
    if not kernels:
        return ("for CPUs",) * 2 if any(backend.name == "native" for backend in spec.backends) else ("no",) * 2
    verified = [_verified(spec.op, kernel, plans) for kernel in kernels]
    timed = [_timed(spec.op, kernel, found) or _chosen(spec.op, kernel, plans) for kernel in kernels]
    return _of_each(kernels, verified), _of_each(kernels, timed)


def _of_each(kernels: Sequence[str], told: Sequence[str]) -> str:
    """What is told of each kernel, once where it is the same."""
    if len(set(told)) == 1:
        return told[0]
    return "; ".join(f"{kernel}: {where}" for kernel, where in zip(kernels, told, strict=True))


def _verified(op: str, kernel: str, plans: Sequence[PlanFile]) -> str:
    """The devices whose plans say that the kernel, or a tile of it, gave the right numbers there."""
    devices = {str(plan.facts["device"]) for plan in plans if any(_is_of(name, op, kernel) for name in _proven(plan))}
    return ", ".join(sorted(devices)) or "no"


def _proven(plan: PlanFile) -> Iterator[str]:
    yield from plan.verified or ()
    yield from (f"{where.partition(' ')[0]} {own.variant}" for where, own in plan.choices.items())


def _is_of(name: str, op: str, kernel: str) -> bool:
    return name.partition("/")[0] == f"{op} {kernel}"


def _timed(op: str, kernel: str, found: Sequence[Results]) -> str | None:
    """The newest benchmark of the kernel, and the best share of a floor that it reached there."""
    for one in found:
        rows = [row for row in one.rows if one.benchmark == "ops" and row.ours and row.work.get("op") == op]
        rows = [row for row in rows if row.entrant.endswith(kernel)]
        if rows:
            shares = [row.work["floor_seconds"] / row.median for row in rows if row.work.get("floor_seconds")]
            best = f", {100 * max(shares):.0f}%" if shares else ""
            return f"{_where(one)}{best}"
    return None


def _chosen(op: str, kernel: str, plans: Sequence[PlanFile]) -> str:
    """The devices on which a plan's choice was timed."""
    timed = [(plan, where, own) for plan in plans for where, own in plan.choices.items() if own.median is not None]
    names = [(plan, f"{where.partition(' ')[0]} {own.variant}") for plan, where, own in timed]
    return ", ".join(sorted({str(plan.facts["device"]) for plan, name in names if _is_of(name, op, kernel)})) or "no"


def _evidence(results: Sequence[Results], met: Callable[[Results, Row], bool]) -> str:
    """The device and date of the newest run with a row of it. ``results``: of GPUs, newest first."""
    for one in results:
        if any(met(one, row) for row in one.rows):
            return _where(one)
    return "no"


def _where(results: Results) -> str:
    return f"{results.device}, {results.environment['date'][:10]}"


def _stored() -> Iterator[Results]:
    for file in sorted((HERE / "results").glob("*.json")):
        yield read(file)


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given not in ([], ["--check"]):
        print(f"status: expected --check or nothing; got {' '.join(given)}", file=sys.stderr)
        return 2
    plans = [PlanFile.read(file) for file in sorted(SHIPPED.glob("*.json"))]
    text = status(list(_stored()), [spec for _, spec in sorted(all_specs().items())], plans)
    if given:
        return int(not _same(FILE, text))
    FILE.write_text(text, encoding="utf-8")
    return 0


def _same(file: Path, text: str) -> bool:
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return True
    print(f"{file}: not what `python -m benchmarks.report.status` writes", file=sys.stderr)
    return False


if __name__ == "__main__":
    sys.exit(main())
