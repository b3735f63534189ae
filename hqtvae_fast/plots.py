"""How figures with axes look; they need matplotlib, of the ``train`` and ``eval`` extras."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib import import_module
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's
INK, FAINT = "#24292f", "#d0d7de"
DPI = 120


def draw(
    plot: Callable[[Any], None],
    size: tuple[float, float],
    *,
    rows: int = 1,
    columns: int = 1,
    share_y: bool = False,
    kind: str = "png",
) -> bytes:
    """A picture of what ``plot`` does with the axes of ``rows`` by ``columns`` panels (a list of them, row by row).

    ``size`` in inches. ``kind``: png, on white; or svg, without a ground, for :func:`on_a_page`. ValueError without
    matplotlib.
    """
    try:
        matplotlib = import_module("matplotlib")
    except ImportError as error:
        raise ValueError(f"this figure needs matplotlib: pip install 'hqtvae_fast[train]' ({error})") from error
    matplotlib.use("Agg")  # files only: no window, no display
    pyplot = import_module("matplotlib.pyplot")
    settings = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), FAINT),
        "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
        **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
        **{"font.size": 9.5, "axes.titlesize": 10.5, "axes.titlelocation": "left"},
    }
    with matplotlib.rc_context(settings):
        figure, axes = pyplot.subplots(
            rows, columns, figsize=size, dpi=DPI, layout="constrained", sharey=share_y, squeeze=False
        )
        plot(axes.flatten().tolist())
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, transparent=kind == "svg")
        pyplot.close(figure)
    return buffer.getvalue()


def on_a_page(svg: bytes) -> str:
    """What :func:`draw` made as an element of an HTML page, in the page's own ink and, for what is faint, the CSS
    variable ``--faint``: dark pages need no second picture."""
    text = svg.decode()
    return text[text.index("<svg") :].replace(INK, "currentColor").replace(FAINT, "var(--faint)")
