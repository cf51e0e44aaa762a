"""Which loggers' packages are installed."""

from __future__ import annotations

from importlib.util import find_spec

from hitdet_nni.config.settings import Logger
from hitdet_nni.errors import InputError


def install(logger: Logger) -> str:
    """Return the command that installs a logger's package: each is an extra of this one."""
    return f"pip install 'hitdet-nni[{logger}]'"


def is_available(logger: Logger) -> bool:
    """Whether a logger's package, which has its name, is installed."""
    return find_spec(logger) is not None


def require_package(logger: Logger | None, key: str = "logger") -> None:
    """Refuse to go on without a logger's package.

    Args:
        logger: The logger, if there is one.
        key: The setting or option that asks for it.

    Raises:
        InputError: If its package is not installed.
    """
    if logger is not None and not is_available(logger):
        raise InputError(f"needs the package {logger}", key=key, allowed=f"after {install(logger)}")
