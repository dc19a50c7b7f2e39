"""Read a catalog file into a pydantic model, and report all that is wrong at once, as `file:line: field: message`.

Every scalar keeps the text that was written (`0.15`, `2026-11-01`, `no`), and the schema turns it into a type. A price
is therefore never a float, and quoting a value changes nothing. No message repeats a value it has not recognised: a key
pasted into the wrong field must not end in a log.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Location = tuple[str | int, ...]
Schema = TypeVar("Schema", bound=BaseModel)

# The schema is five levels deep. The bound keeps a hostile file from exhausting the stack.
_MAX_DEPTH = 20
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(
    _TAG + name for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
)
_NULL = f"{_TAG}null"
# What may stand in a message as the name of a field. API keys are longer, or come with other characters.
_FIELD_NAME = re.compile(r"[\w.-]{1,40}")
_SECRET_FIELDS = frozenset({"apikey", "key", "token", "secret", "password", "authorization", "bearer"})
_PYDANTIC_OPENING = re.compile(r"^(?:Input|String|Decimal input) should")
_MESSAGES = {
    "missing": "this field is required",
    "model_type": "must be a mapping of fields",
    "tuple_type": "must be a list",
    "string_type": "must be text",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to put right, at a `field` such as `models[0].price`; without a line it concerns the whole file."""

    line: int | None
    field: str
    message: str


class CatalogError(ValueError):
    """The catalog cannot be used. Its text has one line per problem, in the order of the file."""

    def __init__(self, source: object, problems: Sequence[Problem]) -> None:
        self.source = str(source)
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))
        super().__init__("\n".join(self._line(problem) for problem in self.problems))

    def _line(self, problem: Problem) -> str:
        place = self.source if problem.line is None else f"{self.source}:{problem.line}"
        return ": ".join(part for part in (place, problem.field, problem.message) if part)


def read_catalog_file(path: Path, schema: type[Schema], *, context: object) -> Schema:
    """Read and validate `path`; `context` is handed to the validators of `schema`.

    Raises CatalogError with every problem found. Only a file that is not YAML at all is reported by its first fault.
    """
    document = _Document(path)
    try:
        result = schema.model_validate(document.data, context=context)
    except ValidationError as error:
        document.problems += [
            document.problem(details, schema) for details in error.errors(include_url=False, include_context=False)
        ]
    if document.problems:
        # Outside of the except clause, so that a traceback does not carry the file's values along.
        raise CatalogError(path, document.problems)
    return result


class _Loader(yaml.SafeLoader):
    """Composes nodes without building objects. Refuses aliases, of which a few lines can make billions of nodes."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark: Any = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # the stubs leave it untyped
        if self.check_event(yaml.AliasEvent):
            problem = "aliases (*name) are not allowed here: write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        if self.depth == _MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


@dataclass
class _Document:
    """The data of the file as dicts, lists, text and None, with the line of every field."""

    path: Path
    data: Any = None
    lines: dict[Location, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        root = _compose(self.path)
        self.lines[()] = _line_of(root)
        self.data = self._value(root, ())

    def _value(self, node: yaml.Node, where: Location) -> Any:
        if node.tag not in _PLAIN_TAGS:
            self.problems.append(Problem(_line_of(node), _dotted(where), "YAML tags (!name) are not allowed here"))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, where)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(item, (*where, index)) for index, item in enumerate(node.value)]
        return None if node.tag == _NULL else node.value

    def _item(self, node: yaml.Node, where: Location) -> Any:
        self.lines[where] = _line_of(node)
        return self._value(node, where)

    def _mapping(self, node: yaml.MappingNode, where: Location) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(Problem(_line_of(key), _dotted(where), "the name of a field must be plain text"))
                continue
            name: str = key.value
            inner = (*where, name)
            if name in result:
                message = f"given twice, first on line {self.lines[inner]}"
                self.problems.append(Problem(_line_of(key), _dotted(inner), message))
                continue
            self.lines[inner] = _line_of(key)
            result[name] = self._value(value, inner)
        return result

    def problem(self, details: ErrorDetails, schema: type[BaseModel]) -> Problem:
        """Say in the terms of the file what pydantic found."""
        location: Location = details["loc"]
        known = location
        while known not in self.lines:  # a missing field has no line of its own: that of its parent is used
            known = known[:-1]
        message = _PYDANTIC_OPENING.sub("must", details["msg"].removeprefix("Value error, "))
        if details["type"] == "extra_forbidden":
            message = _unknown_field(str(location[-1]), schema, location[:-1])
        elif details["type"] == "missing":
            message = _MESSAGES["missing"]
        elif details["input"] is None:
            message = "must not be empty"
        else:
            message = _MESSAGES.get(details["type"], message)
        return Problem(self.lines[known], _dotted(location), message + self._model_name(location))

    def _model_name(self, location: Location) -> str:
        """The name of the model in which `location` lies, which tells its author more than an index does."""
        value = self.data
        for part in location[:-1]:
            value = value[part]
            if isinstance(part, int):
                name = value.get("name") if isinstance(value, dict) and location[-1] != "name" else None
                return f" (model {name[:80]!r})" if isinstance(name, str) and name.isprintable() else ""
        return ""


def _compose(path: Path) -> yaml.Node:
    line: int | None = None
    root: yaml.Node | None = None
    problem = "is empty; it must have the field 'models'"
    try:
        text = path.read_bytes().decode()  # PyYAML skips a byte order mark
        root = yaml.compose(text, Loader=_Loader)
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problem = "is not UTF-8 text"
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"has a character that YAML does not allow (U+{error.character:04X})"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        problem = f"is not valid YAML: {str(error.problem).removeprefix('but ')}"
    if root is None:
        raise CatalogError(path, [Problem(line, "", problem)])
    return root


def _unknown_field(name: str, schema: type[BaseModel], parent: Location) -> str:
    if name.lower().replace("_", "").replace("-", "") in _SECRET_FIELDS:
        return "secrets are not kept in this file: use api_key_env or api_key_file to say where the key is"
    known = list(_fields(_schema_at(schema, parent)))
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f"unknown field; did you mean {close[0]!r}?" if close else f"unknown field; known here: {', '.join(known)}"


def _fields(schema: type[BaseModel]) -> dict[str, Any]:
    return {info.alias or name: info.annotation for name, info in schema.model_fields.items()}


def _schema_at(schema: type[BaseModel], location: Location) -> type[BaseModel]:
    for part in location:
        if isinstance(part, str):
            schema = _model_in(_fields(schema)[part])
    return schema


def _model_in(annotation: Any) -> type[BaseModel]:
    """The pydantic model in an annotation such as `tuple[Entry, ...]` or `Entry | None`."""
    while not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        annotation = get_args(annotation)[0]
    return annotation


def _line_of(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _dotted(location: Location) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{_shown(part)}" for part in location)
    return path.removeprefix(".")


def _shown(name: str) -> str:
    return name if _FIELD_NAME.fullmatch(name) else "?"
