"""YAML as a person reads it: what the format would quietly turn into something else is refused.

By YAML 1.1, `0100` is 64, `1:30` is 90, of a name that occurs twice the last one counts, and nine
lines of aliases stand for a billion values. `off` and `no` are texts here, as in YAML 1.2.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

import yaml

MOST_VALUES = 100_000
"""In a document, each alias counted as what it stands for."""
LONGEST_NUMBER = 40
"""Characters."""

_TRUTH, _TEXT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:str"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_OF_OTHER_BASE = re.compile(r"[-+]?0[0-7_]+|.*:.*")
"""Octal without an o, and base 60."""
_LOST = re.compile("[\0\x85\ud800-\udfff]")
"""NUL, the line end of EBCDIC that PyYAML writes as a space, and halves of a character."""
_QUOTED = 100
"""Characters of what PyYAML says."""


def strict_yaml(text: str) -> Any:
    """The value of the only document in `text`; None where that is empty.

    Raises:
        ValueError: why it is refused, in a few words.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _Check().values(node)
        return loader.construct_document(node)
    except _Refused:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _Refused(f"{_at(mark)}{_short(error.problem or error.context)}") from None
    except yaml.reader.ReaderError:
        raise _Refused("it holds a character that YAML does not allow") from None
    except RecursionError:
        raise _Refused("it is nested too deeply") from None
    except Exception as error:  # SafeLoader lets out what int(), a dict or a regex raise
        raise _Refused(f"a value is not what its tag says ({_short(error)})") from None


class _Refused(ValueError):
    """What `strict_yaml` raises."""


class _Check:
    """Walks over a document before anything is made of it."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}

    def values(self, node: yaml.Node) -> int:
        """How many values `node` stands for."""
        if id(node) not in self.sizes:
            self.sizes[id(node)] = MOST_VALUES  # found again while inside: it contains itself
            if isinstance(node, yaml.MappingNode):
                self._names(node)
            if isinstance(node, yaml.ScalarNode):
                self._scalar(node)
            self.sizes[id(node)] = 1 + sum(map(self.values, _children(node)))
        if self.sizes[id(node)] > MOST_VALUES:
            _refuse(f"its aliases stand for more than {MOST_VALUES:,} values", node)
        return self.sizes[id(node)]

    def _names(self, node: yaml.MappingNode) -> None:
        seen: set[str] = set()
        for name, _ in node.value:
            if isinstance(name, yaml.ScalarNode):
                if name.value in seen:
                    _refuse(f"{_short(name.value)} occurs twice", name)
                seen.add(name.value)

    def _scalar(self, node: yaml.ScalarNode) -> None:
        if node.tag == _TRUTH and node.value.lower() in ("on", "off", "yes", "no"):
            node.tag = _TEXT
        if node.tag in _NUMBERS and len(node.value) > LONGEST_NUMBER:
            _refuse(f"a number has {len(node.value):,} characters", node)
        if node.tag in _NUMBERS and _OF_OTHER_BASE.fullmatch(node.value):
            _refuse(f"{node.value} is octal or of base 60 in YAML", node)
        if _LOST.search(node.value):
            _refuse("a text holds a character that would be lost when it is written", node)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _short(text: object) -> str:
    return ascii(" ".join(str(text).split()))[1:-1][:_QUOTED]


def _refuse(reason: str, node: yaml.Node) -> NoReturn:
    raise _Refused(f"{_at(node.start_mark)}{reason}")


def _at(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}: " if mark else ""
