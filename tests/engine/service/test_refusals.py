from pathlib import Path
from types import SimpleNamespace

from atlasvi.engine.minified.minified_by_scvi_tools import open_minified
from atlasvi.engine.service.refusals import Mask


def test_no_sentence_tells_where_the_files_of_a_store_are(forms: Path, tmp_path: Path):
    store = open_minified(forms / "x.mini")
    run = store.run
    run.path = tmp_path / "models/run"
    tiles = SimpleNamespace(folder=tmp_path / "home/.cache/atlasvi/x.mini.12.tiles")
    mask = Mask.of(store, run, tiles).with_upload("/elsewhere/atlasvi-abc.h5ad")
    assert mask(f"{store.path}: it has no column 'a/b'.") == "x.mini: it has no column 'a/b'."
    assert mask(f"{tiles.folder}/columns is damaged") == "x.mini.12.tiles/columns is damaged"
    assert mask(f"copy {run.path}/model.pt again") == "copy run/model.pt again"
    assert mask("/elsewhere/atlasvi-abc.h5ad: no file") == "the new counts: no file"
    assert mask(f"no gene 'a{forms}/y'") == f"no gene 'a{forms}/y'"


def test_no_sentence_tells_the_bucket_of_a_store():
    mask = Mask("s3://lab/atlases/x.mini", ("s3://lab/atlases",))
    assert mask("s3://lab/atlases/x.mini/obs/a is missing") == "x.mini/obs/a is missing"
