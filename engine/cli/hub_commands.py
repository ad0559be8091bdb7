"""`atlasvi push` and `atlasvi pull`: a model's folder to or from a folder or a repository of the Hugging Face Hub."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from atlasvi.engine.terminal import count, say

Token = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Environment variable that holds the token for hf:// (default: HF_TOKEN, or who logged in by hf auth "
        "login).",
    ),
]
Replace = Annotated[bool, typer.Option("--replace", help="Replace another model that is there.")]


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A model's folder, as atlasvi card writes it.")],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="A folder, hf://OWNER/NAME or hf://OWNER/NAME@BRANCH.")],
    create: Annotated[
        Literal["private", "public"] | None, typer.Option(help="Make the repository if it does not exist.")
    ] = None,
    replace: Replace = False,
    token_from_env: Token = None,
) -> None:
    """Send a model and its card to a folder or to the Hugging Face Hub; only what is missing there or differs."""
    from atlasvi.engine.hub.transfer import push as run

    sent = run(folder, dest, token=_read_token(token_from_env), create=create, replace=replace)
    say(f"{sent.place}: {_describe(sent.sent, sent.n_files, sent.n_bytes, 'sent')}")


def pull(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A folder, hf://OWNER/NAME or hf://OWNER/NAME@REVISION.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make, or to bring up to date.")],
    replace: Replace = False,
    token_from_env: Token = None,
) -> None:
    """Fetch a model and its card; only what is missing or differs. Nothing that is fetched is executed."""
    from atlasvi.engine.hub.transfer import pull as run

    sent = run(source, folder, token=_read_token(token_from_env), replace=replace)
    say(f"{sent.place}: {_describe(sent.sent, sent.n_files, sent.n_bytes, 'fetched')}")


def _describe(sent: tuple[str, ...], n_files: int, n_bytes: int, verb: str) -> str:
    if not sent:
        return f"up to date, {count(n_files, 'file')}."
    return f"{len(sent)} of {count(n_files, 'file')} {verb}, {n_bytes / 1e6:,.1f} MB ({', '.join(sorted(sent))})."


def _read_token(name: str | None) -> str | None:
    """The token in an environment variable. Raises HubError if the variable is not set."""
    if sys.stderr is None or not sys.stderr.isatty():  # before huggingface_hub is imported: no bars in a log
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if name is None:
        return None
    from atlasvi.engine.hub.hub_files import HubError

    if not (token := os.environ.get(name, "").strip()):
        raise HubError(f"--token-from-env {name}: the environment variable {name} is not set, or is empty.")
    return token
