"""每一课末尾的演示如何启动：`python 某一课.py [--plot FILE]`。"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["check_picture", "new_figure", "run_demo", "save_figure", "use_utf8"]


def use_utf8() -> None:
    """Make stdout and stderr UTF-8, so that Chinese and √ print on any Windows console."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def run_demo(demo: Callable[[], None], plot: Callable[[Path], None] | None = None) -> None:
    """Run a lesson's demonstration from the command line, deterministically.

    `--plot FILE` (only where the lesson has something to draw) writes a picture instead.
    """
    import torch  # here, so that `fromzero --help` never pays for it

    use_utf8()
    module = sys.modules["__main__"]
    parser = argparse.ArgumentParser(description=first_line(module.__doc__))
    if plot is not None:
        parser.add_argument(
            "--plot", type=Path, metavar="FILE", help="draw a picture (png, svg, pdf)"
        )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if plot is not None and arguments.plot is not None:
        try:
            plot(arguments.plot)
        except (ValueError, OSError) as error:
            parser.exit(2, f"error: {error}\n")
        print(f"图已保存：{arguments.plot}")
    else:
        demo()


def first_line(docstring: str | None) -> str:
    """Return the first line of a docstring, or an empty string."""
    return (docstring or "").strip().split("\n", 1)[0]


def new_figure(n_rows: int = 1, n_columns: int = 1, size: tuple[float, float] = (7.0, 4.5)) -> Any:
    """Return (figure, axes) without touching any display and without global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_rows, n_columns)
    return figure, axes


def check_picture(path: Path) -> None:
    """Refuse an ending that names no format: before the work, not after it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    supported = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in supported:
        raise ValueError(f"cannot draw to {path}: the ending must be one of {', '.join(supported)}")


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure; the ending of `path` chooses the format."""
    check_picture(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
