"""The configuration's documentation, read from the comments in config.py: a JSON schema for editors and docs/configuration.md.

`python -m world_r1.config_docs` writes both; a test fails when they are not current.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from world_r1 import config, config_algorithm, config_rewards, config_speed

#: Where the sections stand.
MODULES = (config, config_algorithm, config_rewards, config_speed)
SCHEMA = Path("configs/schema.json")
PAGE = Path("docs/configuration.md")

INTRO = """# Configuration

One YAML file describes a run. Everything that a file leaves out has the default below; an unknown key is an error. On the command line
`key=value` overrides the file, with dotted keys: `world-r1 train --config configs/blockworld.yaml steps=50 flow.noise_level=0.5`.
`--print-config` shows what results. Editors complete and explain the keys when the file begins with
`# yaml-language-server: $schema=schema.json`.

This page is generated from `world_r1/config.py` (`make schema`).
"""


@dataclass(frozen=True)
class Field:
    """One key. Example: `Field(key="flow.steps", type="int >= 1", default="8", about="Denoising steps in training rollouts.")`"""

    key: str
    type: str
    default: str
    about: str


@dataclass(frozen=True)
class Section:
    """One mapping of the file: its dotted key ("" at the top), what it is for, and its keys."""

    key: str
    about: str
    fields: tuple[Field, ...]


def comments() -> dict[str, dict[str, str]]:
    """Class name -> field name -> the `#:` comment above the field, in one line."""
    found: dict[str, dict[str, str]] = {}
    for module in MODULES:
        source = inspect.getsource(module)
        lines = source.splitlines()
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
                found[node.name] = {item.target.id: _above(lines, item.lineno) for item in fields}  # type: ignore[union-attr]
    return found


def _above(lines: list[str], number: int) -> str:
    """The comment block that ends right above line `number` (counted from 1)."""
    block: list[str] = []
    for line in reversed(lines[: number - 1]):
        if not line.strip().startswith("#:"):
            break
        block.insert(0, line.strip().removeprefix("#:").strip())
    return " ".join(block)


def schema() -> str:
    """JSON schema of a configuration file, every key described, as text."""
    tree = json.loads(config.json_schema())
    about = comments()
    for name, section in [("Config", tree), *tree.get("$defs", {}).items()]:
        for field, entry in section.get("properties", {}).items():
            if text := about.get(name, {}).get(field):
                entry["description"] = text
    return json.dumps(tree, indent=2) + "\n"


def sections(model: type[BaseModel] = config.Config, key: str = "") -> list[Section]:
    """The section of `model` and, after it, those inside it, in the order of the file."""
    about = comments()[model.__name__]
    fields, inner = [], []
    for name, field in model.model_fields.items():
        path = f"{key}.{name}" if key else name
        nested = _nested(field.annotation)
        if nested:
            inner += sections(nested, path + ("[]" if "tuple" in str(field.annotation) else ""))
        if not nested or about[name]:
            fields.append(Field(path, _type(field), _default(field, nested), about[name]))
    return [Section(key, _sentences(model), tuple(fields)), *inner]


def markdown() -> str:
    """The page docs/configuration.md."""
    parts = [INTRO]
    for section in sections():
        parts.append(f"## {section.key or 'Top level'}\n\n{section.about}\n")
        parts.append("| key | type | default | |\n|---|---|---|---|")
        cells = [
            (f"`{field.key}`", field.type, f"`{field.default}`" if field.default else "", field.about) for field in section.fields
        ]
        parts.append("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells) + "\n")
    return "\n".join(parts)


def _nested(annotation: Any) -> type[BaseModel] | None:
    for option in (annotation, *get_args(annotation)):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _type(field: Any) -> str:
    text = str(field.annotation) if get_args(field.annotation) else field.annotation.__name__
    text = re.sub(r"typing\.|world_r1\.config(_speed|_rewards)?\.", "", text)
    text = re.sub(r"Union\[(.*)\]", lambda match: match[1].replace(", ", " | ").replace("NoneType", "null"), text)
    text = re.sub(r"Literal\[(.*?)\]", lambda match: match[1].replace("'", '"').replace(", ", " | "), text).replace(
        "| None", "| null"
    )
    bounds = [f"{sign} {getattr(rule, name):g}" for rule in field.metadata for name, sign in _SIGNS.items() if hasattr(rule, name)]
    return f"{text} {', '.join(bounds)}".strip()


_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _default(field: Any, nested: type[BaseModel] | None) -> str:
    if field.is_required():
        return ""
    value = field.default
    if nested:
        return "null" if value is None else ""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _sentences(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def main() -> None:
    """Write both files into the checkout that the working directory is."""
    SCHEMA.write_text(schema(), encoding="utf-8")
    PAGE.write_text(markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
