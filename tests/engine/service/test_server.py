"""The process of `atlasvi serve`: how it starts and ends, and what of warnings goes to clients."""

import os
import re
import signal
import socket
import warnings
from pathlib import Path

import httpx2 as httpx
import pandas as pd
import pytest

from atlasvi.engine.queries import abundance
from atlasvi.engine.service.answer_forms import CSV
from atlasvi.engine.service.server import open_socket
from atlasvi.loaders.errors import OutputError
from tests.engine.distributed.rank_processes import end_ranks, start_ranks, wait_until
from tests.engine.service.running import ask, run_atlasvi, serving


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_a_signal_and_ends_cleanly(forms: Path, tmp_path: Path, number: signal.Signals):
    words = "serve", str(forms / "x.mini"), "--port", "0", "--token", "a-long-token"
    (rank,) = ranks = start_ranks(run_atlasvi, 1, tmp_path, *words)
    try:
        wait_until(rank.written.exists, 300)
        wait_until(lambda: "until Ctrl-C" in rank.said or rank.process.exitcode is not None, 300)
        address = re.search(r"at (http://127.0.0.1:\d+)/ until Ctrl-C", rank.said)
        assert address is not None, rank.said
        assert httpx.get(f"{address[1]}/api/info").status_code == 401
        token = {"Authorization": "Bearer a-long-token"}
        assert httpx.get(f"{address[1]}/api/info", headers=token).json()["n_cells"] == 60
        os.kill(rank.process.pid, number)  # type: ignore[arg-type]
        rank.process.join(60)
        assert rank.process.exitcode == 0, rank.said
        assert rank.said.count("\n") == 1
    finally:
        end_ranks(ranks, within_s=0)


def test_a_port_that_is_taken_is_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OutputError, match=r"choose another \(--host"):
        open_socket("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(OutputError, match=r"can't listen at no\.such"):
        open_socket("no.such.name.invalid", 0)


def test_what_the_command_line_warns_of_comes_with_the_answer(forms: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(abundance, "COMPONENTS", 20)
    with warnings.catch_warnings(), serving(forms / "x.mini") as client:
        for _ in range(2):  # the second time, too
            found = ask(client, "abundance", sample_key="donor", limit=2).json()
            assert "at most 10 cells of each sample" in found["warnings"][0]
            assert found["warnings"][0].startswith("x.mini: ")
        response = ask(client, "abundance", CSV, sample_key="donor", limit=2)
        assert "at most 10 cells" in response.headers["Atlasvi-Warnings"]
        assert str(forms) not in response.headers["Atlasvi-Warnings"]
        assert ask(client, "latent", limit=1).json()["warnings"] == []


def test_the_store_its_genes_and_its_columns_are_told(client: httpx.Client):
    info = client.get("/api/info").json()
    assert (info["name"], info["n_cells"], info["n_genes"], info["n_latent"]) == ("x.mini", 60, 40, 4)
    assert info["obs"] == {
        "cell_type": "category",
        "batch": "category",
        "donor": "integer",
        "percent_mito": "number",
        "n_counts": "number",
        "source": "category",
        "source_row": "integer",
        "observed_lib_size": "number",
    }
    assert client.get("/api/genes?pattern=G1").json() == {
        "n_genes": 11,
        "genes": ["g1", *(f"g1{k}" for k in range(10))],
    }
    assert client.get("/api/genes").json()["n_genes"] == 40
    cells = pd.DataFrame(ask(client, "latent", columns="cell_type,percent_mito").json()["columns"])
    kinds = client.get("/api/obs/cell_type").json()
    assert {each["value"]: each["n_cells"] for each in kinds["values"]} == cells["cell_type"].value_counts().to_dict()
    assert (kinds["n_values"], kinds["n_missing"]) == (3, 0)
    range_ = client.get("/api/obs/percent_mito").json()
    assert (range_["min"], range_["max"]) == (cells["percent_mito"].min(), cells["percent_mito"].max())
    some = client.post("/api/obs/cell_type", json={"rows": list(range(30)), "where": "cell_type=B"}).json()
    assert some["values"] == [{"value": "B", "n_cells": int((cells["cell_type"][:30] == "B").sum())}]
    some = client.post("/api/obs/percent_mito", json={"rows": [4, 9]}).json()
    assert some["max"] == cells["percent_mito"][[4, 9]].max()
