"""Small programs around the Python face that once failed, or passed in a bad way: what each prints is what is right.

They are those of the shared folder, run as they are; its README.md says what each is about.
"""

import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.distributed.rank_processes import run_command

pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def run(faults: Path, tmp_path: Path, monkeypatch, capsys) -> Callable[..., list[str]]:
    """Runs a program by its number, in an empty folder: the lines that it prints, at last its error if it ends in one.

    `change` makes another program of its text.
    """

    def run(number: str, change: Callable[[str], str] = str) -> list[str]:
        program = next((faults / "model").glob(f"{number}_*.py"))
        copy = tmp_path / program.name
        copy.write_text(change(program.read_text()))
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(faults / "model")
        monkeypatch.setattr(subprocess, "run", lambda command, **_: run_command(*command[1:]))
        end = []
        try:
            runpy.run_path(str(copy))
        except Exception as error:
            end = [f"{type(error).__name__}: {error}"]
        sys.modules.pop("small", None)
        return [line for line in capsys.readouterr().out.splitlines() if "Training on" not in line] + end

    return run


def test_columns_that_are_added_after_the_model_are_found(run):
    said = run("01")
    for name in ("own data", "adata passed", "a copy passed (works)"):
        assert f"{name}: (120, 22)" in said
    assert "abundance: (300, 3)" in said
    assert not [line for line in said if "Error" in line]
    assert re.match(r"minified: \(120, \d+\)", said[-1])


def test_cells_are_those_that_are_there_now(run):
    said = run("02")
    assert "reordered: latents are those of the cells: True ; of the old order: False" in said
    assert said[1].endswith("add up to the counts of the cell they are named after: 200 of 200")
    assert "filtered: cells 100 ; latents (100, 4)" in said
    assert "filtered: expression of cells 0 and 1 of the old data goes by the names ['c0_100', 'c0_101']" in said
    assert "filtered: markers: (120, 22)" in said
    assert "filtered, nothing asked before: (100, 4)" in said
    assert "model.adata = other data of 90 cells: latents (90, 4)" in said
    assert "minified, filtered: (50, 4)" in said


def test_a_query_whose_batches_are_of_another_type_is_saved_and_loaded_as_it_was(run):
    said = run("03")
    for kind, known in (("int", "1, 2"), ("bool", "False, True"), ("float", "0.5, 1.5")):
        assert f"{kind}: loaded: [{known}, 'unassigned']" in said
        assert f"{kind}: asked: True" in said


def test_minified_data_that_were_joined_give_their_latents_or_an_error_never_nan(run):
    said = run("05")
    assert said[0].startswith("uns lost: right latents: True ; all cells alike (X is empty): False")
    assert "uns lost, expression: (200, 40)" in said
    assert "uns kept: True" in said
    assert re.match(r"SourceError: .*minified.* 50 cells have no latents \(first: 'c1_0'\)", said[-1])


def test_a_folder_of_the_hub_with_old_names_is_read(run):
    said = run("07")
    assert said[0] == "SCVI.load: (200, 4)"
    assert said[1].startswith("modelbugs-hub/adata.h5ad: minified for scvi-tools")


def test_training_that_was_interrupted_or_failed_names_no_file_that_is_gone(run, monkeypatch):
    from atlasvi.engine.training.training_loop import Trainer

    real, stops = Trainer._end_epoch, iter([False, True])

    def end_epoch(self: Trainer, kl_weight: float) -> None:
        real(self, kl_weight)
        if next(stops, False):  # in place of the program's timer
            os.kill(os.getpid(), signal.SIGINT)

    def without_timer_and_path(text: str) -> str:
        return "".join(line for line in text.splitlines(True) if not re.search("re.search|place|Timer", line))

    monkeypatch.setattr(Trainer, "_end_epoch", end_epoch)
    interrupted, failed = (line for line in run("08", without_timer_and_path) if not line.startswith("epoch"))
    assert re.match(r"TrainingInterrupted .*stopped by SIGINT.*The model keeps the weights.*run_dir=", interrupted)
    assert re.match(r"TrainingError .*not finite.*[Tt]he model is as it was before", failed)
    assert "/" not in interrupted + failed


def test_the_split_of_a_scvi_tools_directory_is_read(run):
    said = run("09")
    assert said[0] == "in model.pt: train 180 validation 20"
    assert re.match(r"loaded: train_indices \[.*", said[1])
    both = re.search(r"ELBO of validation cells: (\S+); .* all cells: (\S+)", "\n".join(said))
    assert both is not None
    assert both[1] == both[2]
    assert re.match(r"no validation cells: QueryError: .*no cell was chosen", said[-1])


MISTAKES = {
    "save('.', overwrite=True)": "None",
    "prepare_query_anndata, gene names repeat": "GeneError: .*more than once",
    "prepare_query_anndata, X is None": r"\(30, 40\)",
    "indices=names": "QueryError: .*by their indices or by a mask",
    "idx1=names": "QueryError: .*by their indices or by a mask",
    "group2=[...]": "QueryError: .*group2 is one group",
    "n_samples=": "SettingError: .*did you mean n_samples_overall",
    "library_size='observed'": "QueryError: .*library_size 'observed'",
    "no cells, ELBO": "QueryError: .*no cell was chosen",
    "no cells, expression": "QueryError: .*no cell was chosen",
    "no cells, data": r"\(0, 4\)",
    "groupby with a category that no cell has": r"\(80, 22\)",
    "early stopping without validation": "SettingError: .*early_stopping watches validation_elbo, and no cell is held",
    "train_size 0.5, validation_size 0": "None",
}


def test_small_mistakes_are_said_in_a_sentence_and_small_wishes_granted(run):
    said = [line for line in run("10") if not line.startswith("epoch")]
    assert len(said) == len(MISTAKES)
    for line, (what, expected) in zip(said, MISTAKES.items()):
        assert re.match(rf"{re.escape(what)}.*?: {expected}", line), line


def test_the_documented_query_of_an_exported_file_answers(faults: Path, tmp_path: Path, monkeypatch):
    program = (faults / "model" / "11_documented_query_command.sh").read_text()
    commands = re.findall(r"\$bin/atlasvi (.*?) [|>]", program)
    assert len(commands) == 7
    monkeypatch.chdir(tmp_path)
    done = [run_command(*command.split()) for command in commands]
    assert [each.returncode for each in done] == [0] * 7, done
    for each in done[-2:]:
        assert "300 cells" in each.stdout
    assert "mini.h5ad --model theirs info" in commands[-2]
