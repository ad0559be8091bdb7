"""The description of the service, and that no request that it allows or forbids makes the service fail."""

import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest

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


@pytest.mark.slow
def test_no_request_makes_the_service_fail(client: httpx.Client, tmp_path: Path):
    pytest.importorskip("schemathesis")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{client.base_url}/openapi.json".replace("//o", "/o")]
    command += ["--checks", CHECKS, "--max-examples", "20", "--seed", "1", "--max-time", "300"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)  # where it writes
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr
    assert "generated" in done.stdout
