"""pydantic's findings as the project's one-line errors, in the project's own words."""

from __future__ import annotations

import datetime
import reprlib
import types
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from hitdet_nni.errors import InputError

ONE_VALUE, BY_COMPONENT = "one value", "a value for each component"
"""Tags of the members of a union, which pydantic puts among the keys of a finding's location."""

_BOUNDS = {"gt": "above {:g}", "ge": "of at least {:g}", "lt": "below {:g}", "le": "of at most {:g}"}
_LENGTHS = {"min_length": "of at least {:g}", "max_length": "of at most {:g}"}

Checked = TypeVar("Checked", bound=BaseModel)

_NAMES = ("a path", "text")

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 100


def validated(model: type[Checked], source: Path, value: object) -> Checked:
    """Check the content of a JSON or YAML file.

    Args:
        model: What it must be.
        source: The file, for messages.
        value: The content.

    Raises:
        InputError: If it is something else.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"expected a mapping, got {type(value).__name__}", source=source)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise one_line(error, model, source) from None


def one_line(error: ValidationError, model: type[BaseModel], source: str | Path) -> InputError:
    """Turn a validation error into an :class:`InputError` about its first finding.

    Args:
        error: What ``model.model_validate`` raised.
        model: The model that was validated, to name the keys that it allows and to say what a value may be.
        source: The file that holds the value.
    """
    findings = error.errors(include_url=False)
    finding = findings[0]
    # What is missing at an index is a list that is too short.
    places = [found["loc"][: -1 if _is_short(found) else None] for found in findings]
    keys = [_keys(model, place) for place in places]
    key = ".".join(map(str, keys[0])) or None
    # Each member of a union has findings of its own, of one value.
    others = len({tuple(map(str, found)) for found in keys if found[: len(keys[0])] != keys[0]})
    more = f" (and {others} more)" if others else ""
    if finding["type"] in ("extra_forbidden", "invalid_key"):
        parent = _model_at(model, keys[0][:-1])
        allowed = None if parent is None else list(parent.model_fields)
        return InputError(f"unknown key{_nearest(model, keys[0])}{more}", source=source, key=key, allowed=allowed)
    if finding["type"] == "missing" and not _is_short(finding):
        return InputError(f"missing{more}", source=source, key=key)
    shown = _shown(finding["input"])
    if finding["type"] in ("value_error", "assertion_error"):  # of a validator of the project's
        message = finding["msg"].partition(", ")[2]
        if isinstance(finding["input"], dict):
            return InputError(f"{message}{more}", source=source, key=key)
        return InputError(f"got {shown}{more}", source=source, key=key, allowed=message)
    expected = describe(_annotation_at(model, places[0]))
    if not isinstance(finding["input"], str | list | dict | None) and any(word in expected for word in _NAMES):
        expected += " (put a name like this in quotes)"
    return InputError(f"got {shown}{more}", source=source, key=key, allowed=expected)


def _nearest(model: type[BaseModel], keys: Sequence[str | int]) -> str:
    """Return which key an unknown one may be meant for, in words: the same in a section, or a like one beside it."""
    parent, name = _model_at(model, keys[:-1]), str(keys[-1])
    sections = {key: _model_at(model, [key]) for key in model.model_fields}
    near = [f"{key}.{name}" for key, section in sections.items() if section and name in section.model_fields]
    if parent is not None and not near:
        near = get_close_matches(name, list(parent.model_fields), n=1)
    return f" (the nearest is {' or '.join(near)})" if near else ""


def _is_short(finding: ErrorDetails) -> bool:
    return finding["type"] == "missing" and isinstance(finding["loc"][-1], int)


def require_kind(key: str, value: object, kinds: type | tuple[type, ...], allowed: str) -> None:
    """Refuse a value of Python of another kind; true and false are no numbers.

    Args:
        key: What the value is called.
        value: The value.
        kinds: Its type, or one of several.
        allowed: These in words.

    Raises:
        InputError: If it is of none of them.
    """
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise InputError(f"got {_brief.repr(value)}", key=key, allowed=allowed)


def refuse_booleans(values: object, annotation: Any, source: str | Path, key: str = "") -> None:
    """Refuse true and false where a number is expected, which pydantic takes for 1 and 0.

    Args:
        values: What was read: mappings, lists and single values.
        annotation: The type that it is to have.
        source: The file that holds it.
        key: Dotted key of the value.

    Raises:
        InputError: Naming the first such key and what is allowed there.
    """
    if isinstance(values, bool):
        allowed = describe(annotation)
        if ("number" in allowed or "integer" in allowed) and "true" not in allowed:
            raise InputError(f"got {_shown(values)}", source=source, key=key, allowed=allowed)
    parts = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for part, value in parts:
        inside = _inside(annotation, part)
        if inside is not None:
            refuse_booleans(value, inside, source, f"{key}.{part}" if key else str(part))


def _shown(value: object) -> str:
    """Return a value as YAML has it, as far as it is a single one."""
    if isinstance(value, datetime.date):
        return str(value)
    return {True: "true", False: "false", None: "null"}[value] if _is_word(value) else _brief.repr(value)


def _is_word(value: object) -> TypeGuard[bool | None]:
    return value is None or isinstance(value, bool)


def describe(annotation: Any) -> str:
    """Say in words what a value of a type may be, e.g. ``"an integer above 0, or null"``.

    Args:
        annotation: A type as fields of the settings have it: with bounds, a union, a tuple, a model, ...
    """
    inner, bounds = _unwrapped(annotation)
    origin, arguments = get_origin(inner), get_args(inner)
    if origin in (Union, types.UnionType):
        members = list(dict.fromkeys(describe(member) for member in arguments if member is not type(None)))
        return ", or ".join([*members, *(["null"] if type(None) in arguments else [])])
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin is tuple or origin in (list, Sequence):
        return _describe_list(arguments if origin is tuple else (*arguments, Ellipsis), bounds)
    if origin in (dict, Mapping):
        return f"a mapping, each value {describe(arguments[1])}"
    if isinstance(inner, type) and issubclass(inner, BaseModel):
        return f"a mapping of {', '.join(inner.model_fields)}"
    plain = {bool: "true or false", int: "an integer", float: "a finite number", str: "text", Path: "a path"}
    return " ".join([plain.get(inner, "another value"), *([" and ".join(bounds)] if bounds else [])])


def _describe_list(members: Sequence[Any], bounds: Sequence[str]) -> str:
    """Describe a tuple or list by its members; of any length where the second is an ellipsis, within bounds."""
    if len(members) == 2 and members[1] is Ellipsis:
        return f"{' '.join(['a list', *bounds])}, each of them {describe(members[0])}"
    each = [describe(member) for member in members]
    if len(set(each)) == 1:
        return f"a list of {len(each)}, each of them {each[0]}"
    return f"a list of {len(each)}: {', '.join(each)}"


def _unwrapped(annotation: Any) -> tuple[Any, list[str]]:
    """Return a type without what it is annotated with, and the bounds among that in words."""
    bounds: list[str] = []
    while get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
        bounds += _bounds(metadata)
    return annotation, bounds


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _bounds(item.metadata)
        for name, words in (_BOUNDS | _LENGTHS).items():
            bound = getattr(item, name, None)
            if isinstance(bound, int | float):
                yield words.format(bound) if abs(bound) < 1e6 else words.replace(":g", "").format(bound)


def _inside(annotation: Any, part: int | str) -> Any:
    """Return the type of what stands under a key or an index; ``None`` where a type has no such key."""
    inner, _ = _unwrapped(annotation)
    origin, arguments = get_origin(inner), get_args(inner)
    if origin in (Union, types.UnionType):
        found = (_inside(member, part) for member in arguments)
        return next((one for one in found if one is not None), None)
    if isinstance(part, int):
        if origin is tuple:
            return arguments[0] if arguments[-1] is Ellipsis else (*arguments, None)[min(part, len(arguments))]
        return arguments[0] if origin in (list, Sequence) else None
    if origin in (dict, Mapping):
        return arguments[1]
    if isinstance(inner, type) and issubclass(inner, BaseModel) and part in inner.model_fields:
        info = inner.model_fields[part]
        return Annotated[info.annotation, info]
    return None


def _walk(model: type[BaseModel], location: Sequence[int | str]) -> Iterator[tuple[int | str, Any]]:
    """Yield the keys of a location and the types below them, without the parts that are pydantic's own and no keys."""
    annotation: Any = model
    for part in location:
        inside = _inside(annotation, part)
        if inside is not None:
            annotation = inside
            yield part, annotation


def _keys(model: type[BaseModel], location: Sequence[int | str]) -> list[int | str]:
    known = [part for part, _ in _walk(model, location)]
    last = location[-1] if location else None
    parent = _model_at(model, known)
    # An unknown key is the last part, below a model that has none of that name.
    unknown = parent is not None and last is not None and last not in known[-1:] and not _is_internal(last)
    return [*known, last] if unknown and last is not None else known


def _is_internal(part: int | str) -> bool:
    """Check whether a part of a location is pydantic's own and no key."""
    return isinstance(part, str) and (part.startswith("function-") or part in (ONE_VALUE, BY_COMPONENT))


def _annotation_at(model: type[BaseModel], location: Sequence[int | str]) -> Any:
    annotation: Any = model
    for _, below in _walk(model, location):
        annotation = below
    return annotation


def _model_at(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    """Return the model that describes the mapping at a location, if one does."""
    return _model_of(_annotation_at(model, location))


def _model_of(annotation: Any) -> type[BaseModel] | None:
    inner, _ = _unwrapped(annotation)
    if get_origin(inner) in (Union, types.UnionType):
        found = (_model_of(argument) for argument in get_args(inner))
        return next((model for model in found if model is not None), None)
    return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
