"""What a study has found, read off the files that it leaves in its run directory."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from hitdet_nni.config.validation import validated
from hitdet_nni.io import read_json
from hitdet_nni.report.axes import number
from hitdet_nni.runs.reading import Run


class StudyFile(BaseModel):
    """``KIND.json``, as far as a page shows it."""

    model_config = ConfigDict(frozen=True)

    study: str = Field(description="kind of the study")
    rows: list[dict[str, str | bool | int | float | None]] = Field(description="the table", min_length=1)
    findings: list[str] = Field([], description="what it says in words; studies of earlier versions have none")


@dataclass(frozen=True)
class Study:
    """The findings of a study.

    Attributes:
        kind: What kind of study it is, which is the name of its files.
        columns: Names of the table's columns.
        rows: Its cells as text.
        findings: What the table says in words, a sentence each.
        figure: Its figure as a ``data:`` address, if it is there.
    """

    kind: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    findings: tuple[str, ...]
    figure: str | None


def read_studies(run: Run) -> tuple[Study, ...] | None:
    """Read what a study has found: nothing yet before its end, and ``None`` where the run directory is no study's.

    Args:
        run: The run; that its command begins with ``study`` tells a study that has not finished.

    Raises:
        InputError: If a file of the study is damaged.
    """
    tables = [file for file in sorted(run.path.glob("*.json")) if file.with_suffix(".csv").is_file()]
    contents = {file: read_json(file) for file in tables}
    found = tuple(
        _study(file, validated(StudyFile, file, content))
        for file, content in contents.items()
        if isinstance(content, dict) and content.get("study") == file.stem
    )
    return found if found or run.is_study else None


def _study(file: Path, content: StudyFile) -> Study:
    columns = tuple(content.rows[0])
    figure = file.with_suffix(".png")
    return Study(
        content.study,
        columns,
        tuple(tuple(_cell(row.get(column)) for column in columns) for row in content.rows),
        tuple(content.findings),
        f"data:image/png;base64,{base64.b64encode(figure.read_bytes()).decode()}" if figure.is_file() else None,
    )


def _cell(value: str | float | None) -> str:
    if value is None:
        return "–"
    return number(value) if isinstance(value, float) else str(value)
