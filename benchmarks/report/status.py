"""Writes ``benchmarks/STATUS.md``: what has been checked how without a GPU, and what has met one.

python -m benchmarks.report.status            # writes it
python -m benchmarks.report.status --check    # exit code 1 where the file is not what this would write

Operations and their kernels are those of the specs; what has met a GPU is what a results file in ``benchmarks/results``
says: the newest of a GPU that holds the part's rows. A first run of ``gpu.sh`` puts them there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measuring.environment import HERE
from benchmarks.measuring.schema import Results, Row, read
from hqtvae_fast.ops.spec import Spec, all_specs

FILE = HERE / "STATUS.md"
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

Written by `python -m benchmarks.report.status`, from the operations' specs and the files in
[`benchmarks/results`](results); nothing here is written by hand. A CUDA kernel marked * runs only where it is asked for
by name. "no" under "met a GPU" means: no figure, no result of a tensor core, no proof that it runs there.
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
    Part("tables", "codes as without, on a CPU", _asked("--engine", "tables")),
    Part("a draw fused behind the head's product", "interpreter", _asked("--engine", "fused_draw")),
    Part("no first query in the head", "codes as with it, on a CPU", _asked("--engine", "skip_query")),
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
    Part("pytest -m gpu", "-", _passed(1)),
    Part("compute-sanitizer, with planted faults", "the faults compile", _passed(2)),
)


def status(results: Sequence[Results], specs: Sequence[Spec]) -> str:
    """The page."""
    found = [one for one in results if one.device != one.environment["cpu"]]
    found.sort(key=lambda one: one.environment["date"], reverse=True)
    lines = [HEAD, "| operation | its kernels | checked without a GPU | met a GPU |", "|---|---|---|---|"]
    lines += [_line(spec.op, *_checks(spec), _kernels_met(spec, found)) for spec in specs]
    for title, parts in (("engine path", PATHS), ("benchmark", BENCHMARKS)):
        lines += ["", f"| {title} | checked without a GPU | met a GPU |", "|---|---|---|"]
        lines += [_line(part.name, part.checked, _evidence(found, part.met)) for part in parts]
    return "\n".join(lines) + "\n"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _kernels(spec: Spec) -> list[str]:
    """Backends whose kernels on a GPU are this package's own."""
    return [backend.name for backend in spec.backends if backend.name in CHECKED]


def _checks(spec: Spec) -> tuple[str, str]:
    """An op's kernels, and how they are checked."""
    by_name = {backend.name for backend in spec.backends if backend.only_by_name}
    named = [f"{name}{'*' if name in by_name else ''}" for name in _kernels(spec)]
    how = [CHECKED[name].format(CUDA_KERNELS.get(spec.op)) for name in _kernels(spec)]
    return ", ".join(named) or "-", "; ".join(["reference", *how])


def _kernels_met(spec: Spec, found: Sequence[Results]) -> str:
    """Of each kernel; of the op where it has none."""

    def timed(kernel: str) -> Callable[[Results, Row], bool]:
        return lambda results, row: (
            results.benchmark == "ops" and row.ours and row.work.get("op") == spec.op and row.entrant.endswith(kernel)
        )

    kernels = _kernels(spec)
    if not kernels and any(backend.name == "native" for backend in spec.backends):
        return "for CPUs"
    met = [_evidence(found, timed(kernel)) for kernel in kernels or [""]]
    if len(set(met)) == 1:
        return met[0]
    return "; ".join(f"{kernel}: {where}" for kernel, where in zip(kernels, met, strict=True))


def _evidence(results: Sequence[Results], met: Callable[[Results, Row], bool]) -> str:
    """The device and date of the newest run with a row of it. ``results``: of GPUs, newest first."""
    for one in results:
        if any(met(one, row) for row in one.rows):
            return f"{one.device}, {one.environment['date'][:10]}"
    return "no"


def _stored() -> Iterator[Results]:
    for file in sorted((HERE / "results").glob("*.json")):
        yield read(file)


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given not in ([], ["--check"]):
        print(f"status: expected --check or nothing; got {' '.join(given)}", file=sys.stderr)
        return 2
    text = status(list(_stored()), [spec for _, spec in sorted(all_specs().items())])
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
