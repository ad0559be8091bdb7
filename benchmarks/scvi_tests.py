"""Does our SCVI pass scvi-tools' own tests of SCVI, and where it does not, why?

    python benchmarks/scvi_tests.py --peers VENV CHECKOUT [--json FILE]
    python benchmarks/scvi_tests.py --quick

CHECKOUT is a clone of scvi-tools. Its tests/model/test_scvi.py is run in a temporary copy in which SCVI is imported
from atlasvi; VENV has scvi-tools, pytest and what atlasvi needs. Prints each test that fails with the line that failed
and the reason, from the table `REASONS` here, and exits with 1 if one fails for a reason that is not in it: that is a
fault of ours until it is looked at. It says nothing about what the rest of a test would do after the line that failed.
`--quick` needs neither: it runs three small tests written here, one that passes, one of a known and one of an unknown
reason, through the same steps, and exits with 1 if they are not told apart.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = Path("tests/model/test_scvi.py")
THEIRS, OURS = "from scvi.model import SCVI\n", "from atlasvi.engine import SCVI\n"

# of the test's name and of the lines that failed; the reason
REASONS: tuple[tuple[str, str, str], ...] = (
    (
        "",
        "anndata_manager|adata_manager|_validate_anndata|_get_user_attributes|_get_loaded_data",
        "internals: scvi-tools' AnnDataManager; our set-up is in adata.uns and `registry_`",
    ),
    (
        "",
        r"'(SCVI|VAE)' object has no attribute '(inference|generative|[zl]_encoder|\w*embedding\w*)'",
        "internals: the parts of scvi-tools' module; ours has others, of the same numbers",
    ),
    ("", r"assert torch.Size\(\[\d+\]\) == \(1, \d+\)", "internals: the shape of a buffer of scvi-tools' module"),
    ("", "convert_legacy_save", "models of scvi-tools before 0.15: scvi-tools converts them"),
    ("", r"KeyError: '(elbo_train|train_loss)_(epoch|step)'", "Lightning's logging by steps: we log epochs"),
    ("", "assert 'lr-Adam' in", "Lightning's callbacks have no effect: a warning says so"),
    ("test_scvi_n_obs_error", "DID NOT RAISE", "a last minibatch of one cell is an error there, and works here"),
    (
        "test_saving_and_loading",
        "DID NOT RAISE",
        "genes are found by name: data with more genes than the model has is loaded",
    ),
    (
        r"test_scvi(_with_external_indices)?\[",
        "DID NOT RAISE",
        "data needs no registration to be looked at, and labels that a model does not use may be others",
    ),
)


def prepare(checkout: Path, scratch: Path) -> None:
    """Copy the tests of a checkout, with our SCVI imported in place of theirs. Exits if they are not there."""
    if not (checkout / TESTS).is_file():
        sys.exit(f"{checkout} holds no {TESTS}: give a clone of scvi-tools.")
    shutil.copytree(checkout / "tests", scratch / "tests")
    for name in ("conftest.py", "pyproject.toml"):
        if (checkout / name).is_file():
            shutil.copy(checkout / name, scratch / name)
    text = (scratch / TESTS).read_text()
    if THEIRS not in text:
        sys.exit(f"{checkout / TESTS} has no line {THEIRS.strip()!r}: it is of another version.")
    (scratch / TESTS).write_text(text.replace(THEIRS, OURS))


def run(python: Path, scratch: Path) -> Path:
    """Run the tests with an interpreter, atlasvi on its path; returns pytest's report in XML."""
    packages = scratch / "packages" / "atlasvi"
    packages.mkdir(parents=True)
    for part in ("loaders", "kernels", "engine"):
        (packages / part).symlink_to(ROOT / part)
    report = scratch / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", "--tb=short", "-W", "ignore", f"--junitxml={report}"]
    environment = {**os.environ, "PYTHONPATH": f"{packages.parent}{os.pathsep}{scratch}", "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [str(python), "-m", "pytest", *options, str(TESTS)],
        cwd=scratch,
        env=environment,
        capture_output=True,
        text=True,
    )
    if not report.is_file():
        sys.exit(f"pytest wrote no report:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return report


def explain(name: str, text: str) -> str | None:
    """The known reason for which a test fails, from its name and what pytest says of it; None: there is none."""
    errors = "\n".join(line for line in text.splitlines() if line.startswith("E "))
    failed = errors + "\n" + text[text.rfind(f"{TESTS}:") :]
    known = (reason for test, error, reason in REASONS if re.match(test, name) and re.search(error, failed))
    return next(known, None)


def read_report(report: Path) -> tuple[dict[str, int], list[dict[str, str | None]]]:
    """How many tests passed, failed and were skipped; and each that failed: its name, line, error and reason."""
    counts, failed = {"passed": 0, "failed": 0, "skipped": 0}, []
    for case in ElementTree.parse(report).iter("testcase"):
        problem = next((part for part in case if part.tag in ("failure", "error")), None)
        if problem is None:
            counts["skipped" if case.find("skipped") is not None else "passed"] += 1
            continue
        counts["failed"] += 1
        text, name = problem.text or "", case.get("name", "")
        lines = [line for line in text.splitlines() if line.startswith(f"{TESTS}:")]
        error = next((line[1:].strip() for line in text.splitlines() if line.startswith("E ")), "")
        where = re.match(r".*?:(\d+)", lines[-1]) if lines else None
        failed.append({"test": name, "line": where and where[1], "error": error, "reason": explain(name, text)})
    return counts, failed


def describe(counts: dict[str, int], failed: list[dict[str, str | None]]) -> str:
    """The counts, then the tests that fail, by reason; those without a known one last."""
    lines = [", ".join(f"{n} {name}" for name, n in counts.items())]
    reasons = sorted({each["reason"] for each in failed}, key=lambda reason: (reason is None, reason or ""))
    for reason in reasons:
        lines.append(f"\n{reason or 'NO KNOWN REASON: look at these'}")
        lines += [
            f"  {each['test']} (line {each['line']}): {str(each['error'])[:160]}"
            for each in failed
            if each["reason"] == reason
        ]
    return "\n".join(lines)


QUICK = f"""
{THEIRS}
import anndata, numpy as np


def make():
    adata = anndata.AnnData(np.random.default_rng(0).poisson(2.0, (60, 8)).astype(np.float32))
    SCVI.setup_anndata(adata)
    return SCVI(adata, n_hidden=4, n_latent=2)


def test_that_passes():
    model = make()
    model.train(1, train_size=0.5)
    assert model.get_latent_representation().shape == (60, 2)
    assert model.module.__class__.__module__.startswith("atlasvi.")


def test_of_internals():
    make().module.z_encoder


def test_of_an_unknown_reason():
    assert make().summary_stats.n_vars == 9
"""


def check_quickly(scratch: Path) -> int:
    """The same steps over tests of our own in this environment; 0 if they are told apart."""
    checkout = scratch / "checkout"
    (checkout / TESTS).parent.mkdir(parents=True)
    (checkout / TESTS).write_text(QUICK)
    work = scratch / "work"
    prepare(checkout, work)
    counts, failed = read_report(run(Path(sys.executable), work))
    print(describe(counts, failed))
    known = {str(each["test"]): each["reason"] is not None for each in failed}
    return int(counts["passed"] != 1 or known != {"test_of_internals": True, "test_of_an_unknown_reason": False})


def main() -> int:
    """Run, print the list, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="the virtual environment that the tests run in")
    parser.add_argument("checkout", type=Path, nargs="?", help="a clone of scvi-tools")
    parser.add_argument("--quick", action="store_true", help="check the steps alone, without scvi-tools")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scvi-tests-") as scratch:
        if options.quick:
            return check_quickly(Path(scratch))
        if options.peers is None or options.checkout is None:
            parser.error("give --peers VENV and CHECKOUT, or --quick")
        prepare(options.checkout, Path(scratch) / "work")
        counts, failed = read_report(run(options.peers / "bin" / "python", Path(scratch) / "work"))
    print(describe(counts, failed))
    if options.json:
        options.json.write_text(json.dumps({"counts": counts, "failed": failed}, indent=2) + "\n")
    return int(any(each["reason"] is None for each in failed))


if __name__ == "__main__":
    sys.exit(main())
