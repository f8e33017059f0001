"""Writes the reference in docs/recipes.md from the schema's docstrings: `python -m docs.recipe_keys`.

The schema is where keys are explained, for errors and for readers of the code; this page must say the same, so it is
made, never edited.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from docs.marked import write_part
from megacpt.recipe import rules, schema
from megacpt.units import format_tokens

PAGE = Path(__file__).with_name("recipes.md")

WORDS: list[tuple[Any, str]] = [
    (schema.Tokens, "tokens"),
    (schema.SequenceLength, "sequence length"),
    (schema.Stretch, "duration"),
    (schema.Paths, "path or list of paths"),
    (schema.Count, "integer from 1 on"),
    (schema.Rate, "number above 0"),
    (schema.Beta, "number from 0 to below 1"),
    (schema.Name, "name"),
    (bool, "true or false"),
    (str, "text"),
    (int, "integer"),
    (float, "number"),
    (type(None), "null"),
]
"""How a type is called on the page. Aliases are told apart by equality, so they come before what they alias."""


def reference() -> str:
    """Every key, section by section."""
    return "\n\n".join("\n".join(_section(*section)) for section in _sections())


def cross_rules() -> str:
    """What keys must be to each other: the first sentence of each rule."""
    checks = (*rules.RECIPE_RULES, *rules.MODEL_RULES)
    return "\n".join(f"- {_markdown(inspect.getdoc(check) or '')}" for check in checks)


def _sections() -> Iterator[tuple[str, str, type[BaseModel], bool]]:
    """(heading, what it is, its class, leave out keys that are sections), in the order of the schema."""
    yield "The recipe itself", inspect.getdoc(schema.Recipe) or "", schema.Recipe, True
    for name, section in _inner(schema.Recipe):
        yield f"`{name}`", inspect.getdoc(section) or "", section, True
        for inner_name, inner in _inner(section):
            many = ".NAME" if get_origin(section.model_fields[inner_name].annotation) is dict else ""
            yield f"`{name}.{inner_name}{many}`", inspect.getdoc(inner) or "", inner, False


def _inner(section: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """The keys of a section that hold sections."""
    for name, field in section.model_fields.items():
        if (inner := _section_in(field.annotation)) is not None:
            yield name, inner


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


def _section(heading: str, summary: str, section: type[BaseModel], skip_sections: bool) -> Iterator[str]:
    hints = get_type_hints(section, include_extras=True)
    yield f"### {heading}"
    yield ""
    yield _markdown(summary)
    yield ""
    for name, field in section.model_fields.items():
        is_told_elsewhere = skip_sections and field.default is not None and _section_in(field.annotation)
        if not is_told_elsewhere:
            yield f"- **`{name}`** ({kind(hints[name])}; {_default(field)}): {_markdown(field.description or '')}"


def kind(hint: Any) -> str:
    """A type in words: "tokens or null", "`a`, `b` or `c`"."""
    *others, last = _kinds(hint)
    return f"{', '.join(others)} or {last}" if others else last


def _kinds(hint: Any) -> list[str]:
    """The alternatives of a type."""
    for alias, word in WORDS:
        if hint == alias:
            return [word]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = [limit for field in arguments[1:] for limit in getattr(field, "metadata", ())]
        return [" ".join([kind(arguments[0]), *map(_limit, limits)]).strip()]
    if origin is Literal:
        return [f"`{value}`" for value in arguments]
    if origin in (Union, types.UnionType):
        return [word for part in arguments for word in _kinds(part)]
    if origin is tuple:
        return [f"{'list' if ... in arguments else 'two'}: {kind(arguments[0])}"]
    if origin is dict:
        return ["mapping"]
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return ["section"]
    raise TypeError(f"the page has no word for {hint}")


def _limit(limit: Any) -> str:
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    return " ".join(f"{word} {getattr(limit, name)}" for name, word in words.items() if hasattr(limit, name))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value in ((), {}):
        return "empty"
    if isinstance(value, tuple):
        return f"default `{list(value)}`"
    if value is None or isinstance(value, bool):
        return f"default `{'null' if value is None else str(value).lower()}`"
    return f"default `{format_tokens(value) if isinstance(value, int) else value}`"


def _markdown(text: str) -> str:
    """A docstring on one line, in the words of YAML, with stars that stay stars."""
    text = re.sub(r"\bNone\b", "null", " ".join(text.split()))
    return re.sub(r"(`[^`]*`)|\*", lambda found: found[1] or r"\*", text)


def main() -> None:
    """Write the page."""
    write_part(PAGE, "keys", reference())
    write_part(PAGE, "rules", cross_rules())


if __name__ == "__main__":
    main()
