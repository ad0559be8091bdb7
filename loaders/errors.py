"""What can be wrong with data, each error as one sentence to a person: what was found, where, and what to do.

Every error that a user can cause is an `AtlasviError`; the command line prints its message without a traceback.
"""


class AtlasviError(Exception):
    """Base of all errors that a user can correct; the message is one or two sentences.

    exit_status  exit status of the command line
    keeps_work   whether the finished part of the work is kept, so that the same call can continue it, as after a kill
    """

    exit_status, keeps_work = 1, False


class AtlasviWarning(UserWarning):
    """What a user must know about an answer or a result that is given all the same; the command line prints it too."""


class SourceError(AtlasviError, ValueError):
    """A file or folder can't be read as counts: unknown, damaged, cut short, or of a newer format."""


class StorageError(SourceError):
    """A bucket or a web server can't be read: no connection, no permission, an object that changed while it was read.

    The same call may succeed later, so the finished part of the work is kept.
    """

    keeps_work = True


class DamagedChunkError(SourceError):
    """A part of a cell store does not match its checksum; the rest can be read."""


class CountsError(AtlasviError, ValueError):
    """The matrix holds something that is not a count: negative, fractional, NaN, infinite, or an empty cell."""


class GeneError(AtlasviError, ValueError):
    """Gene names are missing, repeated, or not shared between sources."""


class ColumnError(AtlasviError, ValueError, KeyError):
    """An `obs` or `var` column is missing, or its values can't be used as requested.

    A KeyError too, since scvi-tools raises one for a column that is not there.
    """

    __str__ = Exception.__str__  # a KeyError would show its message in quotes


class OutputError(AtlasviError, OSError):
    """The output exists already or can't be written (a full disk, a folder without permission)."""


class WorkerError(AtlasviError, RuntimeError):
    """A process that did a part of the work died."""

    keeps_work = True


class MissingDependencyError(AtlasviError, ImportError):
    """An optional dependency is needed and not installed; the message says what to install."""
