"""The commands under one name, and what becomes of errors: one line on stderr and an exit code."""

from __future__ import annotations

import runpy
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from hqtvae_fast.cli.bench import SETTINGS, bench
from hqtvae_fast.cli.convert import convert
from hqtvae_fast.cli.evaluate import evaluate
from hqtvae_fast.cli.figure import figure
from hqtvae_fast.cli.help import command_of
from hqtvae_fast.cli.images import decode, encode, reconstruct
from hqtvae_fast.cli.info import info
from hqtvae_fast.cli.many import ManyValues
from hqtvae_fast.cli.output import say_errors
from hqtvae_fast.cli.pack import pack
from hqtvae_fast.cli.plan import plan
from hqtvae_fast.cli.sample import sample
from hqtvae_fast.cli.streams import steady_streams
from hqtvae_fast.cli.train import train
from hqtvae_fast.cli.tune import tune
from hqtvae_fast.files import first_line
from hqtvae_fast.train.loop.stopping import Stopped

PROGRAM = "hqtvae"
BAD_INPUT, INTERRUPTED = 2, 130  # exit codes; 0 when all went well

app = typer.Typer(
    name=PROGRAM,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Example: hqtvae sample path/to/checkpoint --classes 207,250-253 --num-images 4 --top-k 2048 --out dogs.png",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {version('hqtvae_fast')} (torch {_torch_version()})")
        raise typer.Exit


def _torch_version() -> str:
    """With its build (+cpu, +cu130), which the package's metadata may lack; without importing it."""
    torch = find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    return str(runpy.run_path(str(Path(torch.origin).with_name("version.py")))["__version__"])


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="After an error, print the full traceback too.")] = False,
) -> None:
    """Draw, encode and decode pictures with HQ-TVAE.

    A CHECKPOINT is demo (the small model that comes with the package), a directory of a released checkpoint
    (config.yaml and ckpt/) or of one written by this package (config.json and model.safetensors), or the name of a
    Hugging Face Hub repository holding either.

    Errors are one line on stderr and exit code 2.
    """


PICTURES, SETS, MODELS = "Pictures", "Sets of pictures", "Models"  # panels of --help
_COMMANDS: dict[Callable[..., None], tuple[str, str]] = {  # the panel and an example
    sample: (PICTURES, "hqtvae sample path/to/checkpoint --classes 0,3,5-7 --num-images 4 --top-k 2048 --captions"),
    reconstruct: (PICTURES, "hqtvae reconstruct path/to/checkpoint photo.jpg portrait.png --levels --out both.png"),
    encode: (PICTURES, "hqtvae encode path/to/checkpoint photos/ --out codes.safetensors"),
    decode: (PICTURES, "hqtvae decode path/to/checkpoint codes.safetensors --out-dir decoded/"),
    evaluate: (
        SETS,
        "hqtvae evaluate --reference path/to/val --samples path/to/new --features inception:path/to/fid.pth",
    ),
    pack: (SETS, "hqtvae pack path/to/samples --out samples.npz"),
    info: (MODELS, "hqtvae info --preset S --batch 1 --batch 50"),
    convert: (MODELS, "hqtvae convert path/to/released path/to/converted --dtype bf16"),
    tune: (MODELS, "hqtvae tune path/to/checkpoint --budget 10 --batches 1 50"),
}
for _command, (_panel, _example) in _COMMANDS.items():
    _kind = ManyValues if _command is tune else None  # --batches 1 8
    app.command(cls=_kind, epilog=f"Example: {_example}", rich_help_panel=_panel)(_command)
app.add_typer(
    figure, name="figure", rich_help_panel=SETS, epilog='Example: hqtvae figure levels demo --prompt "owl, 3d"'
)
app.add_typer(
    train, name="train", rich_help_panel=MODELS, epilog="Example: hqtvae train stage1 --data pictures/ --out runs/vae"
)
app.add_typer(plan, name="plan", rich_help_panel=MODELS, epilog="Example: hqtvae plan show")
app.command(context_settings=SETTINGS, add_help_option=False, rich_help_panel=MODELS)(bench)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``hqtvae`` with these arguments (the process's own if None) and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    given, debug = _debug_first(given)
    try:
        with steady_streams():
            return _run(given, debug)
    except OSError as error:  # of stdout; whatever was to be written to files has been
        say_errors([describe(error)])
        return BAD_INPUT


def _run(arguments: list[str], debug: bool) -> int:
    """Run one command; what goes wrong in it is said here."""
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.showwarning = _shown_once()
            code = command_of(app).main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Stopped as stopped:  # it has said what is saved
        return stopped.code
    except Exception as error:
        if debug:
            traceback.print_exc()
        say_errors([describe(error)])
        return BAD_INPUT
    if code == INTERRUPTED:
        typer.echo("interrupted", err=True)
    return code if isinstance(code, int) else 0


def _debug_first(arguments: list[str]) -> tuple[list[str], bool]:
    """``--debug`` is one option of the whole program, but may be written after the command too."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    rest = [argument for argument in arguments[:end] if argument != "--debug"]
    debug = len(rest) < end
    return ["--debug"] * debug + rest + arguments[end:], debug


def describe(error: Exception) -> str:
    """What went wrong, in one line."""
    if hasattr(error, "format_message"):  # a usage error of Typer's
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        text = f"{error.format_message()}{hint}"
    elif _is_out_of_memory(error):
        text = f"not enough memory; fewer images at once (--batch-size or --batches) need less ({first_line(error)})"
    elif isinstance(error, OSError) and error.strerror is not None:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    elif isinstance(error, (ValueError, OSError)):
        text = str(error) or type(error).__name__
    else:
        text = f"unexpected {type(error).__name__}: {first_line(error)} (--debug shows where)"
    return " ".join(text.split())


def _is_out_of_memory(error: Exception) -> bool:
    if not isinstance(error, (MemoryError, RuntimeError)):
        return False  # what torch raises is one of these: do not import it to be told so
    from hqtvae_fast.engine import is_out_of_memory

    return is_out_of_memory(error)


def _shown_once() -> Callable[..., None]:
    """Python itself forgets what it has shown whenever some library touches the filters."""
    said = set[str]()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        line = f"warning: {' '.join(str(message).split())}"
        if line not in said:
            said.add(line)
            typer.echo(line, err=True)

    return show
