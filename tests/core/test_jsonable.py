"""Records as JSON: keys are fields, or those that a class declares, in their order."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from ckptdb.core.jsonable import NOT_IN_JSON, JsonRecord, to_json


@dataclass(frozen=True, slots=True)
class Part:
    path: Path
    steps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Named:
    JSON_KEYS: ClassVar = {"run": "name", "steps": {"first": "part.steps"}, "twice": "twice"}

    name: str
    part: Part

    @property
    def twice(self) -> str:
        return self.name * 2


@dataclass(frozen=True, slots=True)
class Whole(JsonRecord):
    part: Part
    named: tuple[Named, ...]
    by_name: Mapping[str, Part]
    info: Mapping[str, object]
    secret: str = field(default="", metadata=NOT_IN_JSON)


def test_a_record_is_its_fields_with_paths_as_text_and_tuples_as_lists():
    part = Part(Path("/a"), (1, 2))
    whole = Whole(part, (Named("b", part),), {"c": part}, {"deep": {"x": [1]}}, "hidden")
    plain = {"path": "/a", "steps": [1, 2]}
    assert whole.as_dict() == {
        "part": plain,
        "named": [{"run": "b", "steps": {"first": [1, 2]}, "twice": "bb"}],
        "by_name": {"c": plain},
        "info": {"deep": {"x": [1]}},
    }
    assert list(whole.as_dict()) == ["part", "named", "by_name", "info"]
    assert json.loads(json.dumps(whole.as_dict())) == whole.as_dict()


@pytest.mark.parametrize(
    ("value", "plain"),
    [(1.5, 1.5), (math.nan, None), (-math.inf, None), (True, True), ("a", "a"), (None, None)],
)
def test_a_number_that_json_lacks_is_null(value, plain):
    assert to_json(value) is plain or to_json(value) == plain
