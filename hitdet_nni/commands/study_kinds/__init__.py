"""The kinds of ``study``: every module is one, with its arguments and what it trains.

A module defines ``HELP_ORDER``, ``HELP``, ``add_arguments(parser)`` and ``run(options)``, which returns
:class:`~hitdet_nni.commands.shared.findings.Findings`. It may define ``check(options, settings)``, which refuses what
cannot be studied before anything heavy is loaded. As in :mod:`hitdet_nni.commands`, what ``--help`` does not need is
imported inside the functions.
"""
