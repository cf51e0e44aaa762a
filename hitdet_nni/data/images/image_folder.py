"""The folder of images: which names it holds, and what a name that it does not hold may mean."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path, PurePosixPath


def stays_inside(name: str) -> bool:
    """Whether a file name is a relative path that a file system can hold and that leads out of no folder."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # lone surrogates, which JSON can spell and no file system can
        return False
    path = PurePosixPath(name)
    return "\0" not in name and path.name != "" and not path.is_absolute() and ".." not in path.parts


class ImageFolder:
    """The files below a folder, each folder in it listed once when it is asked for.

    Asking for 118 thousand files one by one takes minutes on a network drive.

    Args:
        path: The folder; it may not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = Path(os.path.realpath(path))
        self._files: dict[str, set[str]] = {}
        self._forms: dict[str, dict[str, str]] = {}
        self._by_name: dict[str, list[str]] | None = None

    def holds(self, name: str) -> bool:
        """Whether there is such a file, which is no link out of the folder."""
        path = PurePosixPath(name)
        folder = str(path.parent)
        if folder not in self._files:
            try:
                self._files[folder] = _names_inside(self.path / folder, self._root)
            except (OSError, ValueError):  # ValueError: a name that no file system can hold
                self._files[folder] = set()
        return path.name in self._files[folder]

    def other_form(self, name: str) -> str | None:
        """Return the name on disk that differs from one in case or Unicode normal form alone, if there is only one."""
        if not stays_inside(name):
            return None
        found = PurePosixPath()
        for part in PurePosixPath(name).parts:
            spelled = self._spellings(str(found)).get(_form(part))
            if not spelled:
                return None
            found /= spelled
        return str(found) if self.holds(str(found)) else None

    def meant_by(self, name: str) -> str | None:
        """Return what a path of another system or folder means: the same path here, or the only file of its name."""
        path = PurePosixPath(name.replace("\\", "/"))
        if stays_inside(str(path)) and self.holds(str(path)):
            return str(path)
        if self._by_name is None:
            self._by_name = {}
            for folder, _, files in os.walk(self.path):
                for file in files:
                    inside = Path(folder, file).relative_to(self.path).as_posix()
                    self._by_name.setdefault(file, []).append(inside)
        found = [file for file in self._by_name.get(path.name, []) if self.holds(file)]
        return found[0] if len(found) == 1 else None

    def _spellings(self, folder: str) -> dict[str, str]:
        """Return the names in a folder by their composed form in small letters; empty where several share it."""
        if folder not in self._forms:
            names: dict[str, str] = {}
            try:
                for path in (self.path / folder).iterdir():
                    form = _form(path.name)
                    names[form] = "" if form in names else path.name
            except OSError:
                names = {}
            self._forms[folder] = names
        return self._forms[folder]


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _names_inside(folder: Path, root: Path) -> set[str]:
    """Return the names of a folder's files, without those that only a link out of ``root`` leads to."""
    if not Path(os.path.realpath(folder)).is_relative_to(root):
        return set()
    with os.scandir(folder) as found:
        return {
            entry.name
            for entry in found
            if entry.is_file()
            and not (entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(root))
        }
