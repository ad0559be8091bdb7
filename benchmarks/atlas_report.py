"""What benchmarks/atlas.py makes of its figures: the table, the forecast, and whether memory grew."""

import itertools

ALLOWED_RATIO = 1.10
LEAST_JUDGED = 1_000_000  # cells; with fewer, a step's buffers are not full
HOLD = "hold three covariates"
COVARIATES = 3

Figures = dict[str, dict[str, dict]]
"""Figures of each step, by the number of cells as text and the name of the step."""


def find_growth(figures: Figures, stated: dict[str, float]) -> list[str]:
    """A sentence for each step of the most cells whose peak memory is more than 1.1 times that at a tenth of the cells.

    stated  bytes per cell of each step that are allowed on top
    """
    most = max(map(int, figures))
    few = str(most // 10)
    if most // 10 < LEAST_JUDGED or few not in figures:
        return []
    grown = []
    for name, found in figures[str(most)].items():
        if name not in figures[few]:
            continue
        before, now = figures[few][name]["peak_mb"], found["peak_mb"]
        allowed = ALLOWED_RATIO * before + stated[name] * (most - int(few)) / 1e6
        if now > allowed:
            grown.append(
                f"{name}: {now:,.0f} MB with {most:,} cells; with {before:,.0f} MB for a tenth of them, "
                f"{allowed:,.0f} are allowed ({stated[name]:g} bytes per cell and 10%)."
            )
    held = bytes_per_covariate(figures, few, str(most))
    if held is not None and held > 4:
        grown.append(f"{HOLD}: {held:.2f} bytes per cell and covariate; 4 are allowed.")
    return grown


def bytes_per_covariate(figures: Figures, few: str, many: str) -> float | None:
    """Bytes that a process holds more for each further cell and covariate; None if it was not measured."""
    found = [figures.get(cells, {}).get(HOLD, {}).get("found") for cells in (few, many)]
    if None in found:
        return None
    return (found[1]["peak_bytes"] - found[0]["peak_bytes"]) / (int(many) - int(few)) / COVARIATES


def forecast(
    figures: Figures, steps: list[str], sizes: list[int], cells: int, step: str
) -> tuple[float | None, float | None]:
    """Seconds of this step, and of all steps from this one on; None where no smaller atlas has been through a step.

    A step takes a constant time, which the two largest known atlases give, and a time for each cell.
    """

    def reckon(n: int, name: str) -> float | None:
        known = sorted((int(size), found[name]["seconds"]) for size, found in figures.items() if name in found)
        smaller = [(size, seconds) for size, seconds in known if size < n]
        if not smaller:
            return None
        size, seconds = smaller[-1]
        if len(smaller) == 1:
            return seconds * n / size
        slope = max(seconds - smaller[-2][1], 0) / (size - smaller[-2][0])
        return seconds + slope * (n - size)

    left: list[float | None] = [
        reckon(n, name) for n in sizes if n >= cells for name in (steps[steps.index(step) :] if n == cells else steps)
    ]
    known = [seconds for seconds in left if seconds is not None]
    return reckon(cells, step), sum(known) if len(known) == len(left) else None


def name_limit(found: dict, cores: int) -> str:
    """What limits a step, from the cores that it kept busy."""
    busy = found["cores_busy"]
    if busy > 0.75 * cores:
        return "all cores"
    if busy > 0.75:
        return "one core"
    return "disk, or waiting"


def format_rows(report: dict) -> list[list[str]]:
    """The cells of the table, a row for each number of cells and step."""
    cores, rows = int(report["machine"].split(", ")[-1].split()[0]), []
    for cells, steps in report["figures"].items():
        for name, found in steps.items():
            rows.append(
                [
                    f"{int(cells):,}",
                    name,
                    f"{found['seconds']:,.1f}",
                    f"{int(cells) / found['seconds']:,.0f}",
                    f"{found['peak_mb']:,.0f}",
                    f"{found['all_mb']:,.0f}",
                    f"{found['made_gb']:,.2f}",
                    f"{found['disk_gb']:,.2f}",
                    f"{found['cores_busy']:.1f}",
                    name_limit(found, cores),
                ]
            )
    return rows


def print_report(report: dict) -> None:
    """Print the tables, in Markdown."""
    header = ["cells", "step", "s", "cells/s", "peak MB", "all MB", "made GB", "disk GB", "cores busy", "limited by"]
    print(f"Simulated atlas x {report['genes']:,} genes, minibatches of {report['batch_size']:,}, {report['device']}\n")
    print(f"| {' | '.join(header)} |\n| ---: | --- |{' ---: |' * 7} --- |")
    for row in format_rows(report):
        print(f"| {' | '.join(row)} |")
    print()
    for cells, steps in report["figures"].items():
        if "right types" in steps:
            found, seconds = steps["right types"]["found"], sum(step["seconds"] for step in steps.values())
            print(
                f"- {int(cells):,} cells: {seconds:,.0f} s in all; held-out ELBO {found['elbo']:.1f}, right type of 15 "
                f"neighbours {found['right']:.3f} ({found['asked']:,} asked of {found['reference']:,})."
            )
    sizes = sorted(report["figures"], key=int)
    for few, many in itertools.pairwise(sizes):
        held = bytes_per_covariate(report["figures"], few, many)
        if held is not None:
            print(f"- {int(few):,} to {int(many):,} cells, three covariates: {held:.2f} bytes per cell and covariate.")
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    settings = ", ".join(report["settings"]) or "the defaults"
    print(f"\n{report['machine']}; {versions}; {report['date']}. Settings: {settings}.")
