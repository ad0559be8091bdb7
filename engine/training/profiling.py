"""Where the time of a step goes: a trace to view, and a table of the parts of a step."""

from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from atlasvi.engine.terminal import say
from atlasvi.loaders.places.object_path import Place
from atlasvi.loaders.places.staging import write_local_folder

PARTS = ("load wait", "host to device", "encoder", "decoder + loss", "backward", "optimizer")
WARMUP_STEPS, PROFILED_STEPS = 5, 20


class StepProfiler:
    """Profiles some steps of a run: writes a trace to `folder` and prints a table. Without a folder it does nothing.

    The parts are the regions that the code marks with `record_function` under the names in PARTS; the rest of a step is
    idle time or other work. The gradients of decoder and loss are computed together with the loss, so they are not in
    `backward`. On a GPU the host runs ahead of the device, so a second column has the device's time for each part;
    steps then run without the CUDA graph.
    """

    def __init__(self, folder: Place | None) -> None:
        self._folder, self._profile = folder, None
        if folder is not None:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(
                activities=activities,
                schedule=schedule(wait=0, warmup=WARMUP_STEPS, active=PROFILED_STEPS, repeat=1),
                on_trace_ready=self._report,
            )

    def __enter__(self) -> "StepProfiler":
        if self._profile is not None:
            self._profile.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is not None:
            self._profile.__exit__(kind, error, trace)

    def step(self) -> None:
        """Call this after each step."""
        if self._profile is not None:
            self._profile.step()

    def _report(self, profiled: Any) -> None:
        assert self._folder is not None
        lines = list(format_parts(*sum_parts(profiled.key_averages())))
        with write_local_folder(self._folder) as folder:
            profiled.export_chrome_trace(str(folder / "trace.json"))
            (folder / "parts.txt").write_text("\n".join(lines) + "\n")
        for line in [*lines, f"The trace is in {self._folder / 'trace.json'}: open it in ui.perfetto.dev."]:
            say(line, error=True)


def sum_parts(averages: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds of each marked region: on the host; and on a GPU, if there is one, with their sum as "device"."""
    host = {event.key: event.cpu_time_total / 1e3 for event in averages if event.device_type == DeviceType.CPU}
    kernels = [event for event in averages if event.device_type == DeviceType.CUDA and event.key not in host]
    if not kernels:
        return host, {}
    device = {event.key: event.device_time_total / 1e3 for event in averages if event.key in PARTS}
    device["device"] = sum(event.self_device_time_total for event in kernels) / 1e3
    # autograd's thread launches the kernels of the backward pass, outside the region that the host marks
    device["backward"] = device["device"] - sum(device.get(name, 0.0) for name in PARTS if name != "backward")
    return host, device


def format_parts(milliseconds: dict[str, float], device: dict[str, float] | None = None) -> Iterator[str]:
    """A table of the parts of PROFILED_STEPS steps, from the total milliseconds that `sum_parts` returns."""
    total = sum(time for name, time in milliseconds.items() if name.startswith("ProfilerStep"))

    def row(name: str, time: float, on_device: float | None = None) -> str:
        there = f"{on_device / PROFILED_STEPS:>14.2f}" if device and on_device is not None else ""
        return f"{name:<24}{time / PROFILED_STEPS:>10.2f}{time / max(total, 1e-9):>9.1%}{there}"

    yield f"{'part of a step':<24}{'ms':>10}{'share':>9}{'device, ms' if device else '':>14}".rstrip()
    for name in PARTS:
        yield row(name, milliseconds.get(name, 0.0), (device or {}).get(name, 0.0))
    idle = total - sum(milliseconds.get(name, 0.0) for name in PARTS)
    yield row("idle and all else", idle, total - (device or {}).get("device", 0.0))
    yield f"{'step':<24}{total / PROFILED_STEPS:>10.2f}"


__all__ = ["PARTS", "StepProfiler", "format_parts", "record_function", "sum_parts"]
