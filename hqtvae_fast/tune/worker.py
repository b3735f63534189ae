"""The process that variants are tried in: ``python -m hqtvae_fast.tune.worker [MODULE]``.

It reads one job a line (JSON) on stdin and answers each by a line on what was its stdout; whatever else is printed
there goes to stderr. ``MODULE`` has ``all_specs``; by default :mod:`hqtvae_fast.ops.spec`. It ends with its parent.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import IO, Any

import torch

from hqtvae_fast import plan
from hqtvae_fast.backend import BackendError
from hqtvae_fast.files import first_line
from hqtvae_fast.modes import inference
from hqtvae_fast.ops.spec import Spec
from hqtvae_fast.threads import one_thread
from hqtvae_fast.tune.cases import fitted, unpacked
from hqtvae_fast.tune.clocks import Calls, cache_bytes, prepare, rotated, seconds
from hqtvae_fast.tune.guards import FILLS, Guards, same_bits
from hqtvae_fast.tune.proof import SEEDS, Trials, WrongError, prove, synchronize
from hqtvae_fast.tune.timing import duel

Answer = dict[str, Any]
SPECS = "hqtvae_fast.ops.spec"


class Desk:
    """Does jobs; keeps the inputs of the last case, which the next job is likely about."""

    def __init__(self, specs: Mapping[str, Spec]) -> None:
        self.specs = specs
        self._trials: tuple[Any, Trials] | None = None
        self._does: dict[str, Callable[[Mapping[str, Any]], Answer]] = {"prove": self.prove, "time": self.time}
        self._does["whole"] = self.whole
        self._whole: Any = None

    def answer(self, job: Mapping[str, Any]) -> Answer:
        """The job's outcome; nothing that it raises comes out."""
        device = torch.device(job.get("device", "cpu"))
        try:
            with one_thread() if job.get("threads") == 1 else nullcontext():
                answer = self._does[job["do"]](job)
        except WrongError as error:
            answer = {"status": "wrong", "reason": str(error)}
        except BackendError as error:
            answer = {"status": "cannot", "reason": str(error)}
        except Exception as error:
            answer = {"status": _kind(error), "reason": f"raised {type(error).__name__}: {first_line(error)}"}
        if answer["status"] == "memory":
            self._trials = None
            gc.collect()
        return {**answer, "broken": _broken(device)}

    def prove(self, job: Mapping[str, Any]) -> Answer:
        """Of one variant at one choice; where the spec's inputs meet another one, nothing is proven."""
        with plan.recording() as found:
            proof = prove(self._of(job), job["variant"], job.get("default"))
        if "site" in job and job["site"] not in found:
            return {"status": "cannot", "reason": f"its spec's inputs are those of another choice: {next(iter(found))}"}
        return {"status": "right", "same_bits": proof.same_bits}

    def time(self, job: Mapping[str, Any]) -> Answer:
        """Of a variant beside another, both proven."""
        trials = self._of(job)
        spec, device = trials.spec, trials.device
        inputs = rotated(spec, trials.case, device, cache_bytes(device))
        both = [Calls(spec, job[name], inputs, device) for name in ("incumbent", "challenger")]
        with inference():
            before = [_result(calls) for calls in both]
            for calls in both:
                prepare(calls)
            found = duel(both[0], both[1], seconds, seconds=job["seconds"])
            for calls, first in zip(both, before, strict=True):
                if not same_bits(_result(calls), first):
                    raise WrongError(f"{calls.variant}: other bits after it was timed")
        return {"status": "right", "incumbent": found.incumbent, "challenger": found.challenger}

    def whole(self, job: Mapping[str, Any]) -> Answer:
        """A batch of a model under a plan; the model stays open."""
        from hqtvae_fast.tune.whole import ModelName, Whole, unpacked_plan  # the engine, which other jobs do without

        if self._whole is None:
            self._whole = Whole(ModelName(**job["model"]), torch.device(job["device"]))
        return {"status": "right", "seconds": self._whole.seconds(unpacked_plan(job["plan"]), job["batch"])}

    def _of(self, job: Mapping[str, Any]) -> Trials:
        key = [job["op"], job["inputs"], job["device"], job.get("seeds")]
        if self._trials is None or self._trials[0] != key:
            self._trials = None  # its memory is given back before more is taken
            own = fitted(self.specs[job["op"]], unpacked(job["inputs"]))
            if own is None:
                raise BackendError(f"{job['op']}: no case of its spec has these inputs")
            self._trials = key, Trials(*own, torch.device(job["device"]), tuple(job.get("seeds") or SEEDS))
        return self._trials[1]


def _result(calls: Calls) -> Any:
    """On a copy of the first inputs, which the operation may write to."""
    inputs = Guards(FILLS[0]).copies(calls.inputs[0])
    return calls.spec.run(*inputs, backend=calls.variant)


def _kind(error: Exception) -> str:
    from hqtvae_fast.engine.batches import is_out_of_memory  # the whole engine, which few jobs need

    return "memory" if is_out_of_memory(error) else "raised"


def _broken(device: torch.device) -> str | None:
    """Why the device does nothing any more, as after an illegal address; or None."""
    try:
        torch.zeros(1, dtype=torch.float32, device=device).add_(1)
        synchronize(device)
    except Exception as error:
        return f"leaves the device in error ({first_line(error)})"
    return None


def _lines(stdin: IO[str]) -> Callable[[], str]:
    """What gives the next line. The end of stdin is the parent's: this process ends with it, whatever it is doing."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return lines.get


def main(arguments: list[str]) -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a kernel's compiler prints is no answer
    desk = Desk(importlib.import_module(arguments[0] if arguments else SPECS).all_specs())
    say(out, {"status": "ready"})
    next_line = _lines(sys.stdin)
    while True:
        answer = desk.answer(json.loads(next_line()))
        say(out, answer)
        if answer["broken"] is not None:
            os._exit(3)


def say(out: IO[str], answer: Answer) -> None:
    out.write(json.dumps(answer) + "\n")
    out.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
