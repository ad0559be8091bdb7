"""Who is answered: the token, the names of the machine, and pages of other sites."""

from pathlib import Path

import httpx2 as httpx
import pytest

from atlasvi.engine.service.access import AccessError, check_access
from tests.engine.distributed.rank_processes import run_command
from tests.engine.service.running import refusal, serving

TOKEN = "a-token-of-this-test"
ADDRESSES = ["/", "/openapi.json", "/api/info", "/api/genes", "/api/obs/donor", "/tiles/0", "/nothing"]
WRONG: list[dict[str, str]] = [
    {},
    {"Authorization": "Bearer wrong"},
    {"Authorization": TOKEN},
    {"Cookie": "atlasvi_token=x"},
]


def test_without_the_token_nothing_is_answered(forms: Path):
    with serving(forms / "x.mini", token=TOKEN) as client:
        for address in ADDRESSES:
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": TOKEN},
                {"Cookie": "atlasvi_token=x"},
            ):
                assert "token" in refusal(client.get(address, headers=headers), 401)
        assert "token" in refusal(client.post("/api/latent", json={}), 401)
        assert "token" in refusal(client.get(f"/api/info?token={TOKEN}"), 401)
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert client.get("/api/info", headers=right).json()["n_cells"] == 60
        assert client.post("/api/count", json={}, headers=right).json()["columns"]["cells"] == [60]
        assert "securitySchemes" in client.get("/openapi.json", headers=right).json()["components"]


def test_a_browser_gets_a_cookie_for_the_token(forms: Path):
    with serving(forms / "x.mini", token=TOKEN) as client:
        assert client.get("/?token=wrong").status_code == 401
        there = client.get(f"/?token={TOKEN}")
        assert there.status_code == 303
        assert "HttpOnly" in there.headers["set-cookie"]
        assert "SameSite=strict" in there.headers["set-cookie"]
        assert client.get("/api/info").status_code == 200  # the client sends its cookie


def test_only_names_of_this_machine_are_answered_to_without_a_token(client: httpx.Client):
    for host in ("evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "localhost@evil.example", "[::1]x"):
        sentence = refusal(client.get("/api/info", headers={"Host": host}), 421)
        assert "localhost" in sentence
    for host in ("localhost", "LOCALHOST:8765", "127.0.0.1:1", "[::1]:8765"):
        assert client.get("/api/info", headers={"Host": host}).status_code == 200


def test_pages_of_other_sites_are_not_answered(client: httpx.Client):
    own = str(client.base_url).rstrip("/")
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"):
        response = client.get("/api/info", headers={"Origin": origin})
        assert "other sites" in refusal(response, 403)
        assert not [name for name in response.headers if name.startswith("access-control")]
    assert client.get("/api/info", headers={"Origin": own}).status_code == 200
    asked = client.options("/api/latent", headers={"Origin": own, "Access-Control-Request-Method": "POST"})
    assert asked.status_code == 405
    assert not [name for name in asked.headers if name.startswith("access-control")]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "machine.example"])
def test_other_machines_need_a_token(host: str):
    with pytest.raises(AccessError, match=r"needs a token: --token"):
        check_access(host, None)
    check_access(host, TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_this_machine_needs_none(host: str):
    check_access(host, None)


@pytest.mark.parametrize("token", ["", "short", "with space in it", "tökentöken", "new\nline-in-it"])
def test_a_token_that_no_header_can_hold_or_is_guessed_is_refused(token: str):
    with pytest.raises(AccessError, match="too simple"):
        check_access("127.0.0.1", token)


def test_the_command_says_that_a_token_is_needed(forms: Path):
    done = run_command("serve", forms / "x.mini", "--host", "0.0.0.0")
    assert done.returncode == 1
    assert done.stderr.startswith("atlasvi: At 0.0.0.0 other machines can reach the service, so it needs a token")
