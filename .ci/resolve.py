"""Can pip install what constraints.txt names, and what pyproject.toml allows, from PyPI alone? Nothing is downloaded.

The index is PyPI, or the one that UV_DEFAULT_INDEX names; pip's settings and what lies on this machine play no part.
Exits with 1 and the resolver's reason if a combination can't be installed. Where the index can't be reached, nothing is
known: that is said, and the exit status is 0, unless --required is given.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).with_name("uv")
LINUX, LINUX_ARM, MAC = "x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin"
PYTHONS = ("3.11", "3.12", "3.13")
CASES = [
    *((python, LINUX, "constraints.txt") for python in PYTHONS),
    *(("3.13", platform, "constraints.txt") for platform in (LINUX_ARM, MAC)),
    *((python, LINUX, "newest releases") for python in PYTHONS),
]
LOCAL = ("UV_INDEX", "UV_FIND_LINKS")  # indexes and wheels on this machine's disk (.ci/uv), which strangers lack
NO_SOLUTION = 1  # uv's exit status; it is 2 for everything else, above all an index that can't be reached


def resolve(python: str, platform: str, releases: str) -> subprocess.CompletedProcess[str]:
    """Ask uv which releases pip would install on such a machine, with all extras, from wheels alone."""
    command = [UV, "pip", "compile", "--quiet", "--no-config", "--only-binary", ":all:", "--all-extras"]
    command += ["--python-version", python, "--python-platform", platform, "pyproject.toml"]
    command += ["--constraint", releases] if releases == "constraints.txt" else []
    environment = {name: value for name, value in os.environ.items() if name not in LOCAL}
    environment |= {"MACOSX_DEPLOYMENT_TARGET": "14.0"}  # the oldest macOS that torch has wheels for
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def main() -> int:
    """Try all combinations; the exit status."""
    status = 0
    with ThreadPoolExecutor(len(CASES)) as pool:  # they wait for the network
        for case, done in zip(CASES, pool.map(lambda case: resolve(*case), CASES)):
            if done.returncode == 0:
                lines = done.stdout.splitlines()
                found = ", ".join(line for line in lines if line.startswith(("torch==", "triton==", "anndata==")))
            elif done.returncode == NO_SOLUTION:
                found, status = f"can't be installed.\n{done.stderr}", 1
            else:
                found = f"not checked, since the package index did not answer.\n{done.stderr}"
                status = max(status, int("--required" in sys.argv))
            print(f"Python {case[0]}, {case[1]}, {case[2]}: {found}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
