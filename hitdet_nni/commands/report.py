"""``report`` and ``compare``: pages of runs."""

from __future__ import annotations

from argparse import Namespace

from hitdet_nni.commands.console import refuse_existing, say
from hitdet_nni.report.page import write_comparison, write_report
from hitdet_nni.report.scalars import write_scalars


def report_command(options: Namespace) -> None:
    """``report``: the page of a run."""
    if options.out is not None:
        refuse_existing(options.out, options.force)
    say(str(write_report(options.run, options.out, pictures=options.pictures)))
    if options.tensorboard is not None:
        say(str(write_scalars(options.run, options.tensorboard)))


def compare_command(options: Namespace) -> None:
    """``compare``: several runs on one page."""
    refuse_existing(options.out, options.force)
    say(str(write_comparison(options.runs, options.out)))
