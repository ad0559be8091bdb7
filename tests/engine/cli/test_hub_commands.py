from pathlib import Path

import pytest
from typer.testing import CliRunner

from atlasvi.engine.cli.commands import app
from atlasvi.engine.hub.hub_files import HubError
from tests.engine.hub.hub_folders import make_hub_folder


def test_a_model_is_pushed_and_pulled_and_what_was_sent_is_said(tmp_path: Path):
    hub = make_hub_folder(tmp_path)
    sent = CliRunner().invoke(app, ["push", str(hub), str(tmp_path / "there")])
    assert sent.exit_code == 0, sent.output
    assert "6 of 6 files sent" in sent.output
    again = CliRunner().invoke(app, ["push", str(hub), str(tmp_path / "there")])
    assert "up to date, 6 files" in again.output
    fetched = CliRunner().invoke(app, ["pull", str(tmp_path / "there"), str(tmp_path / "here")])
    assert "6 of 6 files fetched" in fetched.output
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "here")])
    assert "card of SCVI of atlasvi" in shown.output


def test_the_token_comes_from_a_variable_and_never_from_the_command_line(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("MY_TOKEN", raising=False)
    done = CliRunner().invoke(app, ["pull", "hf://lab/model", str(tmp_path / "x"), "--token-from-env", "MY_TOKEN"])
    assert isinstance(done.exception, HubError)
    assert "the environment variable MY_TOKEN is not set" in str(done.exception)


@pytest.mark.parametrize("command", ["push", "pull"])
def test_the_help_says_what_the_places_are(command: str):
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert "hf://OWNER/NAME" in shown.output
