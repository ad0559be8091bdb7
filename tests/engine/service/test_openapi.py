"""The description of the service, and that no request that it allows or forbids makes the service fail."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pandas as pd
import pytest

from atlasvi.engine.service.tiles import open_tiles
from tests.engine.api.small_models import make_adata, make_model
from tests.engine.service.embedded import copy_with_points
from tests.engine.service.running import serving

CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance,status_code_conformance"


def test_each_option_is_described_with_its_type_default_and_limits(client: httpx.Client):
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    fields = schemas["Expression"]["properties"]
    assert fields["n_samples"] == {
        "default": 0,
        "description": "Average over N draws of z; 0: decode the posterior mean.",
        "maximum": 20_000,
        "minimum": 0,
        "title": "N Samples",
        "type": "integer",
    }
    assert fields["weights"]["enum"] == ["uniform", "importance"]
    assert schemas["Markers"]["required"] == ["labels_key"]
    assert schemas["Expression"]["additionalProperties"] is False
    body = document["paths"]["/api/annotate"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "application/x-hdf5"}
    assert "new_cells" not in schemas["Annotate"]["properties"]
    assert "index" not in schemas["Neighbours"]["properties"]


ODD = ["=1+1", "a,b", 'say "x"', "it's", "new\nline", "", "  blank ", "@file", "twice", "twice", "a/b", "ünï", "NaN"]


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[httpx.Client]:
    """A service of a store with coordinates and odd names, categories and numbers."""
    adata = make_adata(60)
    adata.obs_names = [*ODD, *adata.obs_names[len(ODD) :]]
    adata.var_names = ["=g", "g,1", 'g "2"', "g\n3", "@g", *adata.var_names[5:]]
    adata.obs["odd values"] = pd.Categorical(np.resize(ODD[:8], 60))
    adata.obs["=col"] = np.resize([np.nan, 1.5, np.inf], 60)
    adata.obs["new\nline"] = np.resize([True, False], 60)
    adata.obs["nothing"] = np.nan
    make_model(adata, epochs=1).minify(tmp_path / "odd.mini")
    store = copy_with_points(tmp_path / "odd.mini", tmp_path / "served")
    with serving(store, tiles=open_tiles(store)) as client:
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("served", ["client", "odd"])
def test_no_request_makes_the_service_fail(request: pytest.FixtureRequest, served: str, tmp_path: Path):
    pytest.importorskip("schemathesis")
    address = request.getfixturevalue(served).base_url
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json".replace("//o", "/o")]
    command += ["--checks", CHECKS, "--max-examples", "20", "--seed", "1", "--max-time", "300"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)  # where it writes
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr
    assert "generated" in done.stdout
