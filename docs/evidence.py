"""Take studies into ``results.md``: their tables between its markers, their pictures beside it.

python docs/evidence.py --add runs/parts --seconds 1944   # copies what the study wrote to docs/results/
python docs/evidence.py                                   # writes the tables
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hitdet_nni.studies.random_baseline import Summary

PAGE = Path(__file__).resolve().parent / "results.md"
FOLDER = PAGE.with_suffix("")

LEFT_OUT = ("samples", "retrainings")
"""Parts of a study's report that no table shows."""


def add(run: Path, name: str | None, seconds: float | None, remark: str | None) -> None:
    """Copy a study's report and picture from its run directory."""
    metadata = json.loads((run / "metadata.json").read_text(encoding="utf-8"))
    words = metadata["command"][1:]
    kind = words[words.index("study") + 1]
    report = json.loads((run / f"{kind}.json").read_text(encoding="utf-8"))
    kept = {
        **{key: value for key, value in report.items() if key not in LEFT_OUT},
        "command": " ".join(["hitdet-nni", *(shortened(word) for word in words)]),
        "seed": metadata["seed"],
        "date": metadata["started"][:10],
        "torch": metadata["versions"]["torch"],
        "seconds": seconds,
        "remark": remark,
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name or kind}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    if (run / f"{kind}.png").is_file():
        shutil.copyfile(run / f"{kind}.png", FOLDER / f"{name or kind}.png")


def shortened(word: str) -> str:
    """A word of a command, a path being named as ``runs/`` and its last part."""
    return f"runs/{Path(word).name}" if word.startswith(("/", ".")) else word


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of a study's rows."""
    header = list(rows[0])
    numbers = [all(isinstance(row[key], int | float | None) for row in rows) for key in header]
    marks = ["---:" if number else "---" for number in numbers]
    cells = [[shown(row[key]) for key in header] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in ([key.replace("_", " ") for key in header], marks, *cells))


def shown(value: object) -> str:
    """A number with four digits, a word as it is, nothing as a dash."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def section(name: str, report: Mapping[str, Any]) -> str:
    """Command, circumstances, table, sentences and picture of a study."""
    took = "" if report["seconds"] is None else f", {report['seconds'] / 60:.0f} minutes"
    said = f"Seed {report['seed']}, torch {report['torch']}, {report['date']}{took}."
    if report["remark"]:
        said += f" {report['remark']}"
    parts = [f"```sh\n{report['command']}\n```", said, table(report["rows"])]
    if "summary" in report:
        parts.append("\n".join(f"- {sentence}" for sentence in Summary(**report["summary"]).sentences()))
    if (FOLDER / f"{name}.png").is_file():
        parts.append(f"![{name}]({FOLDER.name}/{name}.png)")
    return "\n\n".join(parts)


def page(text: str) -> str:
    """The page with all studies between its markers."""
    for file in sorted(FOLDER.glob("*.json")):
        begin, end = f"<!-- begin study {file.stem}: written by docs/evidence.py -->", f"<!-- end study {file.stem} -->"
        new = f"{begin}\n\n{section(file.stem, json.loads(file.read_text(encoding='utf-8')))}\n\n{end}"
        text, count = re.subn(f"{begin}.*{end}", lambda _, new=new: new, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{PAGE} lacks a marker: {begin} or {end}")
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--add", type=Path, metavar="RUN", help="run directory of a study")
    parser.add_argument("--name", help="name of the section (default: the study's kind)")
    parser.add_argument("--seconds", type=float, help="how long it took")
    parser.add_argument("--remark", help="a sentence on how it was run")
    options = parser.parse_args()
    if options.add is not None:
        add(options.add, options.name, options.seconds, options.remark)
    else:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
