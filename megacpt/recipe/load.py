"""YAML files to a Recipe, keeping for every key where it was written.

A file may extend others (`extends: base/llama3-8b`, or a list: later ones win, the file itself wins over all); mappings
are merged, everything else is replaced, and null drops an inherited mapping (`general: null` removes a domain).
`--set a.b=c` wins over files. Every mistake found is reported, one line each, as `file:line: key: ...`.

YAML is read as version 1.2's core schema: `no` and `on` are text, 1e-5 is a number. Anchors, aliases and merge keys are
refused: `extends` does their work, and a file cannot blow up while it is read.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from megacpt.errors import RecipeError
from megacpt.recipe.rules import check, refuse
from megacpt.recipe.schema import Origins, Recipe

RECIPES_VARIABLE = "MEGACPT_RECIPES"


@dataclass(frozen=True)
class Entry:
    """A value and where it was written ("file:line"). Mappings and lists hold entries."""

    value: Any
    where: str


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of version 1.2's core schema."""

    def construct_int(self, node: yaml.ScalarNode) -> int:
        """1_000 as 1000, and 010 as ten."""
        return int(self.construct_scalar(node))


class _Dumper(yaml.SafeDumper):
    """Quotes the text that `_Loader` would read as something else."""


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def load_recipe(name_or_path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge and check a recipe.

    Args:
        name_or_path: the name of a shipped recipe ("llama3-8b-medical", ".yaml" optional), or a path.
        overrides: "a.b=c" each, as given with --set; the value is YAML.

    Raises:
        RecipeError: with every mistake that was found.
    """
    path = _find(os.fspath(name_or_path))
    entry = _read(path, ())
    for override in overrides:
        entry = _merge(entry, _override(override))
    if "name" not in entry.value:
        entry.value["name"] = Entry(path.stem, f"{_shown(path)}:1")
    try:
        recipe = Recipe.model_validate(_plain(entry))
    except ValidationError as error:
        refuse(list(_explained(error, entry)))
    recipe._origins = Origins(dict(_lines(entry)))
    refuse(check(recipe))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included: `load_recipe` reads it back equal."""
    values = recipe.model_dump(mode="json")
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def recipes_folder() -> Path:
    """The shipped recipes: in $MEGACPT_RECIPES, else beside the package (a checkout), else in the installation."""
    if folder := os.environ.get(RECIPES_VARIABLE):
        return Path(folder)
    checkout = Path(__file__).resolve().parents[2] / "recipes"
    return checkout if checkout.is_dir() else Path(sys.prefix) / "share" / "megacpt" / "recipes"


def _find(name: str) -> Path:
    """The file that `--recipe name` means."""
    given, shipped = _existing(Path(name)), _existing(recipes_folder() / name)
    is_bare_name = Path(name).name == name
    if given and shipped and is_bare_name and not given.samefile(shipped):
        raise RecipeError(
            f"{name} is both a shipped recipe and a file in the current directory",
            hint=f"Write ./{given} for the file, or {shipped} for the shipped one.",
        )
    if found := given or shipped:
        return found
    files = sorted(recipes_folder().rglob("*.yaml"))
    names = [file.relative_to(recipes_folder()).with_suffix("").as_posix() for file in files]
    asked = name.removesuffix(".yaml").removesuffix(".yml")
    nearest = [known for known in names if Path(known).name == asked] or get_close_matches(asked, names, n=1)
    raise RecipeError(
        f"there is no recipe {name}, neither as a path nor in {recipes_folder()}",
        hint=f"Did you mean {nearest[0]}?" if nearest else f"Shipped: {', '.join(names) or 'none'}.",
    )


def _existing(path: Path) -> Path | None:
    """`path`, or `path`.yaml, whichever is a file."""
    return next((file for file in (path, path.with_name(f"{path.name}.yaml")) if file.is_file()), None)


def _shown(path: Path) -> str:
    """A path as a person would type it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _read(path: Path, above: tuple[Path, ...]) -> Entry:
    """The file's entries on top of those it extends; `above` are the files that extend it."""
    path = path.resolve()
    if path in above:
        chain = " -> ".join(_shown(file) for file in (*above[above.index(path) :], path))
        raise RecipeError(f"recipes extend each other in a circle: {chain}", hint="Remove one `extends`.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe: {error}", where=_shown(path)) from error
    entry = _parse(text, _shown(path))
    if not isinstance(entry.value, dict):
        found = "nothing" if entry.value is None else type(entry.value).__name__
        raise RecipeError("a recipe is a mapping of sections", where=entry.where, found=found, expected="key: value")
    extends = entry.value.pop("extends", None)
    base = Entry({}, entry.where)
    for parent in _parents(extends) if extends else ():
        file = _existing(path.parent / str(parent.value)) or _existing(recipes_folder() / str(parent.value))
        if file is None:
            raise RecipeError(
                "extends a recipe that does not exist",
                where=parent.where,
                found=parent.value,
                expected=f"a file beside this one or in {recipes_folder()}",
            )
        inherited = _read(file, (*above, path))
        inherited.value.pop("name", None)
        base = _merge(base, inherited)
    return _merge(base, entry)


def _parents(extends: Entry) -> list[Entry]:
    """What an `extends:` names, one or several."""
    parents = extends.value if isinstance(extends.value, list) else [extends]
    for parent in parents:
        if not isinstance(parent.value, str):
            raise RecipeError(
                "cannot extend this",
                where=f"{parent.where}: extends",
                found=_plain(parent),
                expected="a name, a path or a list of them",
            )
    return parents


def _override(text: str) -> Entry:
    """--set a.b=c as the tree {a: {b: c}}."""
    key, separator, value = text.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise RecipeError("cannot read the override", where="--set", found=text, expected="section.key=value")
    entry = _parse(value, "--set", is_file=False)
    for part in reversed(parts):
        entry = Entry({part: entry}, "--set")
    return entry


def _merge(base: Entry, over: Entry) -> Entry:
    """`over` on top of `base`: mappings key by key, anything else replaced; null in place of a mapping removes it."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(base.value)
    for key, entry in over.value.items():
        below = merged.get(key)
        if entry.value is None and below is not None and isinstance(below.value, dict):
            del merged[key]
        else:
            merged[key] = _merge(below, entry) if below is not None else entry
    return Entry(merged, over.where)


def _parse(text: str, source: str, *, is_file: bool = True) -> Entry:
    """YAML text to entries; a duplicate key, an alias or a tag of some other program is an error."""

    def where(mark: Any) -> str:
        return f"{source}:{mark.line + 1}" if is_file and mark is not None else source

    try:
        aliases = (event for event in yaml.parse(text, Loader=_Loader) if isinstance(event, yaml.AliasEvent))
        if (alias := next(aliases, None)) is not None:
            raise RecipeError(
                "aliases are not read",
                where=where(alias.start_mark),
                found=f"*{alias.anchor}",
                hint="Write the value again, or use `extends`.",
            )
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"this is not YAML: {problem}", where=where(getattr(error, "problem_mark", None))) from error
    return Entry(None, where(None)) if node is None else _entry(loader, node, "", where)


def _entry(loader: _Loader, node: yaml.Node, key_path: str, where: Callable[[Any], str]) -> Entry:
    """A node of YAML's tree as an entry; `key_path` leads to it, `where` turns a mark into a place."""
    place = where(node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        return Entry([_entry(loader, item, f"{key_path}.{i}", where) for i, item in enumerate(node.value)], place)
    if not isinstance(node, yaml.MappingNode):
        try:
            return Entry(loader.construct_object(node), place)
        except (yaml.YAMLError, ValueError) as error:
            raise RecipeError("cannot read the value", where=f"{place}: {key_path}", found=node.tag) from error
    mapping: dict[str, Entry] = {}
    for key_node, value_node in node.value:
        key_place = where(key_node.start_mark)
        if key_node.tag != "tag:yaml.org,2002:str":
            raise RecipeError("a key must be text", where=key_place, found=key_node.value)
        key = key_node.value
        inner = f"{key_path}.{key}" if key_path else key
        if key in mapping:
            raise RecipeError(
                "the key appears twice",
                where=f"{key_place}: {inner}",
                found=f"another one at {mapping[key].where}",
                hint="Remove one of the two.",
            )
        mapping[key] = replace(_entry(loader, value_node, inner, where), where=key_place)
    return Entry(mapping, place)


def _plain(entry: Entry) -> Any:
    if isinstance(entry.value, dict):
        return {key: _plain(value) for key, value in entry.value.items()}
    if isinstance(entry.value, list):
        return [_plain(value) for value in entry.value]
    return entry.value


def _lines(entry: Entry, key: str = "") -> Iterator[tuple[str, str]]:
    """Every key path with its place."""
    if key:
        yield key, entry.where
    if isinstance(entry.value, dict):
        for name, value in entry.value.items():
            yield from _lines(value, f"{key}.{name}" if key else name)


def _explained(error: ValidationError, root: Entry) -> Iterator[RecipeError]:
    """One error for each key that pydantic complains about; the branches of a union are joined."""
    problems: dict[tuple[str, ...], list[Any]] = {}
    places: dict[tuple[str, ...], str] = {}
    for problem in error.errors(include_url=False):
        path, place = _locate(problem, root)
        problems.setdefault(path, []).append(problem)
        places[path] = place
    for path, found in problems.items():
        kind, where = found[0]["type"], f"{places[path]}: {'.'.join(path)}"
        if kind == "extra_forbidden":
            yield RecipeError("unknown key", where=where, hint=_suggestion(path))
        elif kind == "missing":
            yield RecipeError("this key is required", where=where, hint=_near_domain(path, root) or _description(path))
        elif kind == "value_error":
            yield RecipeError(_expectation(found[0]), where=where)
        else:
            expected = " or ".join(dict.fromkeys(map(_expectation, found)))
            yield RecipeError("cannot use this value", where=where, found=repr(found[0]["input"]), expected=expected)


def _locate(problem: Any, entry: Entry) -> tuple[tuple[str, ...], str]:
    """The key path of a problem, without what pydantic adds for unions and dictionary keys, and its place."""
    path: list[str] = []
    for part in problem["loc"]:
        inside = entry.value
        is_item = isinstance(inside, list) and isinstance(part, int) and part < len(inside)
        if not is_item and not (isinstance(inside, dict) and part in inside):
            break
        entry = inside[part]
        path.append(str(part))
    if problem["type"] == "missing":
        path.append(str(problem["loc"][-1]))
    return tuple(path), entry.where


def _expectation(problem: Any) -> str:
    """Pydantic's message as what was expected."""
    if problem["type"] in ("model_type", "dict_type"):
        return "a section of keys"
    if problem["type"] == "tuple_type":
        return "a list"
    if problem["type"] == "string_pattern_mismatch":
        return "letters, digits, - and _, with a letter or digit first"
    return problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")


def _schema_keys(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key of the schema with its description; a domain's name is written *."""
    for name, schema_field in section.model_fields.items():
        key = f"{prefix}{name}"
        yield key, schema_field.description or ""
        for inner, infix in _sections_in(schema_field.annotation):
            yield from _schema_keys(inner, f"{key}.{infix}")


def _sections_in(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """The sections that a field can hold, behind unions and dictionaries."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""
    is_dictionary = get_origin(annotation) is dict
    for inner in get_args(annotation):
        for section, infix in _sections_in(inner):
            yield section, f"*.{infix}" if is_dictionary else infix


def _schema_path(path: tuple[str, ...]) -> str:
    """A key path with the domain's name as *, and without the numbers of stages."""
    named = ("*" if path[:i] == ("data", "domains") else part for i, part in enumerate(path))
    return ".".join(part for part in named if not part.isdigit())


def _suggestion(path: tuple[str, ...]) -> str:
    """What an unknown key may have been meant to be: a near name beside it, else the same name elsewhere."""
    section = _schema_path(path).rpartition(".")[0]
    keys = [key for key, _ in _schema_keys()]
    beside = [key.rpartition(".")[2] for key in keys if key.rpartition(".")[0] == section]
    if nearest := get_close_matches(path[-1], beside, n=1):
        return f"Did you mean {nearest[0]}?"
    if elsewhere := [key for key in keys if key.rpartition(".")[2] == path[-1]]:
        return f"Did you mean {elsewhere[0]}?"
    if any(word in path[-1].lower() for word in ("api_key", "token", "password", "secret")):
        return "A recipe holds no secrets: set them in the environment (HF_TOKEN, WANDB_API_KEY)."
    return f"Known here: {', '.join(beside)}."


def _near_domain(path: tuple[str, ...], root: Entry) -> str:
    """If `path` is the missing role of a domain whose name is nearly that of one with a role: the latter's name."""
    if path[:2] != ("data", "domains") or path[3:] != ("role",):
        return ""
    domains = root.value["data"].value["domains"].value
    whole = [name for name, domain in domains.items() if isinstance(domain.value, dict) and "role" in domain.value]
    nearest = get_close_matches(path[2], whole, n=1)
    return f"Did you mean the domain {nearest[0]}?" if nearest else ""


def _description(path: tuple[str, ...]) -> str:
    """The schema's description of a key, on one line."""
    description = dict(_schema_keys()).get(_schema_path(path), "")
    return " ".join(description.split())
