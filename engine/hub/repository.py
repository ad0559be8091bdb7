"""A repository of the Hugging Face Hub, through huggingface_hub; `HF_ENDPOINT` names another server that speaks as it.

All files are fetched from the commit that was listed, and sent as one commit, so neither side sees a mixture.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from atlasvi.engine.hub.hub_files import (
    LIST,
    OURS,
    ConnectionLostError,
    HubError,
    ListedFile,
    Listing,
    check_name,
    is_hidden,
)
from atlasvi.loaders.errors import AtlasviError, MissingDependencyError, OutputError
from atlasvi.loaders.manifest import write_json
from atlasvi.loaders.outputs import FULL

BRANCH = "main"


class Repository:
    """A repository of models.

    name      OWNER/NAME
    revision  a branch, tag or commit; None: the main branch
    token     None: HF_TOKEN, or that of `hf auth login`
    """

    def __init__(self, name: str, revision: str | None = None, token: str | None = None) -> None:
        self.name, self.revision, self._given_token = name, revision, token
        self._commit: str | None = None  # the commit that was listed
        self._listed: dict[str, ListedFile] = {}

    def __str__(self) -> str:
        return f"hf://{self.name}{f'@{self.revision}' if self.revision else ''}"

    @cached_property
    def _api(self) -> Any:
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise MissingDependencyError(
                f"{self}: repositories of the Hugging Face Hub need huggingface_hub: pip install 'atlasvi[hub]'."
            ) from error
        return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=self._given_token)

    def list_files(self) -> dict[str, ListedFile] | None:
        """The files of the revision; None if there is no such repository, or the token does not show it."""
        try:
            with self._explaining():
                found = self._api.model_info(self.name, revision=self.revision, files_metadata=True)
        except _NoRepositoryError:
            return None
        self._commit = found.sha
        files = {}
        for file in found.siblings or ():
            if file.rfilename == LIST or is_hidden(file.rfilename):
                continue
            check_name(file.rfilename, str(self))
            checksum = f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}"
            files[file.rfilename] = ListedFile(int(file.size), checksum)
        self._listed = files
        return files

    def fetch(self, name: str, folder: Path) -> None:
        """Download one file of the listed commit to `folder / name`; an interrupted download continues."""
        with self._explaining():
            self._api.hf_hub_download(self.name, name, revision=self._commit, local_dir=folder)

    def upload(self, source: Path, files: Listing, changed: list[str], create: str | None) -> None:
        """Send the changed files and the list of all as one commit; large files that have arrived are not sent again.

        create  make the repository, 'private' or 'public', if it does not exist
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token

        if (self._given_token or get_token()) is None:
            raise HubError(
                f"{self}: writing there needs a token: set HF_TOKEN, pass --token-from-env NAME, or log in with: hf "
                "auth login."
            )
        with self._explaining(), tempfile.TemporaryDirectory() as scratch:
            if create is not None and self._commit is None:
                self._api.create_repo(self.name, private=create == "private", exist_ok=True)
            content = {name: [file.n_bytes, file.checksum] for name, file in files.items()}
            write_json(Path(scratch) / LIST, {"files": content})
            sent = {**{name: source / name for name in changed}, LIST: Path(scratch) / LIST}
            self._api.create_commit(
                self.name,
                [
                    *(CommitOperationAdd(name, str(path)) for name, path in sent.items()),
                    *(CommitOperationDelete(name) for name in OURS if name in self._listed and name not in files),
                ],
                commit_message=f"Model of atlasvi: {', '.join(changed) or 'list of files'}",
                revision=self.revision or BRANCH,
                parent_commit=self._commit,  # the push fails if somebody else has pushed meanwhile
            )

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Turn errors of huggingface_hub and of the network into sentences."""
        api = self._api  # before `errors`: its message says what to install
        from huggingface_hub import errors

        # of the network, whatever library it uses: the base of all its errors
        caught: tuple[type[Exception], ...] = (*errors.HfHubHTTPError.__bases__, RuntimeError, ValueError)
        try:
            yield
        except AtlasviError:
            raise
        except caught as error:
            # uploads and downloads wrap the error that says what happened
            wraps = isinstance(error, (RuntimeError, errors.LocalEntryNotFoundError))
            cause = error.__cause__ if wraps and isinstance(error.__cause__, Exception) else error
            if isinstance(cause, OSError) and (cause.errno in FULL or cause.filename is not None):
                raise cause from error  # of this machine: a full disk, a folder without permission
            raise self._explain(cause, errors, api.endpoint) from error

    def _explain(self, error: Exception, errors: Any, endpoint: str) -> AtlasviError:
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, errors.GatedRepoError):
            return HubError(f"{self}: access is granted on its page only: ask for it there, and give your token.")
        if isinstance(error, errors.RepositoryNotFoundError):
            return _NoRepositoryError(f"{self}: there is no such repository, or the token does not show it.")
        if isinstance(error, errors.RevisionNotFoundError):
            return HubError(f"{self}: the repository has no revision {self.revision or BRANCH!r}: check its name.")
        if isinstance(error, errors.HFValidationError):
            return HubError(f"{self}: this can't be the name of a repository ({said}).")
        if isinstance(error, errors.OfflineModeIsEnabled):
            return ConnectionLostError(f"{self}: HF_HUB_OFFLINE is set, so the network is not used: unset it.")
        if status in (401, 403):
            return HubError(f"{self}: the token is refused, or may not do this: check that it may write there.")
        if status in (409, 412):
            return HubError(f"{self}: somebody else has changed it meanwhile: give the same command again.")
        if isinstance(error, ValueError) and not status:
            return OutputError(f"{self}: {endpoint} does not accept a file: {' '.join(str(error).split())}")
        if status and status < 500 and status != 429:
            return HubError(f"{self}: {endpoint} refused it ({said}).")
        return ConnectionLostError(
            f"{self}: {endpoint} can't be reached or does not answer ({said}): check the network, and give the same "
            "command again, which continues."
        )


class _NoRepositoryError(HubError):
    """There is no such repository, or it is private."""
