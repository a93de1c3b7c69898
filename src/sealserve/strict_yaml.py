"""YAML with one meaning for one text, for every document that people write.

No aliases (they can blow up), no tags, no merge keys and no duplicate keys (one
value would win unseen). Of the plain scalars ``true``, ``false``, ``null`` and
decimal numbers are special, as in YAML 1.2; not ``yes``, ``017`` or ``1:30``,
which YAML 1.1 reads as something else than it says.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

__all__ = ["NotYaml", "read"]


class NotYaml(ValueError):
    """The text is not a document that this module reads; its text says why in one line."""


def read(raw: bytes, *, max_nodes: int) -> Any:
    """Read one document.

    Args:
        raw: UTF-8; the caller has bounded its size.
        max_nodes: how many values it may have.

    Returns:
        Dictionaries with text keys, lists, texts, integers, booleans and None.

    Raises:
        NotYaml: with the reason.
    """
    try:
        loader = _Loader(raw.decode(), max_nodes)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise NotYaml(" ".join(str(error).split())[:200]) from None


class _Loader(yaml.SafeLoader):
    # Begins empty, without those that SafeLoader has.
    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML reads it from the class)

    def __init__(self, stream: str, max_nodes: int) -> None:
        super().__init__(stream)
        self._max_nodes = max_nodes
        self._nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if event.tag is not None:
            raise yaml.YAMLError("tags are not allowed")
        self._nodes += 1
        if self._nodes > self._max_nodes:
            raise yaml.YAMLError(f"more than {self._max_nodes} values")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError("a key that is no text")
            if key.value in keys:
                raise yaml.YAMLError(f"key given twice: {key.value}")
            keys.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("int", r"-?(?:0|[1-9][0-9]{0,18})", "-0123456789"),
    ("null", r"null|~", "n~"),
    ("null", r"", [""]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first)
    )
