"""The numbers that COCO's results format has for images and classes."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from hitdet_nni.data.annotations.coco_document import DocumentSource, Entry, read_document
from hitdet_nni.errors import InputError


@dataclass(frozen=True)
class CocoNumbers:
    """Numbers of images and classes.

    Attributes:
        categories: Number of each class, in the order of the labels.
        images: Number of each image by its name with composed letters (NFC), ``None`` for a file name that several
            have; ``None`` in all: images are numbered in their order, from 1.
        source: The annotation file, if there is one.
    """

    categories: tuple[int, ...]
    images: Mapping[str, int | None] | None = None
    source: Path | None = None

    @classmethod
    def counted(cls, classes: Sequence[str]) -> CocoNumbers:
        """Number the classes in the order of their labels, and the images in theirs, from 1."""
        return cls(tuple(range(1, len(classes) + 1)))

    @classmethod
    def of_file(cls, ann: Path, classes: Sequence[str]) -> CocoNumbers:
        """Take the numbers of an annotation file.

        Args:
            ann: The file, in COCO's format.
            classes: Class names in the order of the labels.

        Raises:
            InputError: If it cannot be read, or lacks a class.
        """
        source = DocumentSource(ann, "--ann")
        document = read_document(source, ("images", "categories"))
        numbers = {
            source.of_type(f"categories[{place}]", entry, "name", str, "a name"): _id_of(
                source, f"categories[{place}]", entry
            )
            for place, entry in enumerate(document.categories)
        }
        missing = [name for name in classes if name not in numbers]
        if missing:
            raise InputError(f"has no category {missing[0]!r}", source=ann, allowed="all classes of the detector")
        names = [
            _composed(source.of_type(f"images[{place}]", entry, "file_name", str, "a file name"))
            for place, entry in enumerate(document.images)
        ]
        ids = [_id_of(source, f"images[{place}]", entry) for place, entry in enumerate(document.images)]
        bases = Counter(PurePath(name).name for name in names)
        by_name = dict(zip(map(PurePath, names), ids, strict=True))
        images = {name.name: number if bases[name.name] == 1 else None for name, number in by_name.items()}
        images |= {str(name): number for name, number in by_name.items()}
        return cls(tuple(numbers[name] for name in classes), images, ann)

    def of_images(self, names: Sequence[PurePath]) -> list[int | None]:
        """Return the number of each image, ``None`` for one that the annotation file does not have.

        Args:
            names: Path of each below the folder that was named, else its file name.

        Raises:
            InputError: If the annotation file has none of them, several images of a name, or one for two names.
        """
        if self.images is None:
            return list(range(1, len(names) + 1))
        numbers: list[int | None] = []
        found: dict[int, PurePath] = {}
        for name in names:
            key = next((key for key in map(_composed, (str(name), name.name)) if key in self.images), None)
            number = None if key is None else self.images[key]
            if key is not None and number is None:
                raise InputError(
                    f"has several images that are called {name}",
                    source=self.source,
                    allowed="naming the folder above them",
                )
            if number in found:
                raise InputError(f"has one image for {found[number]} and {name}", source=self.source)
            if number is not None:
                found[number] = name
            numbers.append(number)
        if not found:
            raise InputError(f"has no image {names[0]}, nor another that is named", source=self.source)
        return numbers


def _id_of(source: DocumentSource, place: str, entry: Entry) -> int:
    """Return the id of an entry, which some tools write with a decimal point."""
    given = entry.get("id")
    if isinstance(given, float) and given.is_integer():
        return int(given)
    number: int = source.of_type(place, entry, "id", int, "a whole number")
    return number


def _composed(name: str) -> str:
    """Return a name as it is compared: a file system may write its letters and their accents apart."""
    return unicodedata.normalize("NFC", name)
