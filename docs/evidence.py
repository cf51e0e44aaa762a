"""Take studies into ``results.md``: their tables between its markers, their images beside it.

python docs/evidence.py --add runs/parts   # copies what the study wrote to docs/results/
python docs/evidence.py                    # writes the tables
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hitdet_nni.studies.latency_prediction import PredictionSummary
from hitdet_nni.studies.random_baseline import Summary
from hitdet_nni.studies.score_prediction import ScorePrediction
from hitdet_nni.studies.screened_space import ScreeningComparison
from hitdet_nni.studies.search_study import Price
from hitdet_nni.studies.search_summary import Against, SearchSummary

PAGE = Path(__file__).resolve().parent / "results.md"
FOLDER = PAGE.with_suffix("")


def search_summary(
    *, against: Sequence[Mapping[str, Any]], price: Mapping[str, Any], halved: int | None = None, **values: Any
) -> SearchSummary:
    """Return the summary of ``study search`` as its report has it."""
    return SearchSummary(
        against=tuple(Against(**one) for one in against), price=Price(**price), halved=halved, **values
    )


SUMMARIES = {
    "random": Summary,
    "screening": ScreeningComparison,
    "search": search_summary,
    "latency": PredictionSummary,
}
"""What the studies that have a summary say of it, by kind."""

LEFT_OUT = ("samples", "retrainings")
"""Parts of a study's report that no table shows."""


def add(run: Path, name: str | None, remark: str | None) -> None:
    """Copy a study's report and image from its run directory.

    Raises:
        ValueError: If the study did not run from a commit, or not to its end.
    """
    metadata = json.loads((run / "metadata.json").read_text(encoding="utf-8"))
    commit = metadata["git_commit"]
    if commit is None or commit.endswith("-dirty"):
        raise ValueError(f"{run}: a study that is shown runs from a commit, not from {commit}")
    words = metadata["command"][1:]
    kind = words[words.index("study") + 1]
    if not (run / f"{kind}.json").is_file():
        raise ValueError(f"{run}: the study has not ended")
    report = json.loads((run / f"{kind}.json").read_text(encoding="utf-8"))
    kept = {
        **{key: value for key, value in report.items() if key not in LEFT_OUT},
        "command": " ".join(["hitdet-nni", *shortened(words)]),
        "seed": metadata["seed"],
        "date": metadata["started"][:10],
        "torch": metadata["versions"]["torch"],
        "commit": commit,
        "seconds": metadata["seconds"]["study"],
        "remark": remark,
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name or kind}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    if (run / f"{kind}.png").is_file():
        shutil.copyfile(run / f"{kind}.png", FOLDER / f"{name or kind}.png")


def shortened(words: Sequence[str]) -> list[str]:
    """The words of a command, without the folders of the machine: runs are named as ``runs/`` and their last part."""
    short = []
    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.rpartition("=")
        if Path(value).is_absolute():
            folder = "runs/" if (option or before) in ("--run", "--out") else ""
            value = f"{folder}{Path(value).name}"
        short.append(f"{option}{equals}{value}")
    return short


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
    """Command, circumstances, table, sentences and image of a study."""
    facts = [f"Seed {report['seed']}", f"torch {report['torch']}", f"commit {report['commit'][:7]}", report["date"]]
    said = f"{', '.join(facts)}, {report['seconds'] / 60:.0f} minutes."
    if report["remark"]:
        said += f" {report['remark']}"
    parts = [f"```sh\n{report['command']}\n```", said, table(report["rows"])]
    if sentences := said_of(report):
        parts.append("\n".join(f"- {sentence}" for sentence in sentences))
    if (FOLDER / f"{name}.png").is_file():
        parts.append(f"![{name}]({FOLDER.name}/{name}.png)")
    return "\n\n".join(parts)


def said_of(report: Mapping[str, Any]) -> Sequence[str]:
    """What a study says in words."""
    if "summary" in report:
        predictions = [ScorePrediction(**one).sentence() for one in report.get("predictions", ())]
        return [*SUMMARIES[report["study"]](**report["summary"]).sentences(), *predictions]
    return report.get("findings", ())


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
    parser.add_argument("--remark", help="a sentence on how it was run")
    options = parser.parse_args()
    if options.add is not None:
        add(options.add, options.name, options.remark)
    else:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
