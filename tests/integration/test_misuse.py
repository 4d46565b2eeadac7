"""No checkpoint is deleted that no sentence of the documentation allows to delete, in any story.

In random trees people train, ask, prune, delete, pin, move things by hand and damage files. After
each act the checkpoints on disk are compared with those before. Each missing one must be allowed by
`misuse.reader`, who knows the documentation alone, and be in the journal with a reason; no row of
history is lost. A failing story is made shorter and printed so that it can be repeated.

The suite runs a few stories. More of them, two or three in a second:

    CKPTDB_STORIES=2000 pytest tests/integration/test_misuse.py
"""

import os
from collections import Counter
from dataclasses import replace

import pytest
from tests.support.misuse import stories

from ckptdb.disk import checkpoint_identity, identity, journal, names, run_listing
from ckptdb.disk.journal_pins import Pins
from ckptdb.disk.retire import Deletion, Retiring
from ckptdb.retention import decision, policy

pytestmark = pytest.mark.slow

STORIES = int(os.environ.get("CKPTDB_STORIES", "60"))
STRUCK = (
    "gone: deleted", "gone: replaced", "gone: discarded", "rule: best", "rule: latest",
    "rule: every", "rule: steps", "rule: tagged", "rule: where", "refused: config", "refused: gc",
    "refused: rm", "refused: pin", "gc that worked", "rm that worked", "undeleted", "resumed",
    "rejected", "annotated", "leased", "linked", "finished later", "real processes",
    "another process: incomplete", "another process: complete", "another process: whole",
    "journal: flip", "journal: line", "journal: emptied", "journal: removed", "journal: random",
    "catalog: removed", "catalog: broken", "catalog: old",
)  # fmt: skip


def test_no_checkpoint_goes_that_nobody_let_go(tmp_path):
    tally: Counter[str] = Counter()
    for number in range(STORIES):
        fault = stories.find_fault(tmp_path / "story", number, tally)
        assert fault is None, fault
    # Where nothing goes nothing can go wrongly.
    assert [what for what in STRUCK if not tally[what]] == []
    assert tally["gone: deleted"] > STORIES, "too little was deleted"
    assert tally["gone: replaced"] > STORIES / 2, "too little was replaced"
    assert tally["prunes"] > 3 * STORIES, "too little was pruned"
    assert tally["history compared"] > 3 * STORIES, "too little history was compared"


# --- a judge that finds nothing has to be one that would ------------------------------------------


def take_one_more(monkeypatch):
    real = Retiring.retire

    def retire(self, deletions, **options):
        deletions = list(deletions)
        who, taken = identity.identify(self.directory), {deletion.step for deletion in deletions}
        for step, path in run_listing.list_finals(self.directory) if deletions else ():
            if step not in taken:
                uuid = checkpoint_identity.find_uuid(who, path, step)
                return real(
                    self, [*deletions, Deletion(step, uuid or "", "retention: one more")], **options
                )
        return real(self, deletions, **options)

    monkeypatch.setattr(Retiring, "retire", retire)


def forget_pins(monkeypatch):
    monkeypatch.setattr(Pins, "find", lambda _: frozenset())
    monkeypatch.setattr(decision, "_find_pinned", lambda _: {})


def forget_where_training_continued(monkeypatch):
    monkeypatch.setattr(Pins, "find_resumed_from", lambda _: None)
    monkeypatch.setattr(decision, "find_resumed_from", lambda _: None)


def rank_the_other_way(monkeypatch):
    real = policy.Policy.rules.func

    def rules(self):
        turned = {"min": "max", "max": "min", None: None}
        return real(replace(self, mode=turned[self.mode]))

    monkeypatch.setattr(policy.Policy, "rules", property(rules))


def record_nothing(monkeypatch):
    real = journal.append

    def append(hidden, facts, **options):
        return real(hidden, [fact for fact in facts if fact.kind != "deleted"], **options)

    monkeypatch.setattr(journal, "append", append)


def keep_no_promise(monkeypatch):
    monkeypatch.setattr(names, "find_until", lambda _: None)


UNMEANT, UNTOLD, UNKEPT = "nobody meant that", "without a line", "to wait"


@pytest.mark.parametrize(
    ("plant", "end"),
    [
        (take_one_more, UNMEANT),
        (forget_pins, UNMEANT),
        (forget_where_training_continued, UNMEANT),
        (rank_the_other_way, UNMEANT),
        (record_nothing, UNTOLD),
        (keep_no_promise, UNKEPT),
    ],
)
def test_a_pruner_that_is_wrong_is_found(tmp_path, monkeypatch, plant, end):
    plant(monkeypatch)
    scripts = ((f"world {n}", stories.write_script(f"story {n}")) for n in range(200))
    told = (stories.tell(tmp_path / "story", *script, Counter()) for script in scripts)
    assert any(end in fault[0] for fault in told if fault is not None)
