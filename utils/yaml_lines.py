"""YAML with its lines: the values of a file, and where in it each of them was written.

PyYAML's nodes know their lines, its values do not. So the nodes are kept beside the values, and a path through the
values (keys and indices, as pydantic tells where an error is) is followed through the nodes. Keys that came through a
merge (`<<: *anchor`) lead to where they were written. A key that stands twice in one mapping is refused: PyYAML would
silently take the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


class YamlError(ValueError):
    """The text is no YAML that can be used; `line` counts from 1."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


class FileError(ValueError):
    """A file cannot be used; the text says which, where in it, and why."""


@dataclass(frozen=True, slots=True)
class Place:
    """A line, counted from 1, and the path that leads there: `engines.a.profiles[0].gpus`."""

    line: int
    path: str


class Document:
    """One YAML document: `values` as plain Python, None for an empty one. Raises YamlError."""

    def __init__(self, text: str) -> None:
        try:
            self._loader = yaml.SafeLoader(text)
            self._root = self._loader.get_single_node()
            _refuse_repeated_keys(self._root, set())
            # Constructing also resolves the merges in the nodes: merged pairs stand before a mapping's own.
            self.values: Any = None if self._root is None else self._loader.construct_document(self._root)
        except yaml.MarkedYAMLError as error:
            raise YamlError(_line(error.problem_mark or error.context_mark), _words(error)) from error
        except yaml.YAMLError as error:  # characters that no YAML may hold, told without a mark
            raise YamlError(1, " ".join(str(error).split())) from error

    def place(self, path: Sequence[str | int]) -> Place:
        """Return where `path` was written, or as much of it as there is; an index into a mapping is its n-th key."""
        node, line, steps = self._root, _line(self._root.start_mark if self._root else None), list[str | int]()
        for step in path:
            found = _step(node, step)
            if found is None:
                steps.append(step)
                node = None
                continue
            node, mark, key = found
            line = _line(mark)
            steps.append(key)
        return Place(line, _spelled(steps))


def read_document(path: Path) -> Document:
    """Read a file of one document. Raises FileError."""
    try:
        return Document(path.read_text("utf-8"))
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: not UTF-8: {error.reason}") from error
    except YamlError as error:
        raise FileError(f"{path.name}:{error.line}: {error}") from error


def _step(node: yaml.Node | None, step: str | int) -> tuple[yaml.Node, yaml.Mark, str | int] | None:
    """Return the node behind a key or an index, where it was written, and the step as it is spelled."""
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and 0 <= step < len(node.value):
        return node.value[step], node.value[step].start_mark, step
    if not isinstance(node, yaml.MappingNode):
        return None
    pairs = {key.value: (key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}
    name = str(step)
    if name not in pairs and isinstance(step, int) and 0 <= step < len(pairs):
        name = list(pairs)[step]
    if name not in pairs:
        return None
    key, value = pairs[name]  # of a merged and an own one the own, for it comes last
    return value, key.start_mark, key.value


def _refuse_repeated_keys(node: yaml.Node | None, seen: set[int]) -> None:
    if node is None or id(node) in seen:
        return  # an alias: looked at where it was written, and possibly within itself
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in keys:
                raise YamlError(_line(key.start_mark), f"the key {key.value!r} stands twice in one mapping")
            keys.add((key.tag, str(key.value)))
    for child in _children(node):
        _refuse_repeated_keys(child, seen)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from (key, value)


def _line(mark: yaml.Mark | None) -> int:
    return mark.line + 1 if mark else 1


def _words(error: yaml.MarkedYAMLError) -> str:
    return " ".join(filter(None, (error.context, error.problem)))


def _spelled(steps: Sequence[str | int]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
