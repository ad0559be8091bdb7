import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable

import pytest

from atlasvi.engine.terminal import count, explain_errors, make_printable, say, show_progress
from atlasvi.loaders.errors import OutputError, SourceError


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("CD3E", "CD3E"),
        ("naïve T, größer als 7 µm, 細胞", "naïve T, größer als 7 µm, 細胞"),
        ("\x1b]0;title\x07\x1b[31mred", r"\x1b]0;title\x07\x1b[31mred"),
        ("\x9b31mred", r"\x9b31mred"),  # the same in one byte
        ("a\r\nb\tc\x7f", r"a\r\nb\tc\x7f"),
        ("left\u202eright\u2028", r"left\u202eright\u2028"),
        ("\udcff.h5ad", r"\udcff.h5ad"),  # a byte of a file's name that is no text
    ],
)
def test_what_would_steer_a_terminal_is_shown_as_an_escape(name: str, shown: str, capsys):
    assert make_printable(name) == shown
    say(name)
    say(name, error=True)
    assert capsys.readouterr() == (f"{shown}\n", f"{shown}\n")


@pytest.mark.parametrize("path", ["x/[/red]x", "[bold]", ":smile:", "[link=file:///]"])
def test_markup_in_a_line_is_printed_as_it_is(path: str, capsys):
    say(path)
    assert capsys.readouterr().out == f"{path}\n"


def test_nouns_agree_with_their_numbers():
    assert [count(n, "cell") for n in (0, 1, 2_000)] == ["0 cells", "1 cell", "2,000 cells"]
    assert [count(n, "batch", "batches") for n in (1, 2)] == ["1 batch", "2 batches"]


def end_of(act: Callable[[], None], capsys) -> tuple[object, str]:
    """The exit status that a command ends with, and what it says on standard error."""
    with pytest.raises(SystemExit) as ended, explain_errors():
        act()
    return ended.value.code, capsys.readouterr().err


def raises(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (SourceError("a.h5ad: it is\x1b[2J empty"), 1, r"atlasvi: a.h5ad: it is\x1b[2J empty"),
        (OutputError("x: exists"), 1, "atlasvi: x: exists"),
        (KeyboardInterrupt(), 130, "atlasvi: interrupted"),
        (PermissionError(errno.EACCES, "Permission denied", "a.h5ad"), 1, "atlasvi: a.h5ad: .*Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "atlasvi: the disk is full"),
        (OSError(errno.EMFILE, "Too many open files", "a.h5ad"), 1, "atlasvi: a.h5ad: too many files .* ulimit -n"),
        (MemoryError(), 1, "atlasvi: there is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "atlasvi: there is not enough memory"),
    ],
)
def test_what_the_user_or_the_machine_is_the_cause_of_is_one_sentence(error, status: int, sentence: str, capsys):
    ended, said = end_of(raises(error), capsys)
    assert ended == status
    pattern = sentence if ".*" in sentence else re.escape(sentence)
    assert re.match(pattern, said)
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("error", [ZeroDivisionError, RuntimeError])
def test_a_fault_of_the_program_keeps_its_traceback(error: type[Exception]):
    with pytest.raises(error), explain_errors():
        raise error


def test_the_reader_of_a_pipe_may_leave_without_a_word(monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert end_of(lambda: say("a line that waits in the buffer"), capsys) == (1, "")


def test_a_standard_output_that_is_full_is_said(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        status, said = end_of(lambda: say("a line"), capsys)
    assert status == 1
    assert said.startswith("atlasvi: the disk is full")


def test_a_standard_output_that_was_closed_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    went_on = False
    with explain_errors():
        say("nobody hears this")
        went_on = True
    assert went_on


def test_an_answer_goes_to_its_file_while_a_bar_is_on_the_terminal(tmp_path, monkeypatch):
    """rich would send what is printed meanwhile to the terminal, where `> answer.csv` finds nothing."""
    ours, theirs = os.openpty()
    with open(tmp_path / "answer.csv", "w") as out, os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", terminal)
        with show_progress() as report:
            report("computing", 1, 2)
            print("cell,x")
    said = b""
    with contextlib.suppress(OSError):  # at its end
        while part := os.read(ours, 10_000):
            said += part
    os.close(ours)
    assert (tmp_path / "answer.csv").read_text() == "cell,x\n"
    assert b"computing" in said
    assert b"cell" not in said
