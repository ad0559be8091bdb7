"""The commands that train: `train`, `launch` (as several processes), and `plan` (what a run would take)."""

import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer

from atlasvi.engine.cli.arguments import (
    BatchSize,
    Device,
    Epochs,
    Metrics,
    Note,
    RankTimeout,
    Resume,
    RunSeed,
    RunSettings,
    SplitColumn,
    check_finite,
    print_lines,
    split_repeated,
)
from atlasvi.engine.cli.card_commands import write_card
from atlasvi.engine.cli.data_options import DataOptions
from atlasvi.engine.cli.dry_runs import DryRun, describe_run_plan
from atlasvi.engine.cli.job_file import JobFile
from atlasvi.engine.cli.option_groups import spread
from atlasvi.loaders.sources.data_spec import DataSpec

SEVERAL_NAMES = "NAME,NAME (repeatable; in double quotes if a name has a comma)"


@spread
def train(
    context: typer.Context,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A cell store, or any source.")],
    out: Annotated[str, typer.Option(metavar="PATH", help="The run directory to make, on disk or in a bucket.")],
    batch_key: Annotated[str | None, typer.Option(help="obs column of the batches to correct for.")] = None,
    labels_key: Annotated[str | None, typer.Option(help="obs column of cell labels, kept with the model.")] = None,
    size_factor_key: Annotated[str | None, typer.Option(help="obs column that replaces the library size.")] = None,
    categorical_covariate_keys: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help=f"obs columns of categories: {SEVERAL_NAMES}."),
    ] = None,
    continuous_covariate_keys: Annotated[
        list[str] | None, typer.Option(metavar="NAMES", help=f"obs columns of numbers: {SEVERAL_NAMES}.")
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    seed: RunSeed = None,
    split_column: SplitColumn = None,
    config: JobFile = None,
    settings: RunSettings = None,
    start: Annotated[str | None, typer.Option(metavar="RUN", help="Train this run further.")] = None,
    resume: Resume = False,
    profile: Annotated[bool, typer.Option("--profile", help="Trace some steps and print where the time goes.")] = False,
    metrics: Metrics = None,
    note: Note = None,
    dry_run: DryRun = False,
    with_card: Annotated[bool, typer.Option("--card", help="Then compute the model's card, in OUT/card.")] = False,
    rank_timeout: RankTimeout = 300.0,
    *,
    opening: DataOptions,
) -> None:
    """Train scVI on a cell store or on any source."""
    from atlasvi.engine.training.settings import parse_settings
    from atlasvi.engine.training.train import train as run

    chosen = {**context.meta.get("settings", {}), **parse_settings(settings or [])}
    spec = opening.to_spec(data)
    keys: dict[str, Any] = {
        "batch_key": batch_key,
        "labels_key": labels_key,
        "size_factor_key": size_factor_key,
        "categorical_covariate_keys": split_repeated(categorical_covariate_keys),
        "continuous_covariate_keys": split_repeated(continuous_covariate_keys),
    }
    others: dict[str, Any] = {
        "start": start,
        "resume": resume,
        "metrics": split_repeated(metrics),
        "note": note,
        "device": device,
    }
    chosen |= {name: n for name, n in (("epochs", epochs), ("batch_size", batch_size)) if n is not None}
    if dry_run:
        show_estimate(spec, out, keys, chosen, {"seed": seed, "split_column": split_column}, **others)
        return
    run(
        spec,
        out,
        **keys,
        seed=seed,
        split_column=split_column,
        settings=chosen,
        profile=profile,
        rank_timeout_s=rank_timeout,
        **others,
    )
    if with_card:
        write_card(out, spec, f"{out.rstrip('/')}/card", device=device)


def launch(
    context: typer.Context,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="train, map, minify, card or plan ...")],
    nproc: Annotated[
        str, typer.Option(metavar="N|auto", help="Processes on this machine; auto: one per GPU, without GPUs one.")
    ],
    max_restarts: Annotated[int, typer.Option(help="How often to restart all when one is lost.", min=0)] = 0,
    nnodes: Annotated[int, typer.Option(help="Number of machines; run the command on each of them.", min=1)] = 1,
    rendezvous: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address of one of several machines.")
    ] = None,
    config: JobFile = None,
) -> None:
    """Run a command as several processes. On SIGTERM all write a checkpoint, and the status is 75."""
    from atlasvi.engine.distributed.launch import launch as run

    in_file = (context.default_map or {}).get("command")
    if in_file and command[0].startswith("-"):  # options for the command of a job file: launch --config FILE --resume
        command = [*in_file, *command]
    _check_command(context, command)
    if nproc != "auto" and not (nproc.isdecimal() and int(nproc)):
        raise typer.BadParameter(f"{nproc!r} is neither auto nor a number from 1 up.", param_hint="'--nproc'")
    sys.exit(
        run(
            command,
            None if nproc == "auto" else int(nproc),
            max_restarts=max_restarts,
            n_nodes=nnodes,
            rendezvous=rendezvous,
        )
    )


def plan(
    context: typer.Context,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A cell store, or any source.")],
    gpus: Annotated[int, typer.Option(help="Number of devices, over all machines.", min=1)],
    network: Annotated[
        float | None,
        typer.Option(metavar="GBPS", help="Network speed in Gbit/s.", min=0.001, callback=check_finite),
    ] = None,
    batch_key: Annotated[str | None, typer.Option(help="obs column of the batches to correct for.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Cells per minibatch, over all devices.", min=1)] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="The device to measure.")] = "auto",
    settings: RunSettings = None,
    seconds: Annotated[
        float, typer.Option(help="Approximate duration of the measurement.", min=1, callback=check_finite)
    ] = 20.0,
    config: JobFile = None,
) -> None:
    """Measure reading and computing on this machine, and estimate an epoch on many devices."""
    from atlasvi.engine.distributed.ranks import join_ranks
    from atlasvi.engine.training.epoch_estimate import describe_plan, plan_epoch_time
    from atlasvi.engine.training.settings import parse_settings

    in_file = context.meta.get("settings", {})
    plan_settings = {
        **in_file,
        **parse_settings(settings or []),
        **({} if batch_size is None else {"batch_size": batch_size}),
    }
    with join_ranks() as ranks:
        found = plan_epoch_time(
            data, gpus, network, batch_key=batch_key, device=device, settings=plan_settings, seconds=seconds
        )
        if ranks.is_first:
            print_lines(describe_plan(found))


def _check_command(context: typer.Context, command: list[str]) -> None:
    """Report a mistake in the command of `launch` once, here, and not in each process at each start."""
    group = context.find_root()
    if command[0] not in ("train", "map", "minify", "card", "plan"):
        context.fail(f"train, map, minify, card and plan can be launched, {command[0]!r} can't.")
    subcommand = group.command.get_command(group, command[0])  # type: ignore[attr-defined]
    subcommand.make_context(command[0], command[1:], parent=group)


def show_estimate(spec: DataSpec, out: str, keys: Mapping[str, Any], *arguments: Any, **others: Any) -> None:
    """Say what `train` would do with these arguments."""
    from atlasvi.engine.model.covariates import SetupKeys
    from atlasvi.engine.training.epoch_estimate import estimate_training
    from atlasvi.engine.training.settings import resolve_settings

    settings, given = arguments
    found = estimate_training(
        spec, out, SetupKeys.from_arguments(keys), resolve_settings(None, settings), given, **others
    )
    print_lines(describe_run_plan(out, found))
