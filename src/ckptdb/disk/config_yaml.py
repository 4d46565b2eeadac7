"""config.yaml as YAML: written, and read within limits. Imported only where there is one."""

from __future__ import annotations

import codecs
import re
from itertools import islice
from typing import Any

import yaml
from yaml import YAMLError

from ckptdb.disk.plain_values import MAX_CONFIG_NODES, MAX_DEPTH

__all__ = ["YAMLError", "dump", "fits", "is_too_large", "load"]

# The C versions are ten times faster; PyYAML built without libyaml has only the others.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_IS_FAST = _SafeLoader is not yaml.SafeLoader
_MERGE = "tag:yaml.org,2002:merge"
_INT = "tag:yaml.org,2002:int"
_SLOW_BYTES = 512 * 1024
"""Largest document that is read where PyYAML has no libyaml, and needs a minute for more."""
_LONGEST_NUMBER = 4300
"""Letters; longer ones Python makes no text of again."""
_LONGEST_TIME = 300
"""Letters of a number to the base of 60 (``1:30:00``), which takes the square of its length."""
_MOST_DIRECTIVES = 100
_MOST_MERGE_KEYS = 100
_MOST_WIDE_KEYS = 1000
_WIDE = 18
"""As short is what Python hashes to itself; longer numbers can all be made to have one hash."""
_DIRECTIVE = re.compile(rb"(?:\A|[\r\n]|\xc2\x85|\xe2\x80[\xa8\xa9])%")


class _Loader(_SafeLoader):  # type: ignore[misc]  # which of the two it is, only running tells
    """Loader that refuses documents which need much more time or memory than their size.

    Merge keys (``<<: [*a, *a]``) are unfolded while loading: a page of them fills any memory. Of
    the whole document no more than `MAX_CONFIG_NODES` pairs are.
    """

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self._merged = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        merging = [value for key, value in node.value if key.tag == _MERGE]
        if len(merging) > _MOST_MERGE_KEYS:
            raise _refused("merges too much")
        for value in merging:
            for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                pairs = merged.value if isinstance(merged, yaml.MappingNode) else ()
                self._merged += 1 + len(pairs)
                if self._merged > MAX_CONFIG_NODES:
                    raise _refused("merges too much")
                if pairs:
                    self.flatten_mapping(merged)
                    self._merged += max(0, len(merged.value) - len(pairs))
        super().flatten_mapping(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:  # noqa: FBT001, FBT002  # as PyYAML calls it
        if isinstance(node, yaml.MappingNode) and len(node.value) > _MOST_WIDE_KEYS:
            wide = sum(key.tag == _INT and len(key.value) >= _WIDE for key, _ in node.value)
            if wide > _MOST_WIDE_KEYS:
                raise _refused(f"has more than {_MOST_WIDE_KEYS} keys that are large numbers")
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        text = node.value if isinstance(node.value, str) else ""
        longest = _LONGEST_TIME if ":" in text else _LONGEST_NUMBER
        if len(text) > longest:
            raise _refused(f"has a number of more than {longest} letters; put it in quotes")
        return super().construct_yaml_int(node)


_Loader.add_constructor(_INT, _Loader.construct_yaml_int)


def _refused(why: str) -> YAMLError:
    return yaml.constructor.ConstructorError(problem=why)


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
    if _has_many_directives(raw) or (not _IS_FAST and len(raw) > _SLOW_BYTES):
        return True
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


def _has_many_directives(raw: bytes) -> bool:
    """Tell whether there are so many that libyaml, which compares each with all, takes long."""
    if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raw = raw.decode("utf-16").encode()
    # Beyond the limit nothing is counted: 8 MB may be four million of them.
    return sum(1 for _ in islice(_DIRECTIVE.finditer(raw), _MOST_DIRECTIVES + 1)) > _MOST_DIRECTIVES


def load(raw: bytes) -> Any:
    """Read a document that is not too large.

    Raises:
        YAMLError: It is no YAML.
    """
    return yaml.load(raw, Loader=_Loader)  # noqa: S506  # it is a safe loader
