"""Where a conversation's lines come from: an editor with a history on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

Read: TypeAlias = Callable[[], str]


def open_editor(history: Path, words: Iterable[str]) -> Read:
    """A function that returns the next text, of one line or several.

    It raises EOFError on Ctrl-D, and KeyboardInterrupt on Ctrl-C where nothing is written yet.

    Args:
        history: a file of ours; what is written into it nobody else may read.
        words: what Tab completes.
    """
    if not sys.stdout.isatty():
        return lambda: input("> ")
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory

    history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    history.touch(mode=0o600)
    editor: PromptSession[str] = PromptSession(
        "> ", multiline=True, history=FileHistory(history), key_bindings=_keys(), complete_while_typing=False,
        completer=WordCompleter(list(words), sentence=True), prompt_continuation=". ", enable_open_in_editor=True,
    )  # fmt: skip
    return editor.prompt


def _keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.current_line.endswith("\\") and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys
