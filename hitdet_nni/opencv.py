"""OpenCV that cannot be imported, told in one line with the way out.

There are several distributions of OpenCV, all of which bring the one package ``cv2``. Those for desktops need libraries
of X that servers and slim containers lack, and two of them in one environment overwrite each other's files. ``install``
puts a finder in front of the import system that answers for ``cv2``, whoever imports it first: mmcv and mmengine do so
while they are imported. Importing this module loads no OpenCV.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from hitdet_nni.errors import InputError

PACKAGE = "cv2"
RECOMMENDED = "opencv-python-headless"
DISTRIBUTIONS = ("opencv-python", "opencv-contrib-python", RECOMMENDED, "opencv-contrib-python-headless")
"""All that bring ``cv2``."""


class OpenCVError(InputError, ImportError):
    """OpenCV cannot be imported; its text says why, and which commands mend that.

    An ``ImportError`` too, since that is what one who tries whether there is an OpenCV expects.

    Args:
        reason: What is wrong, e.g. ``"libxcb.so.1: cannot open shared object file"``.
    """

    def __init__(self, reason: str) -> None:
        installed = providers()
        pip = f"{sys.executable} -m pip"
        remove = f"{pip} uninstall --yes {' '.join(installed)}; " if installed else ""
        super().__init__(
            f"OpenCV cannot be imported ({reason}); installed: {', '.join(installed) or 'none'}; mend it by: "
            f"{remove}{pip} install --no-deps {RECOMMENDED}"
        )


def providers() -> list[str]:
    """Names of the installed distributions that bring ``cv2``. More than one overwrite each other's files."""
    metadata = importlib.import_module("importlib.metadata")  # only now: it takes a while, and is seldom needed
    installed = {
        str(distribution.metadata["Name"]).replace("_", "-").lower() for distribution in metadata.distributions()
    }
    return [name for name in DISTRIBUTIONS if name in installed]


class _Loader(Loader):
    """Execute ``cv2`` as its own loader does; what fails there is an :class:`OpenCVError`.

    Args:
        loader: The loader of the installed ``cv2``; ``None`` where there is none.
        reason: What is wrong where there is none.
    """

    def __init__(self, loader: Loader | None, reason: str) -> None:
        self.loader = loader
        self.reason = reason

    def __getattr__(self, name: str) -> Any:
        """What else a loader is asked for, such as the source of the module."""
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the installed ``cv2``'s own."""
        return None if self.loader is None else self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the installed ``cv2``.

        Raises:
            OpenCVError: There is none, a library that it needs is missing, or its files are of several distributions.
        """
        if self.loader is None:
            raise OpenCVError(self.reason)
        path = list(sys.path)
        _FINDER.within = True
        try:
            self.loader.exec_module(module)
            if not hasattr(module, "imdecode"):
                raise ImportError("its files are incomplete")
        except (ImportError, AttributeError) as error:
            # Its own __init__ puts neither back, and the next import would complain of that.
            sys.path[:] = path
            vars(sys).pop("OpenCV_LOADER", None)
            raise OpenCVError(str(error)) from error
        finally:
            _FINDER.within = False


class _Finder(MetaPathFinder):
    """Find ``cv2`` as the import system does, and watch over its execution.

    Attributes:
        within: Whether ``cv2`` is being executed. It then imports its compiled half by the very same name.
    """

    within = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of the installed ``cv2``; for all other modules None."""
        if fullname != PACKAGE or self.within:
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
    """Watch over the first import of ``cv2``. A second call changes nothing."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def check() -> None:
    """Import OpenCV.

    Raises:
        OpenCVError: It cannot be imported.
    """
    importlib.import_module(PACKAGE)
