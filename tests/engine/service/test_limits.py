"""What one client may ask for: malformed, oversized, slow and cancelled requests end with a sentence, or end."""

import asyncio
import json
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from starlette.requests import ClientDisconnect

from atlasvi.engine.minified.minified_by_scvi_tools import open_minified
from atlasvi.engine.service.answer_forms import ARROW, CSV
from atlasvi.engine.service.app import JobResponse
from atlasvi.engine.service.limits import Limits
from tests.engine.service.running import ask, ask_table, refusal, serving

MALFORMED: list[tuple[Any, str]] = [
    (b"{", "EOF"),
    (b"[]", "body"),
    (b"\xff\xfe", "The body"),
    (b"[" * 100_000, "recursion"),
    (b'{"limit": NaN}', "The"),
    ({"limit": 0}, "'limit': Input should be greater than or equal to 1"),
    ({"limit": -(10**30)}, "'limit'"),
    ({"limit": "many"}, "'limit'"),
    ({"genes": "g1"}, "There is no option 'genes': this question has rows, polygon, variance, cells"),
    ({"cells": []}, "'cells'"),
    ({"cells": "@/etc/passwd"}, "send a list of names instead of a file"),
    ({"where": {"a": 1}}, "'where'"),
    ({"where": "x" * 30_000}, "'where'"),
    ({"rows": [-1]}, "'rows'"),
    ({"rows": [1.5]}, "'rows'"),
]


@pytest.mark.parametrize(("body", "words"), MALFORMED)
def test_a_body_that_does_not_fit_the_question_is_refused(client: httpx.Client, body: Any, words: str):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post("/api/latent", content=content, headers={"Content-Type": "application/json"})
    assert words in refusal(response, 422)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("latent", {"where": "cell_type=Q"}, "no cell has cell_type = 'Q'"),
    ("latent", {"where": "cel_type=B"}, "Did you mean 'cell_type'"),
    ("latent", {"where": "__import__('os').system('true')"}, "an expression compares columns"),
    ("latent", {"where": "cell_type.values.tofile('x') == 1"}, "an expression compares columns"),
    ("latent", {"where": "donor == 9**9**9"}, "powers of numbers"),
    ("latent", {"cells": ["nobody"]}, "do not exist"),
    ("latent", {"limit": 1, "sample": 1}, "use one of the two"),
    ("expression", {"genes": ["g99"]}, "no gene 'g99'"),
    ("expression", {"library_size": "huge"}, "huge"),
    ("markers", {"labels_key": "type"}, "no column 'type'"),
    ("neighbours", {"of": ["nobody"]}, "do not exist"),
    ("latent", {"where": "cell_type.str.contains('(B+)+$')"}, "can take very long"),
    ("count", {"where": "cell_type.str.contains('(B|NK+)*$')"}, "can take very long"),
    ("neighbours", {"of": "cell_type.str.contains('(a+)+$')"}, "can take very long"),
    ("compare", {"first": "cell_type.str.contains('(a+)+$')"}, "can take very long"),
]


@pytest.mark.parametrize(("question", "options", "words"), WRONG)
def test_a_question_that_can_not_be_answered_is_refused_without_a_path(
    forms: Path, client: httpx.Client, question: str, options: dict[str, Any], words: str
):
    sentence = refusal(ask(client, question, **options), 400)
    assert words in sentence
    assert str(forms) not in sentence
    assert "/" not in sentence.replace("and/or", "")


def test_the_patterns_of_cells_whose_column_is_counted_are_bounded_too(client: httpx.Client):
    body = {"where": "cell_type.str.contains('(a+)+$')"}
    assert "can take very long" in refusal(client.post("/api/obs/donor", json=body), 400)


def test_a_pattern_that_takes_bounded_time_is_looked_for(client: httpx.Client):
    found = ask_table(client, "latent", where="cell_type.str.contains('^(B|N.*)$')", columns="cell_type")
    assert set(found["cell_type"]) == {"B", "NK"}


def test_other_addresses_methods_and_forms_are_refused(client: httpx.Client):
    assert "/openapi.json" in refusal(client.get("/api/nothing"), 404)
    assert "not for GET" in refusal(client.get("/api/latent"), 405)
    assert "text/csv" in refusal(client.post("/api/latent", json={}, headers={"Accept": "image/png"}), 406)
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = client.post("/api/latent", content=b"{}", headers={"Content-Type": kind})
        assert "application/json" in refusal(response, 415)
    assert "no column 'x'" in refusal(client.get("/api/obs/x"), 400)


def test_what_is_too_large_is_refused_before_it_is_computed(forms: Path):
    limits = Limits(most_cells=50, json_rows=20, most_genes=5, most_samples=100)
    with serving(forms / "x.mini", limits) as client:
        assert "60 rows" in refusal(ask(client, "latent", CSV), 413)
        assert "in JSON this service gives up to 20" in refusal(ask(client, "latent", limit=30), 413)
        assert ask(client, "latent", CSV, limit=30).text.count("\n") == 31
        assert "40 genes" in refusal(ask(client, "expression", limit=3), 413)
        assert "6 genes" in refusal(ask(client, "aggregate", by="donor", genes=[f"g{k}" for k in range(6)]), 413)
        assert "less than or equal to 100" in refusal(ask(client, "expression", genes="g1", n_samples=101), 422)
        assert "neighbours" not in refusal(ask(client, "neighbours", k=1_001), 422)
        assert "60 rows" in refusal(ask(client, "neighbours", CSV, of=[1, 2], k=30), 413)
        big = client.post("/api/latent", content=b" " * 4_000_001, headers={"Content-Type": "application/json"})
        assert "larger than 4,000,000 bytes" in refusal(big, 413)

        def stream():
            for _ in range(50):
                yield b" " * 100_000

        big = client.post("/api/latent", content=stream(), headers={"Content-Type": "application/json"})
        assert "larger than 4,000,000 bytes" in refusal(big, 413)


def test_memory_is_looked_at_before_it_is_taken(forms: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Limits, "most_values", 1_000)
    monkeypatch.setattr(Limits, "most_groups", 2)
    with serving(forms / "x.mini") as client:
        for question, options in (
            ("correlation", {"genes": ["g1", "g2"], "n_samples": 20}),
            ("aggregate", {"by": ["donor"], "genes": ["g1"] * 600}),
        ):
            assert "values in memory" in refusal(ask(client, question, **options), 400)
        assert "2,000 values" in refusal(ask(client, "expression", n_samples=50), 413)
        for question, option in (("markers", "labels_key"), ("differential", "groupby"), ("abundance", "sample_key")):
            for column in ("cell_type", "percent_mito", "source_row"):
                options = {option: column} | ({} if question == "abundance" else {"n_samples": 20})
                assert "more than 2 values" in refusal(ask(client, question, **options), 413)
        assert "more than 2 values" in refusal(ask(client, "aggregate", by="donor,cell_type", genes="g1"), 413)


@pytest.fixture
def slow(forms: Path):
    """Minified cells that take a while to read, and what was read of them."""
    store = open_minified(forms / "x.mini")
    store.n_read, store.is_free = 0, threading.Event()
    read, read_column = store.read_latent, store.read_column

    def read_slowly(start: int, stop: int) -> Any:
        store.n_read += 1
        store.is_free.wait(0.2)
        return read(start, stop)

    store.read_latent = read_slowly
    store.read_column = read_column
    return store


@pytest.fixture
def in_slices(monkeypatch: pytest.MonkeyPatch):
    """Posteriors are read two cells at a time."""
    monkeypatch.setattr("atlasvi.engine.queries.question_cells.SLICE_CELLS", 2)
    monkeypatch.setattr("atlasvi.engine.service.answer_forms.PIECE_BYTES", 1)


def test_a_question_that_takes_too_long_ends(slow, in_slices):
    with serving(slow, Limits(seconds=0.5, at_once=1)) as client:
        begun = time.monotonic()
        assert "longer than 0.5 seconds" in refusal(ask(client, "latent"), 503)
        assert time.monotonic() - begun < 3
        n_read = slow.n_read
        assert n_read < 10
        slow.is_free.set()
        assert len(ask_table(client, "latent", limit=4)["cell"]) == 4  # the thread is free again
        assert slow.n_read <= n_read + 1  # of the first question, nothing more was read


def test_a_question_ends_when_its_client_goes(slow, in_slices):
    with serving(slow, Limits(at_once=1)) as client:
        with pytest.raises(httpx.TimeoutException):
            client.post("/api/latent", json={}, timeout=0.5)
        slow.is_free.set()
        assert len(ask_table(client, "latent", rows=[1])["cell"]) == 1
        assert slow.n_read < 10  # of 30 slices


def test_a_client_that_goes_in_the_middle_of_an_answer_ends_it(slow, in_slices):
    with serving(slow, Limits(at_once=1)) as client:
        with client.stream("POST", "/api/latent", json={}, headers={"Accept": CSV}) as response:
            assert response.status_code == 200
            next(response.iter_raw(1))
        slow.is_free.set()
        assert len(ask_table(client, "latent", rows=[1])["cell"]) == 1
        assert slow.n_read < 20


def test_a_client_that_does_not_read_its_answer_keeps_no_thread_and_is_left(
    forms: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Limits, "send_seconds", 1.0)
    body = json.dumps({"n_samples_overall": 20_000}).encode()  # 8 MB, more than the system keeps for a connection
    head = f"Host: localhost\r\nContent-Type: application/json\r\nAccept: {CSV}\r\nContent-Length: {len(body)}\r\n\r\n"
    with serving(forms / "x.mini", Limits(seconds=5, at_once=1)) as client, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.connect((client.base_url.host, client.base_url.port))
        connection.sendall(b"POST /api/expression HTTP/1.1\r\n" + head.encode() + body)
        assert ask(client, "count").status_code == 200  # when the thread is free
        time.sleep(2)
        received = b"".join(iter(lambda: connection.recv(2**20), b""))
    assert received.startswith(b"HTTP/1.1 200")
    assert not received.endswith(b"0\r\n\r\n")


def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(slow, in_slices):
    read = slow.read_latent

    def fail(start: int, stop: int) -> Any:
        if start >= 20:
            raise OSError("a disk that is gone")
        return read(start, stop)

    slow.read_latent = fail
    slow.is_free.set()
    with serving(slow) as client, pytest.raises(httpx.RemoteProtocolError):
        ask(client, "latent", CSV)
    with serving(slow) as client:
        assert "its log says why" in refusal(ask(client, "latent"), 500)


def test_a_chunk_that_is_damaged_while_the_store_is_served_is_said_without_a_path(forms: Path, tmp_path: Path):
    copied = Path(shutil.copytree(forms / "x.mini", tmp_path / "x.mini"))
    with serving(copied) as client:
        for chunk in (copied / "obsm/scvi_latent_qzm/c").rglob("*"):
            if chunk.is_file():
                content = bytearray(chunk.read_bytes())
                content[len(content) // 2] ^= 1
                chunk.write_bytes(content)
        sentence = refusal(ask(client, "latent"), 500)
        assert sentence.startswith("x.mini/obsm/scvi_latent_qzm/c/0/0 is damaged")
        assert str(tmp_path) not in sentence
        assert ask_table(client, "count")["cells"] == [60]  # what needs no latents is answered


def test_more_questions_than_may_wait_are_told_to_come_back(slow, in_slices):
    with serving(slow, Limits(at_once=1, waiting=1)) as client, ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(ask, client, "latent") for _ in range(4)]
        time.sleep(1)
        slow.is_free.set()
        responses = [each.result() for each in asked]
        assert sorted(response.status_code for response in responses) == [200, 200, 503, 503]
        busy = next(response for response in responses if response.status_code == 503)
        assert "busy" in busy.json()["error"]
        assert busy.headers["Retry-After"] == "5"
        assert ask(client, "count").status_code == 200


def test_requests_that_come_too_slowly_end(forms: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Limits, "header_seconds", 0.3)
    monkeypatch.setattr(Limits, "body_seconds", 0.3)
    with serving(forms / "x.mini") as client:
        place = client.base_url.host, client.base_url.port
        for is_second in (False, True):
            for said in (b"", b"GET /api/info HT")[is_second:]:
                with socket.create_connection(place, 10) as connection:
                    if is_second:
                        connection.sendall(b"GET /api/info HTTP/1.1\r\nHost: localhost\r\n\r\n")
                        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
                    connection.sendall(said)
                    while connection.recv(65536):  # until the service ends the connection
                        pass
        head = b"POST /api/count HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += b"Content-Length: 9\r\n\r\n{"
        with socket.create_connection(place, 10) as connection:
            connection.sendall(head)
            received = b"".join(iter(lambda: connection.recv(65536), b""))
            assert received.startswith(b"HTTP/1.1 408")
            assert b"too slowly" in received
        assert client.get("/api/info").status_code == 200


def hold_open(client: httpx.Client, question: str, kind: str, n_bytes: int) -> socket.socket:
    """A connection over which one byte of a body of so many bytes has come."""
    connection = socket.create_connection((client.base_url.host, client.base_url.port), 10)
    head = f"POST /api/{question} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    connection.sendall(f"{head}Content-Length: {n_bytes}\r\n\r\n{{".encode())
    return connection


@pytest.mark.parametrize(
    ("address", "kind", "n_bytes"),
    [("annotate?labels_key=cell_type", "application/x-hdf5", 900_000), ("count", "application/json", 900)],
)
def test_bodies_of_all_clients_together_are_bounded_until_they_are_answered(
    forms: Path, monkeypatch: pytest.MonkeyPatch, address: str, kind: str, n_bytes: int
):
    monkeypatch.setattr(Limits, "all_bodies_bytes", 1_000)
    with serving(forms / "x.mini", Limits(all_uploads_mb=1)) as client:
        body, said = b" " * (n_bytes // 4), {"Content-Type": kind}
        with hold_open(client, address, kind, n_bytes):
            response = client.post(f"/api/{address}", content=body, headers=said)
            assert "ask again later" in refusal(response, 503)
            assert response.headers["Retry-After"] == "30"
            parts = (body for _ in range(4))  # whose number is not said before
            assert "ask again later" in refusal(client.post(f"/api/{address}", content=parts, headers=said), 503)
        for _ in range(5):  # each gives back what it took
            assert client.post(f"/api/{address}", content=body, headers=said).status_code in (400, 422)


def test_new_counts_that_come_slowly_but_never_stop_end(forms: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Limits, "body_seconds", 0.3)
    monkeypatch.setattr(Limits, "slowest_bytes", 1_000)
    with serving(forms / "x.mini") as client:
        with hold_open(client, "annotate?labels_key=cell_type", "application/x-hdf5", 9_000) as connection:
            connection.setblocking(False)
            received = b""
            for _ in range(50):
                time.sleep(0.05)
                try:
                    received += connection.recv(65536)
                    break
                except BlockingIOError:
                    connection.sendall(b"x")
        assert received.startswith(b"HTTP/1.1 408")


def test_a_full_disk_is_no_fault_of_the_client(forms: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    with serving(forms / "x.mini") as client:
        monkeypatch.setattr("atlasvi.engine.service.received.tempfile.mkstemp", fail)
        send = {"Content-Type": "application/x-hdf5"}
        response = client.post("/api/annotate?labels_key=cell_type", content=b"abc", headers=send)
        assert "can't keep new counts" in refusal(response, 503)


def test_an_answer_whose_client_goes_before_it_is_sent_ends_its_question():
    ended = []

    async def pieces():
        yield b"never asked for"

    async def fail(*_: Any) -> Any:
        raise OSError("the client has gone")

    scope = {"type": "http", "method": "POST", "asgi": {"spec_version": "2.4"}}
    with pytest.raises(ClientDisconnect):
        asyncio.run(JobResponse(pieces(), lambda: ended.append(1), {}, CSV)(scope, fail, fail))
    assert ended == [1]


def test_many_readers_at_a_time_get_their_own_answers(client: httpx.Client):
    whole = pd.DataFrame(ask_table(client, "latent")).set_index("cell")

    def read(k: int) -> None:
        rows = sorted(np.random.default_rng(k).choice(60, 9, replace=False).tolist())
        with pa.ipc.open_stream(ask(client, "latent", ARROW, rows=rows).content) as reader:
            found = reader.read_all().to_pandas().set_index("cell")
        np.testing.assert_array_equal(found, whole.iloc[rows].astype(np.float32))

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(read, range(60)))
