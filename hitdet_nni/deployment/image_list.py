"""The images that a user names: files, folders and patterns."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from hitdet_nni.data.images.image_files import IMAGE_SUFFIXES
from hitdet_nni.data.layouts.parts import UNREAD, files_below
from hitdet_nni.data.wording import counted
from hitdet_nni.errors import InputError


@dataclass(frozen=True)
class ListedImage:
    """An image that was named.

    Attributes:
        file: The file.
        name: Its path below the folder that was named, else its file name; of several that are called so, the path as
            it was named.
        file_name: The same before images of one name were told apart.
        drawing: Name of its drawing: the file name, with a number where another image has it. No two of a list have the
            same.
    """

    file: Path
    name: PurePath
    file_name: PurePath
    drawing: PurePath


def list_images(words: Sequence[str | Path]) -> list[ListedImage]:
    """Return the images that files, folders and patterns name, each once, in the order of the words and by their names.

    Of a folder these are all files below it whose names end as those of images do, hidden ones left out.

    Raises:
        InputError: If a word names none.
    """
    found: dict[Path, tuple[Path, PurePath]] = {}
    for word in words:
        named = list(_named(str(word)))
        if not named:
            folder = Path(word).is_dir()
            unread = unread_images([word])
            if unread:
                problem = f"holds {counted(len(unread), '{image|images}')} of formats that are not read, and no other"
                raise InputError(problem, source=str(word), allowed="images that are converted, as to JPEG")
            problem = "holds no image" if folder else "no such file, and no pattern that a file fits"
            allowed = f"files that end in {', '.join(sorted(IMAGE_SUFFIXES))}" if folder else None
            raise InputError(problem, source=str(word), allowed=allowed)
        for file, name in named:
            found.setdefault(file.resolve(), (file, name))
    taken: set[PurePath] = set()
    called = Counter(name for _, name in found.values())
    listed = []
    for file, (named_as, name) in found.items():
        own, number = name, 1
        while own in taken:
            number += 1
            own = name.with_stem(f"{name.stem}-{number}")
        taken.add(own)
        listed.append(ListedImage(file, name if called[name] == 1 else named_as, name, own))
    again = Counter(one.name for one in listed)  # a path may be what another one is called below its folder
    return [one if again[one.name] == 1 else replace(one, name=found[one.file][0].absolute()) for one in listed]


def unread_images(words: Sequence[str | Path]) -> list[Path]:
    """Return the images of formats that are not read in the folders that are named; :func:`list_images` has none."""
    others = set(UNREAD) - IMAGE_SUFFIXES
    folders = (Path(word) for word in words if Path(word).is_dir())
    files = (file for folder in folders for file in files_below(folder, key=None) if file.suffix.lower() in others)
    return list({file.resolve(): file for file in files}.values())


def _named(word: str) -> Iterator[tuple[Path, PurePath]]:
    """Yield the files that a word names, each with its name."""
    path = Path(word)
    if path.is_file():
        yield path, PurePath(path.name)
    elif path.is_dir():
        for file in files_below(path, key=None):
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file():
                yield file, file.relative_to(path)
    else:
        for match in sorted(glob.glob(word, recursive=True)):  # noqa: PTH207  (the pattern may be absolute)
            if Path(match).is_file():
                yield Path(match), PurePath(Path(match).name)
