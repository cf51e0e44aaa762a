"""The progress of trainings for people: a table that lives on a terminal, or a line an epoch where there is none."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hitdet_nni.engine.progress import Progress

LINE_INTERVAL = 180.0
"""Seconds after which an epoch that has not ended gets a line, where there is no terminal."""

LINES_AN_EPOCH = 20
"""Such lines of an epoch at most, however long it is."""

SHORTEST_BAR, LONGEST_BAR = 6, 30
_GAP = 2  # columns between two cells
_MARGIN = 3  # columns that a terminal may write ^C into without a new line
DRAW_INTERVAL = 0.25
"""Seconds between two drawings of the table within an epoch."""


class View(Protocol):
    """Shows progress while its context lasts."""

    def __enter__(self) -> Any:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """End; what was shown last stays."""

    def __call__(self, progress: Progress) -> None:
        """Show it."""

    def echo(self, text: str) -> None:
        """Show a line that stays."""

    def waiting(self, text: str) -> None:
        """Say what is waited for until the first progress comes."""


def clock(seconds: float) -> str:
    """Write a duration as people read it, e.g. ``0:07``, ``1:02:03`` or ``2 d 03:04:05``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02d}:{minute:02d}:{second:02d}"
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def short(value: float) -> str:
    """Write a number in four significant digits."""
    return f"{value:.4g}"


_RESULTS: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("loss", lambda value: f"loss {short(value)}"),
    ("val_loss", lambda value: f"val loss {short(value)}"),
    ("gflops", lambda value: f"{short(value)} GFLOPs expected"),
    ("mAP", lambda value: f"mAP {value:.3f}"),
    ("top1", lambda value: f"top-1 {value:.3f}"),
    ("seconds", lambda value: f"{value:.1f} s"),
)
"""What a line tells of an epoch's results, in this order."""


def epoch_line(progress: Progress) -> str:
    """Write the line of an epoch that has ended: ``search  epoch 3/12  loss 1.23  4.1 s  left 0:37``."""
    epoch = f"epoch {progress.epoch}" if progress.epochs or progress.epoch else ""
    epoch += f"/{progress.epochs}" if progress.epochs else ""
    parts = [progress.who, progress.stage, epoch]
    parts += [form(progress.results[key]) for key, form in _RESULTS if key in progress.results]
    if progress.left is not None and progress.doing != "ended":
        parts.append(f"left {clock(progress.left)}")
    return "  ".join(filter(None, parts))


def step_line(progress: Progress) -> str:
    """Write the line of one that goes on: ``search  epoch 4/12  step 12/300  loss 1.23  0.8 steps/s  left 5:03:00``."""
    parts = [progress.who, progress.stage, f"epoch {progress.epoch + 1}/{progress.epochs}"]
    parts.append("evaluating" if progress.doing == "evaluating" else f"step {progress.step}/{progress.steps}")
    if progress.loss is not None:
        parts.append(f"loss {short(progress.loss)}")
    if progress.rate is not None:
        parts.append(f"{progress.rate:.2g} steps/s")
    if progress.left is not None:
        parts.append(f"left {clock(progress.left)}")
    return "  ".join(filter(None, parts))


class LineView:
    """A line an epoch, and some within an epoch that takes long.

    Args:
        write: Takes the lines.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self.echo = write
        self._ends: dict[str, tuple[str, int, bool]] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> LineView:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: nothing is left to be shown."""

    def __call__(self, progress: Progress) -> None:
        """Write a line where an epoch has ended, or the last line is old."""
        if progress.doing == "waiting" or (progress.doing == "ended" and not progress.epochs):
            return  # whoever told of it has said so
        now = time.monotonic()
        end = (progress.stage, progress.epoch, bool(progress.results))
        if self._ends.get(progress.who) != end:
            known = progress.who in self._ends and self._ends[progress.who][0] == progress.stage
            self._ends[progress.who] = end
            self._said[progress.who] = now
            if progress.results and (known or progress.doing == "ended" or not progress.step):
                self.echo(epoch_line(progress))
            return
        rest = (progress.steps / progress.rate) if progress.rate else 0.0
        if progress.steps and now - self._said[progress.who] >= max(LINE_INTERVAL, rest / LINES_AN_EPOCH):
            self._said[progress.who] = now
            self.echo(step_line(progress))

    def waiting(self, text: str) -> None:
        """Write it."""
        self.echo(text)


@dataclass(frozen=True)
class _Column:
    """A column of the table.

    Attributes:
        title: Its heading.
        cell: What it holds of a progress.
        need: The larger, the longer the column stays when the terminal is narrow.
        right: Whether its cells end together.
    """

    title: str
    cell: Callable[[Progress], str]
    need: int
    right: bool = True


def _epoch_cell(progress: Progress) -> str:
    running = progress.epoch + (progress.doing != "ended")
    return f"{min(running, progress.epochs)}/{progress.epochs}" if progress.epochs else ""


def _step_cell(progress: Progress) -> str:
    if not progress.steps or progress.doing in ("ended", "waiting"):
        return ""
    return "evaluating" if progress.doing == "evaluating" else f"{progress.step}/{progress.steps}"


def _left_cell(progress: Progress) -> str:
    if progress.doing in ("ended", "waiting"):
        return {"ended": "done", "waiting": "waits"}[progress.doing]
    return "" if progress.left is None else clock(progress.left)


def _loss_cell(progress: Progress) -> str:
    loss = progress.results.get("loss") if progress.doing == "ended" else progress.loss
    return "" if loss is None else f"{loss:.3f}"


def _result_cell(progress: Progress) -> str:
    for key, name in (("mAP", "mAP "), ("top1", "top-1 "), ("val_loss", "")):
        if key in progress.results:
            return f"{name}{progress.results[key]:.3f}"
    return ""


_COLUMNS = (
    _Column("", lambda progress: progress.who, 9, right=False),
    _Column("stage", lambda progress: progress.stage, 9, right=False),
    _Column("epoch", _epoch_cell, 8),
    _Column("step", _step_cell, 7),
    _Column("steps/s", lambda progress: f"{progress.rate:.2g}" if progress.rate and _step_cell(progress) else "", 3),
    _Column("left", _left_cell, 6),
    _Column("loss", _loss_cell, 5),
    _Column("val", _result_cell, 4),
    _Column("GFLOPs", lambda progress: short(progress.results["gflops"]) if "gflops" in progress.results else "", 1),
)
_BAR_AFTER = 2  # columns that stand before the bar


def progress_table(rows: Sequence[Progress], width: int) -> Table:
    """Write one line a row, with a bar; where a narrow terminal has no room, the least needed columns are left out.

    Args:
        rows: What is to be shown.
        width: Columns of the terminal.
    """
    cells = {column: [column.cell(row) for row in rows] for column in _COLUMNS}
    wide = {column: max([len(column.title), *map(len, found)]) for column, found in cells.items() if any(found)}
    while len(wide) > _BAR_AFTER + 1 and sum(wide.values()) + _GAP * len(wide) + SHORTEST_BAR > width:
        del wide[min(wide, key=lambda column: column.need)]
    bar = max(SHORTEST_BAR, min(LONGEST_BAR, width - sum(wide.values()) - _GAP * len(wide)))
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim")
    before = [column for column in _COLUMNS[:_BAR_AFTER] if column in wide]
    behind = [column for column in _COLUMNS[_BAR_AFTER:] if column in wide]
    for column in before:
        table.add_column(column.title, no_wrap=True)
    table.add_column("", width=bar, no_wrap=True)
    for column in behind:
        table.add_column(column.title, justify="right" if column.right else "left", no_wrap=True)
    for number, row in enumerate(rows):
        left: list[RenderableType] = [Text(cells[column][number]) for column in before]
        right: list[RenderableType] = [Text(cells[column][number]) for column in behind]
        table.add_row(*left, ProgressBar(total=1.0, completed=row.share, width=bar), *right)
    return table


class TableView:
    """A table that lives on a terminal: a line a stage, or of several trainings a line each. Other output goes above.

    It is drawn by whoever tells of progress, not by a thread of its own: loader processes are forked from this one.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._rows: dict[str, Progress] = {}
        self._waiting = ""
        self._drawn = 0.0
        self._streams = (sys.stdout, sys.stderr)
        self._live = Live(
            console=console, get_renderable=self._render, auto_refresh=False, vertical_overflow="crop", screen=False
        )

    def __enter__(self) -> TableView:
        self._streams = (sys.stdout, sys.stderr)
        self._live.start()
        _on_terminal.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _on_terminal.remove(self)
        self._waiting = ""
        self._live.refresh()
        self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Show it, unless the table was drawn just now and it tells of a step only."""
        key = progress.who or progress.stage
        before = self._rows.get(key)
        self._waiting = ""
        self._rows[key] = progress
        same = before is not None and (before.epoch, before.doing) == (progress.epoch, progress.doing)
        if not same or time.monotonic() - self._drawn >= DRAW_INTERVAL:
            self._draw()

    def echo(self, text: str) -> None:
        """Write a line above the table."""
        if self in _on_terminal:
            self.console.print(Text(text), highlight=False)
        else:  # a forked process: the table is its parent's
            self.console.file.write(f"{text}\n")

    def waiting(self, text: str) -> None:
        """Show it below the table until the next progress comes."""
        self._waiting = text
        self._draw()

    def let_go(self) -> None:
        """Leave the table to the parent, in a process that was forked."""
        sys.stdout, sys.stderr = self._streams

    def _draw(self) -> None:
        self._live.refresh()
        self._drawn = time.monotonic()

    def _render(self) -> RenderableType:
        rows = list(self._rows.values())
        room = max(1, self.console.height - 4)
        # The oldest that have ended give way to those that are at work.
        gone = [row for row in rows if row.doing == "ended"][: max(0, len(rows) - room)]
        shown = [row for row in rows if row not in gone][-room:]
        parts: list[RenderableType] = [progress_table(shown, self.console.width - _MARGIN)] if shown else []
        if gone:
            parts.insert(0, Text(f"{len(gone)} done", style="dim"))
        if self._waiting:
            parts.append(Text(self._waiting, style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(*parts)


_on_terminal: list[TableView] = []
"""The views that this process draws."""


def _let_go() -> None:
    while _on_terminal:
        _on_terminal.pop().let_go()


os.register_at_fork(after_in_child=_let_go)


def view_on(stream: IO[str], write: Callable[[str], None]) -> View:
    """Return the view that suits a stream: a table on a terminal that can move its cursor, lines otherwise.

    Args:
        stream: Standard output or standard error.
        write: Takes the lines where there is no such terminal.
    """
    console = Console(file=stream, markup=False, emoji=False)
    if stream.isatty() and not console.is_dumb_terminal:
        return TableView(console)
    return LineView(write)


class ViewHandler(logging.Handler):
    """Writes log records into a view, so that they do not run into what is drawn there.

    Args:
        view: Takes the lines.
    """

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view = view

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            self.view.echo(self.format(record))
        except Exception:  # as logging's own handlers: no record ends the program
            self.handleError(record)
