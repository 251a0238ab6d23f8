"""The bundle's commands as a user types them, in one process or in several that share the cores evenly."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from custom.utils.bundle import config_folder

__all__ = ["run_bundle"]


def run_bundle(run_id: str, config: str, arguments: dict[str, str], *, processes: int = 1) -> float:
    """Seconds that ``python -m monai.bundle run`` takes, under torchrun with ``multi_gpu.json`` for several processes.

    Args:
        run_id: such as ``"inference"``.
        config: name of the config, without its ending.
        arguments: values of the config.
        processes: how many.

    Raises:
        RuntimeError: with what the command said, if it failed.
    """
    configs = [str(config_folder() / f"{config}.json")]
    start = [sys.executable, "-m"]
    environment = dict(os.environ)
    if processes > 1:
        configs.append(str(config_folder() / "multi_gpu.json"))
        start = [*start, "torch.distributed.run", f"--nproc_per_node={processes}", "-m"]
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
    command = [*start, "monai.bundle", "run", run_id, "--config_file", str(configs)]
    command += [part for name, value in arguments.items() for part in (f"--{name}", value)]
    started = time.perf_counter()
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
    return time.perf_counter() - started
