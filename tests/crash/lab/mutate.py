"""Turning valid files into invalid ones: by bytes, by tokens and by structure.

What comes out depends on the generator and the seeds alone.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_MOST_BYTES = 64_000
"""What grows beyond is cut: it would only be slower, not stranger."""

_JSON_TOKENS = (
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e-400", b"null", b"true", b"false",
    b"0", b"-0", b"-0.0", b"-1", b"1.0", b"9223372036854775807", b"9223372036854775808",
    b"18446744073709551616", b"9" * 400, b"9" * 4301, b"0x10", b"1_000", b"01", b"+1", b".5",
    b'""', b'"\\ud800"', b'"\\udfff\\ud800"', b'"\\u0000"', b'"\xff"', b'"\xed\xa0\x80"', b'"',
    b"\\", b"\\u", b"{}", b"[]", b"[[[[", b"]]]]", b"{", b"}", b"[", b"]", b":", b",", b"\n",
    b"\r\n", b"\0", b"\xe2\x80\xa8", b'"loss"', b'"step"', b'"uuid"', b'"../.."', b'"/etc/passwd"',
    b'"loss": 1, "loss": -1', b"// comment", b"'", b"[" * 3000, b'{"a":' * 3000,
)  # fmt: skip
_YAML_TOKENS = (
    b"!!python/object/apply:os.system ['true']", b"!!python/name:os.system ", b"!!int ",
    b"!!float ", b"!!bool ", b"!!null ", b"!!timestamp ", b"!!binary ", b"!!set ", b"!!omap ",
    b"!!pairs ", b"!!str ", b"!!map ", b"!!seq ", b"!unknown ", b"!<tag:yaml.org,2002:value> ",
    b"&a ", b"*a", b"*nobody", b"<<: *a\n", b"<<: [*a, *a]\n", b"<<: 1\n", b"? ", b"- ", b": ",
    b"=", b"|\n", b">\n", b"---\n", b"...\n", b"%YAML 9.9\n", b"%TAG ! x\n", b"# ", b"\t", b"  ",
    b"{", b"}", b"[", b"]", b"'", b'"', b"\\", b"? [a, b]\n: c\n", b"? {a: b}\n: c\n",
    b".nan", b".inf", b"-.inf", b"0x" + b"f" * 5000, b"0b1", b"0o7", b"1:30:59", b"2026-99-99",
    b"2026-11-22T25:61:61Z", b"9" * 5000, b"1e400", b"~", b"yes", b"\0", b"\xff", b"\xc2\x85",
    b"[" * 3000, b"{a: " * 3000, b"- " * 3000, b"\xef\xbb\xbf", b"\xe2\x80\xa9",
)  # fmt: skip
_NAME_TOKENS = (
    b"step_", b"tmp_", b"old_", b"0", b"00", b"1", b"-1", b"+1", b"_0", b"1e3", b".0", b" ", b"\n",
    b"\r", b"\xd9\xa1", b"\xc2\xb2", b"\xef\xbc\x91", b"9223372036854775807",
    b"9223372036854775808", b"9" * 200, b".", b"-hf", b"\xff", b"\xed\xb2\x80", b"%s", b"*", b"\t",
    b".aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa", b".AAAAAAAA-aaaa-4aaa-8aaa-aaaaaaaaaaaa", b"STEP_",
)  # fmt: skip
_SPECIAL = (
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**400,
    0.0, -0.0, 1e-320, 1.7e308, float("nan"), float("inf"), -float("inf"), "", "0", "NaN", "step_1",
    "\ud800", "\0", "a\nb", "../..", "/etc/passwd", "\u202e", "x" * 3000, [], {}, [[]], [None],
    {"": None}, {"loss": 1}, "2026-11-22T00:00:00.000Z", "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa",
    "{aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa}", "AAAAAAAA-AAAA-4AAA-8AAA-AAAAAAAAAAAA",
)  # fmt: skip
_KEYS = (
    "", "..", "../..", "/etc/passwd", "a/../../b", "a\0b", "\ud800", "loss", "step", "uuid", "NaN",
    "x" * 300, "\n",
)  # fmt: skip
_ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "utf-7", "cp037")
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")

Change = Callable[["Mutator", bytes], bytes]


class Mutator:
    """Makes one input after the other.

    Args:
        kind: ``json``, ``jsonl``, ``yaml``, ``name`` or ``binary``.
        seeds: Valid ones.
    """

    def __init__(self, kind: str, seeds: Sequence[bytes]) -> None:
        self._seeds = tuple(seeds)
        self._tokens = {"yaml": _YAML_TOKENS, "name": _NAME_TOKENS}.get(kind, _JSON_TOKENS)
        self._changes: tuple[Change, ...] = _CHANGES[kind]
        self.rng = random.Random()

    def make(self, key: str) -> bytes:
        """Return the input of that key: the same for the same seeds."""
        self.rng.seed(key)
        content = self.rng.choice(self._seeds)
        for _ in range(self.rng.choice((1, 1, 1, 2, 2, 3, 5))):
            content = self.rng.choice(self._changes)(self, content)[:_MOST_BYTES]
        return content

    # --- bytes ----------------------------------------------------------------------------

    def flip(self, content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(self.rng.choice((1, 1, 2, 8)) if changed else 0):
            changed[self.rng.randrange(len(changed))] ^= 1 << self.rng.randrange(8)
        return bytes(changed)

    def overwrite(self, content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(self.rng.choice((1, 2, 16)) if changed else 0):
            changed[self.rng.randrange(len(changed))] = self.rng.choice(b'\0\xff\x80{}[]":,\\\n 0-')
        return bytes(changed)

    def cut(self, content: bytes) -> bytes:
        return content[: self._place(content)]

    def drop(self, content: bytes) -> bytes:
        start, end = self._part(content)
        return content[:start] + content[end:]

    def repeat(self, content: bytes) -> bytes:
        start, end = self._part(content)
        times = self.rng.choice((2, 3, 10, 100))
        return content[:start] + content[start:end] * times + content[end:]

    def move(self, content: bytes) -> bytes:
        start, end = self._part(content)
        rest, place = content[:start] + content[end:], self._place(content)
        return rest[:place] + content[start:end] + rest[place:]

    def splice(self, content: bytes) -> bytes:
        other = self.rng.choice(self._seeds)
        return content[: self._place(content)] + other[self._place(other) :]

    def zero(self, content: bytes) -> bytes:
        start, end = self._part(content)
        return content[:start] + b"\0" * (end - start) + content[end:]

    def empty(self, content: bytes) -> bytes:
        del content
        return self.rng.choice((b"", b"\0", b"\n", b" ", b"\xef\xbb\xbf", b"\0" * 4096))

    def encode(self, content: bytes) -> bytes:
        return content.decode("latin-1").encode(self.rng.choice(_ENCODINGS), "replace")

    # --- tokens ---------------------------------------------------------------------------

    def insert(self, content: bytes) -> bytes:
        place = self._place(content)
        return content[:place] + self.rng.choice(self._tokens) + content[place:]

    def replace(self, content: bytes) -> bytes:
        start, end = self._part(content)
        return content[:start] + self.rng.choice(self._tokens) + content[end:]

    def renumber(self, content: bytes) -> bytes:
        found = list(_NUMBER.finditer(content))
        if not found:
            return self.insert(content)
        start, end = self.rng.choice(found).span()
        return content[:start] + self.rng.choice(self._tokens) + content[end:]

    # --- structure ------------------------------------------------------------------------

    def restructure(self, content: bytes) -> bytes:
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            return self.splice(self.rng.choice(self._seeds))
        return json.dumps(self._other(value, 4), default=str).encode("utf-8", "surrogatepass")

    def duplicate_key(self, content: bytes) -> bytes:
        keys = re.findall(rb'"[^"\\]{1,40}":', content) or [b'"loss":']
        place = content.find(b"{") + 1
        pair = self.rng.choice(keys) + self.rng.choice(self._tokens)
        return content[:place] + pair + b"," + content[place:]

    def nest(self, content: bytes) -> bytes:
        depth = self.rng.choice((1, 50, 99, 100, 101, 102, 500, 900, 1100, 5000))
        before, after = self.rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
        start, end = self._part(content) if self.rng.random() < 0.3 else _value(content)
        inner = content[start:end] if len(content) < 2000 else b"1"
        return content[:start] + before * depth + inner + after * depth + content[end:]

    def lines(self, content: bytes) -> bytes:
        rows = content.split(b"\n")
        change = self.rng.randrange(5)
        if change == 0:
            self.rng.shuffle(rows)
        elif change == 1:
            rows.insert(self.rng.randrange(len(rows)), self.rng.choice(rows))
        elif change == 2:
            del rows[self.rng.randrange(len(rows))]
        else:
            place = self.rng.randrange(len(rows))
            rows[place] = self.restructure(rows[place])
        return b"\n".join(rows)

    def bomb(self, content: bytes) -> bytes:
        base = self.rng.choice((b"[x, x]", b"{x: 1, y: 2}", b"lol", b"[]"))
        width, levels = self.rng.choice(((9, 9), (2, 40), (1000, 3), (1, 300)))
        join = self.rng.choice((b"[%s]", b"{<<: [%s]}", b"{p: [%s]}"))
        rows = [b"b0: &b0 " + base]
        for level in range(1, levels):
            alias = b", ".join([b"*b%d" % (level - 1)] * width)
            rows.append(b"b%d: &b%d " % (level, level) + join % alias)
        return content + b"\n" + b"\n".join(rows) + b"\n"

    def tangle(self, content: bytes) -> bytes:
        rows = content.split(b"\n")
        place = self.rng.randrange(len(rows))
        rows[place] = rows[place].replace(b": ", b": " + self.rng.choice(self._tokens), 1)
        return b"\n".join(rows)

    # --- pieces ---------------------------------------------------------------------------

    def _place(self, content: bytes) -> int:
        return self.rng.randrange(len(content) + 1)

    def _part(self, content: bytes) -> tuple[int, int]:
        start = self._place(content)
        return start, min(len(content), start + self.rng.choice((1, 1, 2, 4, 16, 64, 4096)))

    def _other(self, value: Any, depth: int) -> Any:
        """Change one place below ``value``."""
        rng = self.rng
        if depth and isinstance(value, Mapping) and value and rng.random() < 0.85:
            changed, key = dict(value), rng.choice(list(value))
            match rng.randrange(7):
                case 0:
                    del changed[key]
                case 3:
                    changed[rng.choice(_KEYS)] = changed.pop(key)
                case 1:
                    changed[rng.choice(_KEYS)] = rng.choice(_SPECIAL)
                case 2:
                    other = rng.choice(list(value))
                    changed[key], changed[other] = changed[other], changed[key]
                case _:
                    changed[key] = self._other(value[key], depth - 1)
            return changed
        if depth and isinstance(value, list) and value and rng.random() < 0.7:
            items, place = list(value), rng.randrange(len(value))
            items[place] = self._other(items[place], depth - 1)
            return _often(items, rng.choice((1, 1, 1, 2, 50)))
        kinds: tuple[Callable[[Any], Any], ...] = (
            lambda v: [v], lambda v: {"value": v}, str, lambda v: not v, lambda v: _often([v], 300),
        )  # fmt: skip
        return rng.choice(_SPECIAL) if rng.random() < 0.3 else rng.choice(kinds)(value)


def _often(items: list[Any], times: int) -> list[Any]:
    """Repeat items, unless that grows beyond what a file may hold."""
    return items * times if len(repr(items)) * times < _LARGE else items


def _value(content: bytes) -> tuple[int, int]:
    """Where the first value of an object stands, roughly."""
    start = content.find(b":") + 1
    ends = [end for end in (content.find(b",", start), content.find(b"}", start)) if end > 0]
    return start, min(ends, default=len(content))


_LARGE = 4_000_000
_BYTES: tuple[Change, ...] = (
    Mutator.flip, Mutator.overwrite, Mutator.cut, Mutator.drop, Mutator.repeat, Mutator.move,
    Mutator.splice, Mutator.zero,
)  # fmt: skip
_TOKENS: tuple[Change, ...] = (Mutator.insert, Mutator.replace, Mutator.renumber)
_TEXT: tuple[Change, ...] = (*_BYTES, *_TOKENS, *_TOKENS, Mutator.empty, Mutator.encode)
_JSON: tuple[Change, ...] = (
    *_TEXT, *(Mutator.restructure,) * 8, Mutator.duplicate_key, Mutator.nest,
)  # fmt: skip
_CHANGES: Mapping[str, tuple[Change, ...]] = {
    "json": _JSON,
    "jsonl": (*_TEXT, *(Mutator.lines,) * 10, Mutator.duplicate_key, Mutator.nest),
    "yaml": (*_TEXT, *(Mutator.tangle,) * 6, Mutator.bomb, Mutator.nest),
    "name": (*_BYTES, *_TOKENS),
    "binary": _BYTES,
}
