"""config.yaml as YAML: written, and read within limits. Imported only where there is one."""

from __future__ import annotations

from typing import Any

import yaml
from yaml import YAMLError

from ckptdb.disk.info import MAX_CONFIG_NODES
from ckptdb.disk.plain import MAX_DEPTH

__all__ = ["YAMLError", "dump", "fits", "is_too_large", "load"]

# The C versions are ten times faster; PyYAML built without libyaml has only the others.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(_SafeLoader):  # type: ignore[misc]  # which of the two it is, only running tells
    """Refuses to write out more than `MAX_CONFIG_NODES` pairs where one mapping merges others.

    Merge keys (``<<: [*a, *a]``) are unfolded while loading: a page of them fills any memory.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        pairs = 0
        for key, value in node.value:
            if key.tag != _MERGE:
                continue
            for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if isinstance(merged, yaml.MappingNode):
                    self.flatten_mapping(merged)
                    pairs += len(merged.value)
                if pairs > MAX_CONFIG_NODES:
                    raise yaml.constructor.ConstructorError(problem="merges too much")
        super().flatten_mapping(node)


def dump(content: object) -> bytes:
    """Write a value as YAML.

    Raises:
        YAMLError: No YAML file can keep it.
    """
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=True, allow_unicode=True)
    return text.encode()


def fits(value: object) -> bool:
    """Tell whether a YAML file can keep a value."""
    try:
        dump(value)
    except (YAMLError, RecursionError):
        return False
    return True


def is_too_large(raw: bytes) -> bool:
    """Tell whether a document has too many values or levels to be loaded.

    Raises:
        YAMLError: It is no YAML.
    """
    # libyaml composes by recursion in C, which ends the process where Python's would raise.
    depth = 0
    for count, event in enumerate(yaml.parse(raw, Loader=_Loader)):
        # A value and its key make four events at most.
        if count > 4 * MAX_CONFIG_NODES:
            return True
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            return True
    return False


def load(raw: bytes) -> Any:
    """Read a document that is not too large.

    Raises:
        YAMLError: It is no YAML.
    """
    return yaml.load(raw, Loader=_Loader)  # noqa: S506  # it is a safe loader
