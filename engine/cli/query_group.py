"""Parse the words after `atlasvi`, and after `atlasvi query`."""

from pathlib import Path
from typing import Any

from typer.core import TyperGroup

BUCKET_OPTIONS = ("--storage", "--cache", "--cache-gb")
GROUP_OPTIONS = ("--model", "--device", "--gene-column")


def move_options(args: list[str], names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """(the options of these names with their values, the other words): typer reads a group's options first."""
    moved: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for argument in words:
        if argument in names and (value := next(words, None)) is not None:
            moved += [argument, value]
        else:
            (moved if argument.startswith(tuple(f"{name}=" for name in names)) else rest).append(argument)
    return moved, rest


class AtlasviGroup(TyperGroup):
    """Accepts the options that say how buckets are read anywhere in a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments with these options first."""
        moved, rest = move_options(args, BUCKET_OPTIONS)
        return super().parse_args(ctx, [*moved, *rest])


class QueryGroup(TyperGroup):
    """Accepts its options anywhere, and DATA between MINI or RUN and the command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments with the group's options first."""
        moved, rest = move_options(args, GROUP_OPTIONS)
        names_data = len(rest) > 1 and rest[1] not in self.commands and not rest[1].startswith("-")
        # a word that is alone is DATA only if it is there: else it is a question that was misspelt
        alone = len(rest) == 2 and ("://" in rest[1] or Path(rest[1].partition("::")[0]).exists())
        if names_data and (alone or (len(rest) > 2 and not rest[2].startswith("-"))):
            moved += ["--data", rest.pop(1)]
        return super().parse_args(ctx, [*moved, *rest])
