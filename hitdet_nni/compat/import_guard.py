"""Packages that often cannot be imported where they are installed, told in one line with the way out.

``install`` puts a finder in front of the import system that answers for the packages in ``GUARDED``, whoever imports
them first. It finds them as the import system does, and turns what fails in them into one line. Importing this module
loads none of them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from hitdet_nni.errors import InputError

OPENCV_DISTRIBUTIONS = (
    "opencv-python",
    "opencv-contrib-python",
    "opencv-python-headless",
    "opencv-contrib-python-headless",
)
"""All bring the one package ``cv2``: two of them in one environment overwrite each other's files."""

PIP = f"{sys.executable} -m pip"


class BrokenPackageError(InputError, ImportError):
    """A package that this one needs cannot be imported; its text says why, and which commands mend that.

    An ``ImportError`` too, since that is what others expect who try whether the package is there.

    Args:
        package: The package, a key of ``GUARDED``.
        reason: What is wrong, e.g. ``"libxcb.so.1: cannot open shared object file"``.
    """

    def __init__(self, package: str, reason: str) -> None:
        super().__init__(GUARDED[package](reason))


def installed(distributions: Sequence[str]) -> list[str]:
    """Return those of the distributions that are installed."""
    metadata = importlib.import_module("importlib.metadata")  # only now: it takes a while, and is seldom needed
    found = {str(one.metadata["Name"]).replace("_", "-").lower() for one in metadata.distributions()}
    return [name for name in distributions if name in found]


def _opencv(reason: str) -> str:
    """Tell the way out: mmengine asks for opencv-python, which needs libraries of X that servers lack."""
    there = installed(OPENCV_DISTRIBUTIONS)
    remove = f"{PIP} uninstall --yes {' '.join(there)}; " if there else ""
    return (
        f"OpenCV cannot be imported ({reason}); installed: {', '.join(there) or 'none'}; mend it by: "
        f"{remove}{PIP} install --no-deps opencv-python-headless"
    )


def _typeguard(reason: str) -> str:
    """Tell the way out: the versions that NNI 3.0 admits cannot be imported on Python 3.14, later ones serve it."""
    return f"NNI's typeguard cannot be imported ({reason}); mend it by: {PIP} install --no-deps typeguard==4.6.1"


GUARDED: dict[str, Callable[[str], str]] = {"cv2": _opencv, "typeguard": _typeguard}
"""Package -> what to say where it cannot be imported, from the reason."""

_NAMES = {"cv2": "imdecode", "typeguard": "check_type"}
"""Package -> a name that it must have. Files of several distributions leave a package without."""


class _Loader(Loader):
    """Execute a guarded package as its own loader does; what fails there is a :class:`BrokenPackageError`.

    Args:
        loader: The package's own loader; ``None`` where there is none.
        reason: What is wrong where there is none.
    """

    def __init__(self, loader: Loader | None, reason: str) -> None:
        self.loader = loader
        self.reason = reason

    def __getattr__(self, name: str) -> Any:
        """Return what else a loader is asked for, such as the source of the module."""
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as the package's own loader does."""
        return None if self.loader is None else self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the package.

        Raises:
            BrokenPackageError: It is not there, something that it needs is missing, or its files are of several
                distributions.
        """
        package = module.__name__
        if self.loader is None:
            raise BrokenPackageError(package, self.reason)
        path = list(sys.path)
        _FINDER.within.add(package)
        try:
            self.loader.exec_module(module)
            if not hasattr(module, _NAMES[package]):
                raise ImportError("its files are incomplete")
        except (ImportError, AttributeError) as error:
            # cv2 itself puts neither back, and would complain of that when it is imported again.
            sys.path[:] = path
            vars(sys).pop("OpenCV_LOADER", None)
            raise BrokenPackageError(package, str(error)) from error
        finally:
            _FINDER.within.discard(package)


class _Finder(MetaPathFinder):
    """Find the guarded packages as the import system does, and watch over their execution.

    Attributes:
        within: The packages that are being executed. cv2 then imports its compiled half by the very same name.
    """

    def __init__(self) -> None:
        self.within: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a guarded package; for all other modules None."""
        if fullname not in GUARDED or fullname in self.within:
            return None
        spec = PathFinder.find_spec(fullname)
        if spec is None:
            return ModuleSpec(fullname, _Loader(None, "there is none"))
        if spec.origin is None:  # a folder without __init__.py, as an uninstallation of one of two leaves it
            return ModuleSpec(fullname, _Loader(None, "its files are incomplete"))
        spec.loader = _Loader(spec.loader, "")
        return spec


_FINDER = _Finder()


def install() -> None:
    """Watch over the first import of each guarded package. A second call changes nothing."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def check() -> None:
    """Import the guarded packages.

    Raises:
        BrokenPackageError: One of them cannot be imported.
    """
    for package in GUARDED:
        importlib.import_module(package)
