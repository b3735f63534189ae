"""How figures with axes look; they need matplotlib, of the ``train`` and ``eval`` extras."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's
DPI = 120


@dataclass(frozen=True)
class Theme:
    """Colours of text and lines, of what is faint, and of the ground, as #rrggbb."""

    name: str
    ink: str
    faint: str
    page: str


LIGHT, DARK = Theme("light", "#24292f", "#d0d7de", "#ffffff"), Theme("dark", "#e6edf3", "#3d444d", "#0d1117")
THEMES = (LIGHT, DARK)
INK, FAINT = LIGHT.ink, LIGHT.faint


def draw(
    plot: Callable[[Any], None],
    size: tuple[float, float],
    *,
    rows: int = 1,
    columns: int = 1,
    share_y: bool = False,
    kind: str = "png",
    theme: Theme = LIGHT,
) -> bytes:
    """A picture of what ``plot`` does with the axes of ``rows`` by ``columns`` panels (a list of them, row by row).

    ``size`` in inches. ``kind``: png, on the theme's ground; or svg, without one, for :func:`on_a_page`, which wants
    LIGHT. ValueError without matplotlib.
    """
    try:
        matplotlib = import_module("matplotlib")
    except ImportError as error:
        raise ValueError(f"this figure needs matplotlib: pip install 'hqtvae_fast[train]' ({error})") from error
    matplotlib.use("Agg")  # files only: no window, no display
    pyplot = import_module("matplotlib.pyplot")
    settings = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), theme.ink),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), theme.page),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), theme.faint),
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
