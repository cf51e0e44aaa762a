"""``study``: is what the search finds better than chance, and what do its parts contribute?"""

from __future__ import annotations

from argparse import Namespace

from hitdet_nni.commands.console import settings_of
from hitdet_nni.commands.work import at_work, load_libraries
from hitdet_nni.config.architecture import load_architecture
from hitdet_nni.config.settings import Settings, load_settings, parse_overrides
from hitdet_nni.engine import distributed
from hitdet_nni.errors import InputError
from hitdet_nni.runs.run_directory import RunDirectory, find_run


def study_command(options: Namespace) -> None:
    """``study``: check what is given, then the kind that is asked for.

    Raises:
        InputError: If a number is out of its range, or the config or the run that is named is bad.
    """
    for name in ("architectures", "seeds", "jobs", "repeats"):
        if getattr(options, name, 1) < 1:
            raise InputError(f"got {getattr(options, name)}", source=f"--{name}", allowed="a positive number")
    if not 0 < getattr(options, "slack", 1) <= 1:
        raise InputError(f"got {options.slack}", source="--slack", allowed="above 0, at most 1")
    if min(getattr(options, "weights", [0])) < 0:
        raise InputError(f"got {min(options.weights)}", source="--weights", allowed="numbers of 0 or more")
    settings = _settings(options)
    with at_work(options, f"{options.kind}, {getattr(options, 'run', None) or options.config}") as view:
        load_libraries(view, settings)
        from hitdet_nni.commands.study_kinds import KINDS, print_findings

        with RunDirectory(options.out).timed("study"):
            findings = KINDS[options.kind](options)
    if distributed.launched_as_main():
        print_findings(findings, as_json=options.json)


def _settings(options: Namespace) -> Settings:
    """The settings of the config, or of the run that is studied."""
    if not hasattr(options, "run"):
        return settings_of(options)
    run = find_run(options.run)
    load_architecture(run.architecture)
    return load_settings(run.config, parse_overrides(options.overrides))
