"""The command demo, and its training loop: a small model, real text, a kill during a save.

The model is a log-linear character n-gram, trained by stochastic gradient descent on the prose
of Python's own manual. `train` is the part to read; the rest is the model, the data and the order
of events.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import random
import re
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from ckptdb.cli.printing import say

ALPHABET = "abcdefghijklmnopqrstuvwxyz. "
ORDER = 2  # how many characters the model sees before the one that it predicts
TRAINED, HELD_OUT, BATCH = 30_000, 2_000, 50  # characters
STEPS, SAVE_EVERY, KILLED_AT = 1_000, 100, 700
RATES = {"lr-0.05": 0.05, "lr-0.5": 0.5}  # learning rates by run

Command = Callable[[Sequence[str]], object]  # runs ckptdb with the given arguments


def train(run: Path, rate: float, killed_at: int | None = None) -> None:
    """Train up to the last step, from the latest checkpoint when there is one.

    Args:
        run: The run's directory.
        rate: Learning rate.
        killed_at: The step whose save is cut in half by a SIGKILL.
    """
    from ckptdb.manager import CheckpointManager  # here, for other commands need none of it

    text, held_out = read_text()
    model, sampler, step = Model(), random.Random(2), 0  # noqa: S311  # draws batches, no secrets
    judged_by = {"metric_name": "val:loss", "higher_is_better": False}
    config = {"checkpoint_dir": run, **judged_by, "keep_top_k": 3}
    with CheckpointManager(config) as manager:
        latest = manager.get_latest_checkpoint_path()
        if latest is not None:
            step = int((manager.load_training_info(latest) or {})["step"])
            model = Model(json.loads(Path(latest, "weights.json").read_text("utf-8")))
            version, state, spare = json.loads(Path(latest, "sampler.json").read_text("utf-8"))
            sampler.setstate((version, tuple(state), spare))
            say(f"  continues from {Path(latest).name}")
        while step < STEPS:
            step += 1
            start = sampler.randrange(len(text) - BATCH)
            train_loss = model.learn(text[start : start + BATCH], rate)
            if step % SAVE_EVERY:
                continue
            metrics = {"step": step, "loss": train_loss, "val:loss": model.loss(held_out)}
            with manager.save(step, metrics, config={"rate": rate}) as folder:
                (folder / "weights.json").write_text(json.dumps(model.weights), "utf-8")
                if step == killed_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                (folder / "sampler.json").write_text(json.dumps(sampler.getstate()), "utf-8")
            say(f"  step {step:5}   val:loss {metrics['val:loss']:.3f}")


class Model:
    """Predicts a character from the two before it.

    Attributes:
        weights: For each context (the last 2, 1 and 0 characters) one number per letter of
            ALPHABET; their sum over the contexts is the letter's logit.
    """

    def __init__(self, weights: dict[str, list[float]] | None = None) -> None:
        self.weights = weights or {}

    def learn(self, passage: str, rate: float) -> float:
        """Take a gradient step for each character; return the mean loss before it, in nats."""
        losses = []
        for contexts, letter in examples(passage):
            rows = [self.weights.setdefault(context, [0.0] * len(ALPHABET)) for context in contexts]
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
            -math.log(softmax([self.weights.get(c, unseen) for c in contexts])[letter])
            for contexts, letter in examples(passage)
        ]
        return sum(losses) / len(losses)


def softmax(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the probability of each letter, given the rows of weights to add up."""
    powers = [math.exp(sum(column)) for column in zip(*rows, strict=True)]
    total = sum(powers)
    return [power / total for power in powers]


def examples(passage: str) -> Iterator[tuple[list[str], int]]:
    """Yield the contexts of each character, longest first, and its place in ALPHABET."""
    for at in range(ORDER, len(passage)):
        yield [passage[at - n : at] for n in range(ORDER, -1, -1)], ALPHABET.index(passage[at])


def read_text() -> tuple[str, str]:
    """Return prose to learn from and prose to judge by, in the letters of ALPHABET."""
    try:
        from pydoc_data.topics import topics

        prose = " ".join(topics.values())
    except ImportError:  # some distributions ship Python without its manual
        described = (value for module in (os, inspect, json, re) for value in vars(module).values())
        prose = " ".join(inspect.getdoc(value) or "" for value in described)
    text = re.sub(r"[^a-z.]+", " ", prose.lower())
    return text[:TRAINED], text[TRAINED : TRAINED + HELD_OUT]


@click.command()
@click.argument("directory", default="ckptdb-demo", type=click.Path(file_okay=False))
@click.pass_context
def demo(context: click.Context, directory: str) -> int:
    """Train a small model, kill it during a save, and recover."""
    group = context.find_root().command

    def run(arguments: Sequence[str]) -> None:
        group.main(list(arguments), prog_name="ckptdb", standalone_mode=False)

    return run_demo(Path(context.obj.directory, directory), run)


COMMANDS = (demo,)


def run_demo(directory: Path, command: Command) -> int:
    """Run the demo: train, be killed while saving, inspect, recover, finish, query.

    Args:
        directory: Where the runs go; new or empty.
        command: Runs ``ckptdb``, so that the output is what a user would see.
    """
    if refusal := find_refusal(directory):
        say(f"ckptdb: {refusal}", err=True)
        return 1

    def run_command(*arguments: str) -> None:
        words = [f'"{word}"' if " " in word else word for word in arguments]
        say()
        say(f"$ {here} {' '.join(words)}")
        command(["-C", str(directory), *arguments])

    here = f"ckptdb -C {shlex.quote(str(directory))}"
    directory.mkdir(parents=True, exist_ok=True)
    steady, eager = RATES
    say("A character model learns from the prose of Python's manual, at two learning rates.")
    say(f"Every {SAVE_EVERY} steps it is saved; the latest and the 3 best by val:loss are kept.")
    run_command("init")

    say()
    say(f"Training {steady}:")
    train(directory / steady, RATES[steady])
    say()
    say(f"Training {eager}, in a process of its own:")
    train_and_die(directory / eager, RATES[eager])
    say(f"  SIGKILL, in the middle of saving step {KILLED_AT}")
    say()
    say(f"The process is gone. This is what it left in {directory / eager}:")
    for folder in sorted(directory.glob(f"{eager}/*step_*")):
        say(f"  {folder.name + '/':15} {' '.join(sorted(os.listdir(folder)))}")
    say("A directory called step_N is whole, always. What is unfinished goes by another name:")
    run_command("reconcile")

    say()
    say("Training goes on from the latest checkpoint:")
    train(directory / eager, RATES[eager])

    say()
    say("Now the questions.")
    run_command("best", "--run", eager)
    run_command("latest", "--run", eager)
    run_command("top", "5")
    run_command("sql", "SELECT run, step, value FROM leaderboard WHERE rank = 1 ORDER BY value")
    run_command(
        "sql", "SELECT step, deleted_reason FROM deletions WHERE run = 'lr-0.5' ORDER BY step"
    )
    say()
    say(f"All of this is in {directory} for you to explore. Try:")
    for line in ("ls", f"ls {eager} --all", "schema", "gc --keep-top-k 1 --dry-run"):
        say(f"  {here} {line}")
    return 0


def train_and_die(run: Path, rate: float) -> None:
    """Train in a child process, which a SIGKILL hits while it saves."""
    import multiprocessing

    child = multiprocessing.get_context("spawn").Process(target=train, args=(run, rate, KILLED_AT))
    child.start()
    child.join()
    if child.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the training process ended with {child.exitcode}, not by SIGKILL")


def find_refusal(directory: Path) -> str | None:
    """Return why the demo cannot use a directory, or None."""
    if os.environ.get("CKPTDB_CATALOG"):
        return "CKPTDB_CATALOG is set; unset it, so that the demo stays out of that catalog."
    here = {path.name for path in directory.iterdir()} if directory.exists() else set()
    if here >= RATES.keys():
        explore = f"`ckptdb -C {directory} ls` shows it, `ckptdb demo {directory}-2` makes another"
        return f"{directory} holds an earlier demo; {explore}."
    if here:
        return f"{directory} is not empty; name a new directory: `ckptdb demo DIRECTORY`."
    return None
