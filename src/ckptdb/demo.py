"""The shortest honest training loop: a small model, real text, and a kill in mid-save.

The model is a log-linear character n-gram, trained by stochastic gradient descent on the prose
of Python's own manual. `train` is the part to read; everything else is model, data and story.
"""

from __future__ import annotations

import inspect
import json
import math
import multiprocessing
import os
import random
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ckptdb.disk import names
from ckptdb.manager import CheckpointManager

ALPHABET = "abcdefghijklmnopqrstuvwxyz. "
ORDER = 2
"""How many characters the model sees before the one that it predicts."""
TRAINED, HELD_OUT = 30_000, 2_000
"""Characters to learn from, and those after them to judge by."""
BATCH = 50
STEPS, SAVE_EVERY, KILLED_AT = 1_000, 100, 700
RATES = {"lr-0.05": 0.05, "lr-0.5": 0.5}
"""Learning rates by run."""

Command = Callable[[Sequence[str]], object]
"""Runs ``ckptdb`` with the given arguments."""


def train(run: Path, rate: float, *, killed_at: int | None = None) -> None:
    """Train up to the last step, from the latest checkpoint when there is one.

    Args:
        run: The run's directory.
        rate: Learning rate.
        killed_at: The step whose save is cut in half by a SIGKILL.
    """
    text, held_out = read_text()
    model, sampler, step = Model(), random.Random(0), 0  # noqa: S311  # draws batches, no secrets
    config = {"checkpoint_dir": run, "metric_name": "val:loss", "keep_top_k": 3}
    with CheckpointManager(config) as manager:
        latest = manager.get_latest_checkpoint_path()
        if latest is not None:
            step = int((manager.load_training_info(latest) or {})["step"])
            model = Model(json.loads(Path(latest, "weights.json").read_text()))
            version, state, spare = json.loads(Path(latest, "sampler.json").read_text())
            sampler.setstate((version, tuple(state), spare))
            say(f"  continues from {Path(latest).name}")
        while step < STEPS:
            step += 1
            train_loss = model.learn(draw(text, sampler), rate)
            if step % SAVE_EVERY:
                continue
            val_loss = model.loss(held_out)
            metrics = {"step": step, "train:loss": train_loss, "val:loss": val_loss}
            with manager.save(step, metrics, config={"rate": rate}) as folder:
                (folder / "weights.json").write_text(json.dumps(model.weights))
                if step == killed_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                (folder / "sampler.json").write_text(json.dumps(sampler.getstate()))
            say(f"  step {step:5}   val:loss {val_loss:.3f}")


class Model:
    """Predicts a character from the two before it.

    Attributes:
        weights: For each context, the last 0, 1 and 2 characters, one number per letter of
            ALPHABET. Their sum over the contexts is the letter's logit.
    """

    def __init__(self, weights: dict[str, list[float]] | None = None) -> None:
        self.weights = {} if weights is None else weights

    def learn(self, passage: str, rate: float) -> float:
        """Take one gradient step per character; return the mean loss before each, in nats."""
        losses = []
        for before, letter in windows(passage):
            rows = [self.weights.setdefault(c, [0.0] * len(ALPHABET)) for c in contexts(before)]
            gradient = softmax(rows)
            losses.append(-math.log(gradient[letter]))
            gradient[letter] -= 1.0
            for row in rows:
                row[:] = [w - rate * g for w, g in zip(row, gradient, strict=True)]
        return sum(losses) / len(losses)

    def loss(self, passage: str) -> float:
        """Return the mean cross-entropy per character, in nats."""
        unseen = [0.0] * len(ALPHABET)
        losses = [
            -math.log(softmax([self.weights.get(c, unseen) for c in contexts(before)])[letter])
            for before, letter in windows(passage)
        ]
        return sum(losses) / len(losses)


def softmax(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the probability of each letter, given the rows of weights to add up."""
    logits = [sum(column) for column in zip(*rows, strict=True)]
    top = max(logits)
    powers = [math.exp(logit - top) for logit in logits]
    total = sum(powers)
    return [power / total for power in powers]


def contexts(before: str) -> Iterator[str]:
    """Yield the last ORDER characters, then fewer, then none."""
    return (before[start:] for start in range(ORDER + 1))


def windows(passage: str) -> Iterator[tuple[str, int]]:
    """Yield what stands before each character, and the character's place in ALPHABET."""
    for at in range(ORDER, len(passage)):
        yield passage[at - ORDER : at], ALPHABET.index(passage[at])


def draw(text: str, sampler: random.Random) -> str:
    """Return a passage with BATCH characters to predict."""
    start = sampler.randrange(len(text) - BATCH - ORDER)
    return text[start : start + BATCH + ORDER]


def read_text() -> tuple[str, str]:
    """Return prose to learn from and prose to judge by, in the letters of ALPHABET."""
    try:
        from pydoc_data.topics import topics

        prose = " ".join(topics.values())
    except ImportError:  # some distributions ship Python without its manual
        modules = (argparse_like for argparse_like in list(sys.modules.values()))
        prose = " ".join(inspect.getdoc(module) or "" for module in modules)
    text = re.sub(r"[^a-z.]+", " ", prose.lower())
    return text[:TRAINED], text[TRAINED : TRAINED + HELD_OUT]
