"""A function that answers a question as a command of `atlasvi query`, and for the service."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from atlasvi.engine.cli.answers import write_answer
from atlasvi.engine.cli.arguments import Out, print_lines, was_given
from atlasvi.engine.cli.dry_runs import DryRun, describe_answer
from atlasvi.engine.cli.job_file import JobFile
from atlasvi.engine.cli.option_groups import spread
from atlasvi.engine.cli.query_app import query_app
from atlasvi.engine.queries.question import Answer, Asking, Question
from atlasvi.engine.terminal import show_progress

QUESTIONS: dict[str, Question] = {}
"""The questions by name, once the modules that hold them are imported."""


def question(
    name: str, to_file: bool = True, in_slices: bool = False
) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Make a function, whose first parameter is an `Asking` and whose others are options, a question of this name.

    to_file    whether its command has --out
    in_slices  whether the answer is computed only while it is read, so that its command has --dry-run
    """

    def register(function: Callable[..., Answer]) -> Callable[..., Answer]:
        answer = spread(function)
        options = [option for option in inspect.signature(answer).parameters.values() if option.name != "asking"]

        def command(
            context: typer.Context,
            out: Path | None = None,
            dry_run: bool = False,
            config: Path | None = None,
            **given: Any,
        ) -> None:
            with show_progress() as progress:
                found = answer(asking=_make_asking(context, given, progress), **given)
                if dry_run:
                    print_lines(describe_answer(found, out))
                    return
                if not found.is_whole:
                    write_answer(found, out)
            if found.is_whole:
                write_answer(found, out)

        kind = inspect.Parameter.KEYWORD_ONLY
        own = [inspect.Parameter("context", kind, annotation=typer.Context), *options]
        own += [inspect.Parameter("out", kind, default=None, annotation=Out)] * to_file
        own += [inspect.Parameter("dry_run", kind, default=False, annotation=DryRun)] * in_slices
        own += [inspect.Parameter("config", kind, default=None, annotation=JobFile)]
        command.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
        command.__annotations__ = {option.name: option.annotation for option in own}
        command.__doc__ = function.__doc__
        query_app.command(name)(command)
        QUESTIONS[name] = Question(name, str(function.__doc__).strip(), options, answer)
        return function

    return register


def _make_asking(context: typer.Context, options: dict[str, Any], progress: Callable[[str, int, int], None]) -> Asking:
    from atlasvi.engine.minified.minified_store import is_minified_store

    place, data = context.meta["places"]
    of_group = context.parent.params if context.parent else {}
    encoder = of_group.get("model") if is_minified_store(place) else None  # minified data of scvi-tools has none inside

    def open_reference() -> Any:
        from atlasvi.engine.queries.opened_question import OpenedQuestion

        return OpenedQuestion(place, None, None if encoder else of_group.get("model"), of_group.get("device", "cpu"))

    given = {name for name in options if was_given(context, name)}
    return Asking(
        functools.cache(context.obj), open_reference, given, context.call_on_close, progress, data, encoder=encoder
    )
