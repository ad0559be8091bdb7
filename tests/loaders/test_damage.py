"""An error of a library or of the system while a file is read is one sentence, which blames the file only if it may."""

import errno
import os
from pathlib import Path

import pytest

from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.sources.open_source import open_source


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENAMETOOLONG])
def test_what_the_system_refuses_is_not_called_damaged(number: int):
    with pytest.raises(SourceError, match=r"^a\.zarr: the system can't open or read it") as caught, reading("a.zarr"):
        raise OSError(number, os.strerror(number))
    assert os.strerror(number) in str(caught.value)


def test_a_library_s_error_is_one_sentence_with_its_first_line():
    with pytest.raises(SourceError, match=r"^a\.h5ad: it is damaged.*message: bad superblock"), reading("a.h5ad"):
        raise OSError("\n  bad superblock.\n  in frame 3")
    with pytest.raises(SourceError, match="there is no 'X'"), reading("a.h5ad"):
        raise KeyError("X")


def test_a_name_that_is_too_long_is_said_to_be(tmp_path: Path):
    with pytest.raises(SourceError, match=r"the system can't open or read it \(File name too long\)"):
        open_source(tmp_path / f"{'n' * 300}.zarr")
