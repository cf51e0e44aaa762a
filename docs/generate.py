"""Write the pages that follow from the code: ``settings.md`` from the settings' models, ``cli.md`` from the parser.

python docs/generate.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hitdet_nni.cli import build_parser
from hitdet_nni.commands import find_commands
from hitdet_nni.config.settings import Settings

DOCS = Path(__file__).resolve().parent

Schema = Mapping[str, Any]
"""A node of a JSON schema."""

SETTINGS = """\
# Settings

Written by `python docs/generate.py` from the models in `settings.py`, `data_settings.py` and `skeleton.py` of
`hitdet_nni/config/`.

A config is a YAML file with the sections below. Every key but those that name the data has a default, which is the
paper's value where the paper gives one. `extends` at the top of a file names another config, of which the file is then
a diff. `--set section.key=value` changes a single key; the value is YAML. An unknown key is refused. Relative paths in
a file are relative to its folder, those of `--set` to the working folder.

A run writes the settings that it had to its `config.yml`, every key filled in and all paths absolute.
"""

CLI = """\
# Command line

Written by `python docs/generate.py` from the parsers in `hitdet_nni/commands/`.

Exit status: 0 done, 2 bad input (one line on standard error that names file, key, value and what is allowed), 130
interrupted, 141 cut off because what reads standard output has ended (`| head`), 1 anything else. `--config` takes a
file or the name of a shipped config. `--set` may be given several times.
`python -m hitdet_nni` is the same command; `torchrun` starts that form.
"""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def code(value: object) -> str:
    """A value as it stands in YAML, as code; flow style."""
    text = json.dumps(value)
    return f"`{text[1:-1] if isinstance(value, str) else text}`"


def limits(node: Schema) -> str:
    """The range of a number in words, or nothing."""
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return " and ".join(f"{text} {node[key]}" for key, text in words.items() if key in node)


def plural(kind: str) -> str:
    """Several of what :func:`allowed` has named."""
    noun = next((noun for noun in ("whole number", "number", "path") if kind.startswith(noun)), None)
    return kind if noun is None else kind.replace(noun, f"{noun}s", 1)


def allowed(node: Schema, definitions: Mapping[str, Schema]) -> str:
    """What a key may hold, in words."""
    if "$ref" in node:
        return allowed(definitions[node["$ref"].rsplit("/", 1)[-1]], definitions)
    either = node.get("anyOf", node.get("oneOf"))
    if either is not None:
        return ", or ".join(allowed(each, definitions) for each in either)
    if node.get("properties"):
        return f"a mapping of {', '.join(code(name) for name in node['properties'])}"
    if "enum" in node or "const" in node:
        return ", ".join(code(value) for value in node.get("enum", [node.get("const")]))
    kind = node["type"]
    if kind == "array":
        if "prefixItems" in node:
            return f"list of {len(node['prefixItems'])} {plural(allowed(node['prefixItems'][0], definitions))}"
        return f"list of {plural(allowed(node['items'], definitions))}"
    if kind == "string" and node.get("format") == "path":
        return "path"
    names = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "null": "`null`",
        "boolean": "`true`, `false`",
        "object": "section",
    }
    return " ".join(part for part in (names[kind], limits(node)) if part)


def section_of(node: Schema, definitions: Mapping[str, Schema]) -> Schema | None:
    """The section that a key holds, if it holds one (or ``null``)."""
    for each in (node, *node.get("anyOf", ())):
        if "$ref" in each:
            found = definitions[each["$ref"].rsplit("/", 1)[-1]]
            return found if found.get("type") == "object" else None
    return None


def settings_sections(
    key: str, node: Schema, default: object, definitions: Mapping[str, Schema]
) -> Iterator[tuple[str, Schema, object, list[tuple[str, Schema, object]]]]:
    """Every section with the keys that are values, outermost first: its dotted key, schema, default and those keys."""
    values: list[tuple[str, Schema, object]] = []
    below: list[tuple[str, Schema, object]] = []
    for name, field in node["properties"].items():
        section = section_of(field, definitions)
        given = default.get(name) if isinstance(default, dict) else None
        value = given if isinstance(default, dict) else field.get("default")
        (values if section is None else below).append((name, field if section is None else section, value))
    yield key, node, default, values
    for name, section, value in below:
        yield from settings_sections(f"{key}.{name}".lstrip("."), section, value, definitions)


def settings_page() -> str:
    """``settings.md``."""
    schema = Settings.model_json_schema()
    definitions = schema["$defs"]
    required = {"data": definitions["DataSettings"]}
    defaults = {name: model.get_default() for name, model in Settings.model_fields.items() if name not in required}
    plain = {
        name: value.model_dump(mode="json") if hasattr(value, "model_dump") else value
        for name, value in defaults.items()
    }
    plain["data"] = {name: field.get("default") for name, field in required["data"]["properties"].items()}
    parts = [SETTINGS]
    for key, node, default, values in settings_sections("", schema, plain, definitions):
        parts.append(f"## {f'`{key}`' if key else 'Top level'}\n")
        parts.append(node["description"].strip() + ("\n\n`null` by default.\n" if default is None else "\n"))
        rows = [
            (f"`{name}`", allowed(field, definitions), code(value), field.get("description", ""))
            for name, field, value in values
        ]
        parts.append(table(("key", "allowed", "default", "meaning"), rows) + "\n")
    return "\n".join(parts)


def argument_rows(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """The arguments of a parser and what they do."""
    for action in parser._actions:
        if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
            continue
        metavar = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
        if action.choices is not None and action.metavar is None:
            metavar = "{" + ",".join(str(choice) for choice in action.choices) + "}"
        if isinstance(metavar, tuple):
            metavar = " ".join(metavar)
        if action.nargs == "+":
            metavar = f"{metavar} [{metavar} ...]"
        takes_none = isinstance(action, (argparse._StoreTrueAction, argparse._VersionAction))
        names = ", ".join(action.option_strings)
        shown = names if takes_none else f"{names} {metavar}".strip()
        text = (action.help or "") % {"default": action.default}
        required = " (required)" if action.option_strings and action.required else ""
        yield f"`{shown}`", text + required


def command_part(heading: str, parser: argparse.ArgumentParser, text: str, example: str | None) -> Iterator[str]:
    """Heading, purpose, example and arguments of a command."""
    yield f"{heading}\n\n{text[0].upper()}{text[1:]}.\n"
    if example is not None:
        yield f"```sh\n{example}\n```\n"
    rows = list(argument_rows(parser))
    if rows:
        yield table(("argument", "meaning"), rows) + "\n"


def subparsers(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """The parsers of a parser's commands, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def cli_page() -> str:
    """``cli.md``."""
    commands, parsers = find_commands(), subparsers(build_parser())
    rows = ((f"[{name}](#{name})", command.HELP) for name, command in commands.items())
    parts = [CLI, table(("command", "what it does"), rows) + "\n"]
    for name, parser in parsers.items():
        parts += command_part(f"## {name}", parser, commands[name].HELP, commands[name].EXAMPLE)
        for kind, below in subparsers(parser).items():
            parts += command_part(f"### {name} {kind}", below, below.description or "", None)
    return "\n".join(parts)


PAGES = {"settings.md": settings_page, "cli.md": cli_page}
"""The generated pages."""


if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
