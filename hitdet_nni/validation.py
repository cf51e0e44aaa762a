"""pydantic's findings as the project's one-line errors."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from hitdet_nni.errors import InputError

ONE_VALUE, BY_COMPONENT = "one value", "a value for each component"
"""Tags of the members of a union, which pydantic puts among the keys of a finding's location."""


def one_line(error: ValidationError, model: type[BaseModel], source: str | Path) -> InputError:
    """Turn a validation error into an :class:`InputError` about its first finding.

    Args:
        error: What ``model.model_validate`` raised.
        model: The model that was validated, to name the keys that it allows.
        source: The file that holds the value.
    """
    finding = error.errors(include_url=False)[0]
    location = [part for part in finding["loc"] if not _is_internal(part)]
    key = ".".join(str(part) for part in location) or None
    others = len(error.errors()) - 1
    more = f" (and {others} more)" if others else ""
    if finding["type"] == "extra_forbidden":
        parent = _model_at(model, location[:-1])
        allowed = None if parent is None else list(parent.model_fields)
        return InputError(f"unknown key{more}", source=source, key=key, allowed=allowed)
    if finding["type"] == "missing":
        return InputError(f"missing{more}", source=source, key=key)
    message = finding["msg"].removeprefix("Value error, ")
    if finding["type"] == "value_error" and isinstance(finding["input"], dict):
        return InputError(f"{message}{more}", source=source, key=key)
    return InputError(f"got {finding['input']!r}{more}", source=source, key=key, allowed=message)


def _is_internal(part: int | str) -> bool:
    """Whether a part of a location is pydantic's own and no key."""
    return isinstance(part, str) and (part.startswith("function-") or part in (ONE_VALUE, BY_COMPONENT))


def _model_at(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    """The model that describes the mapping at a location, if one does."""
    current: type[BaseModel] | None = model
    for part in location:
        field = current.model_fields.get(str(part)) if current is not None else None
        current = _model_of(field.annotation) if field is not None else None
    return current


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) is Annotated:
        return _model_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        found = (_model_of(argument) for argument in get_args(annotation))
        return next((model for model in found if model is not None), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
