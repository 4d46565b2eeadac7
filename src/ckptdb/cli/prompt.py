"""The prompt of ``ckptdb sql``: history, completion, and commands that begin with a dot.

It uses prompt_toolkit (the extra ``prompt``) if that is installed, else Python's readline.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ckptdb.cli import terminal
from ckptdb.cli.completion import Words
from ckptdb.cli.formats import FORMATS
from ckptdb.cli.printing import echo_error, say
from ckptdb.cli.schema import echo_relation, select
from ckptdb.cli.sql_answers import SqlAnswers, is_text
from ckptdb.errors import CkptdbError

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyPressEvent

PROMPT: Final = "ckptdb> "
CONTINUED: Final = "   ...> "
HELP: Final = """\
A query ends with ; or an empty line. It can read everything and change nothing.
  .schema [NAME]   print tables and views, or one of them, each with an example
  .mode [FORM]     print answers as one of {forms}
  .help            print this help
  .quit            leave, like Ctrl-D; Ctrl-C cancels the line or the query that runs"""

Read = Callable[[], str]
"""Reads one statement; Ctrl-C raises KeyboardInterrupt, Ctrl-D EOFError."""


def run(answers: SqlAnswers) -> None:
    """Read and answer statements until Ctrl-D or ``.quit``."""
    relations = answers.registry.schema()
    names = [relation.name for relation in relations]
    commands = {".help": (), ".mode": FORMATS, ".quit": (), ".schema": names}
    words = Words(relations, (seen.name for seen in answers.registry.runs()), commands)
    read = _reader(words)
    say(f"{answers.registry.location}, read-only; .help lists the commands.", err=True)
    while True:
        try:
            text = read().strip()
            if text.rstrip(";") == ".quit":
                return
            if text:
                _execute(answers, text)
        except EOFError:
            say(err=True)
            return
        except KeyboardInterrupt:
            say("Stopped.", err=True)
        except UnicodeError:
            say("This line holds bytes that are no UTF-8; type it again.", err=True)
        except CkptdbError as error:
            echo_error(error)


def is_complete(text: str) -> bool:
    """Tell whether the typed text is a whole statement."""
    if not text.strip() or text.lstrip().startswith(".") or text.endswith("\n"):
        return True
    return sqlite3.complete_statement(text)


def history_file() -> Path | None:
    """Return the history file, readable for this user only; None if it cannot be made."""
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        # The XDG specification: a relative path is ignored.
        base = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
        file = base / "ckptdb" / "sql_history"
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except (OSError, RuntimeError):  # the latter: nobody knows where the home is
        return None
    return file


def _execute(answers: SqlAnswers, text: str) -> None:
    if not text.startswith("."):
        answers.answer(text)
        return
    name, *arguments = text.rstrip(";").split()
    argument = arguments[0] if arguments else None
    if name == ".schema":
        for relation in select(answers.registry.schema(), argument):
            echo_relation(relation)
    elif name == ".mode" and argument in FORMATS:
        answers.form = argument
    elif name == ".mode" and argument is None:
        say(answers.form)
    elif name == ".mode":
        say(f"There is no form {argument}; choose {', '.join(FORMATS)}.", err=True)
    elif name == ".help":
        for line in HELP.format(forms=", ".join(FORMATS)).splitlines():
            say(line)
    else:
        say(f"There is no command {name}; .help lists them.", err=True)


def _reader(words: Words) -> Read:
    try:
        import prompt_toolkit  # noqa: F401  # whether it is there
    except ImportError:
        return _plain_reader(words)
    return _rich_reader(words)


# --- with prompt_toolkit --------------------------------------------------------------------


def _rich_reader(words: Words) -> Read:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.lexers import PygmentsLexer
    from prompt_toolkit.output import create_output
    from pygments.lexers.sql import SqlLexer  # type: ignore[import-untyped]  # rich brings it

    class FromWords(Completer):
        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterator[Completion]:
            del complete_event
            replaced, found = words.complete(document.text_before_cursor)
            for text in found:
                yield Completion(text, start_position=-replaced)

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if not is_text(buffer.text):
            # Neither SQLite nor the history could take it.
            event.app.exit(exception=UnicodeError())
        elif is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    file = history_file()
    history: History = InMemoryHistory() if file is None else FileHistory(str(file))
    session: PromptSession[str] = PromptSession(
        PROMPT,
        multiline=True,
        prompt_continuation=CONTINUED,
        key_bindings=keys,
        history=history,
        completer=FromWords(),
        complete_while_typing=False,
        lexer=PygmentsLexer(SqlLexer),
        output=create_output(stdout=terminal.behind(sys.stdout)),
        enable_history_search=True,
    )
    return session.prompt


# --- with what Python brings ----------------------------------------------------------------


def _plain_reader(words: Words) -> Read:
    with suppress(ImportError):  # not on every platform, and nothing hangs on it
        import atexit
        import readline

        readline.set_completer(lambda _, state: _nth(words, state))
        readline.parse_and_bind("tab: complete")
        file = history_file()
        if file is not None:
            with suppress(OSError):
                readline.read_history_file(file)
            readline.set_history_length(1000)
            atexit.register(_keep_history, file)
    return _read_plainly


def _read_plainly() -> str:
    text = input(PROMPT)
    while not is_complete(text):
        line = input(CONTINUED)
        text += f"\n{line}"
    return text


def _nth(words: Words, state: int) -> str | None:
    import readline

    line, begun = readline.get_line_buffer(), readline.get_begidx()
    replaced, found = words.complete(line)
    if state >= len(found):
        return None
    # What readline takes for a word may begin before or behind what is to be replaced.
    whole = line[: len(line) - replaced] + found[state]
    # The quotation mark that ends a string it adds itself.
    return whole[begun:].removesuffix("'") if line.count("'") % 2 else whole[begun:]


def _keep_history(file: Path) -> None:
    import readline

    with suppress(OSError):
        readline.write_history_file(file)
