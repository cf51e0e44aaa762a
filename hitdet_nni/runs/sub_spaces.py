"""The sub search spaces of a run, which stay what they were when it began."""

from __future__ import annotations

from hitdet_nni.config.search_space import SearchSpace, load_search_space, save_search_space
from hitdet_nni.engine import distributed
from hitdet_nni.errors import InputError
from hitdet_nni.runs.run_directory import RunDirectory


def kept_sub_spaces(run: RunDirectory, given: SearchSpace | None) -> SearchSpace | None:
    """Return the sub search spaces that a run has kept, or keep those that are given.

    Args:
        run: The run; all its processes call this.
        given: What is to be used instead of a screening, if anything.

    Returns:
        The sub search spaces, or ``None`` where none are kept nor given, and the run has to screen.

    Raises:
        InputError: If others are given than the run has.
    """
    if distributed.broadcast_object(run.sub_spaces.is_file()):
        kept = load_search_space(run.sub_spaces)
        if given is not None and given != kept:
            allowed = "those, another --out, or --force to begin again there"
            raise InputError("the run has other sub-spaces than the given ones", source=run.sub_spaces, allowed=allowed)
        return kept
    if given is not None and distributed.is_main():
        save_search_space(given, run.sub_spaces)
    distributed.barrier()
    return given
