"""``study``: is what the search finds better than chance, and what do its parts contribute?

The kinds of study are the modules of :mod:`hitdet_nni.commands.study_kinds`.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from hitdet_nni.commands import find_modules

if TYPE_CHECKING:
    from hitdet_nni.config.settings import Settings

HELP_ORDER = 120
HELP = "compare with random architectures or other seeds, or take the method apart as section 4.4 does"
EXAMPLE = "hitdet-nni study random --run runs/mine --architectures 8 --seeds 3 --out runs/study"
KINDS = "hitdet_nni.commands.study_kinds"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the kinds of ``study``, each with its arguments."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, kind in find_modules(KINDS).items():
        kind.add_arguments(kinds.add_parser(name, help=kind.HELP, description=kind.HELP))


def run(options: Namespace) -> None:
    """Check what is given, then do the kind that is asked for.

    Raises:
        InputError: If a number is out of its range, or the config or the run that is named is bad.
    """
    from hitdet_nni.commands.shared.work import at_work, libraries_loading
    from hitdet_nni.engine import distributed
    from hitdet_nni.errors import InputError
    from hitdet_nni.runs.run_directory import RunDirectory

    for name in ("architectures", "seeds", "jobs", "repeats"):
        if getattr(options, name, 1) < 1:
            raise InputError(f"got {getattr(options, name)}", source=f"--{name}", allowed="a positive number")
    if not 0 < getattr(options, "slack", 1) <= 1:
        raise InputError(f"got {options.slack}", source="--slack", allowed="above 0, at most 1")
    if min(getattr(options, "weights", [0])) < 0:
        raise InputError(f"got {min(options.weights)}", source="--weights", allowed="numbers of 0 or more")
    kind = find_modules(KINDS)[options.kind]
    settings = _settings(options, searched=getattr(kind, "NEEDS_SEARCH", True))
    if hasattr(kind, "check"):
        kind.check(options, settings)
    with at_work(options, f"{options.kind}, {getattr(options, 'run', None) or options.config}") as view:
        with libraries_loading(view, settings):
            from hitdet_nni.commands.shared.findings import print_findings

        with RunDirectory(options.out).timed("study"):
            findings = kind.run(options)
    if distributed.launched_as_main():
        print_findings(findings, as_json=options.json)


def _settings(options: Namespace, *, searched: bool) -> Settings:
    """Return the settings of the config, or of the run that is studied, which has been searched if that is needed."""
    from hitdet_nni.commands.shared.console import settings_of
    from hitdet_nni.config.architecture import load_architecture
    from hitdet_nni.config.settings import load_settings, parse_overrides
    from hitdet_nni.runs.run_directory import find_run

    if not hasattr(options, "run"):
        return settings_of(options)
    run = find_run(options.run)
    if searched:
        load_architecture(run.require(run.architecture, "search"))
    return load_settings(run.config, parse_overrides(options.overrides))
