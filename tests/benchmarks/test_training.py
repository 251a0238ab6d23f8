"""Tests of benchmarks.training and benchmarks.launch."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import launch
from benchmarks.training import seconds_per_epoch


def test_the_first_epoch_does_not_count(tmp_path: Path) -> None:
    rows = ["epoch,seconds,name,value", "1,30.0,diffusion,1", "1,30.0,data_wait,0.1", "2,33.0,diffusion,1"]
    (tmp_path / "losses.csv").write_text("\n".join([*rows, "3,35.0,diffusion,1", "3,36.0,validation_brain_psnr,9"]))
    assert seconds_per_epoch(tmp_path / "losses.csv") == 2.5


@pytest.mark.parametrize(("processes", "threads"), [(1, None), (2, "3")])
def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch, processes: int, threads: str | None) -> None:
    seen = {}

    def run(command: list[str], env: dict[str, str], **kwargs: object) -> object:
        seen.update(command=command, threads=env.get("OMP_NUM_THREADS"))
        return type("Result", (), {"returncode": 0})

    monkeypatch.setattr(launch.os, "cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch.subprocess, "run", run)
    assert launch.run_bundle("training", "train", {"max_epochs": "1"}, processes=processes) >= 0
    assert seen["threads"] == threads
    assert ("torch.distributed.run" in seen["command"]) is (processes > 1)
    assert ("multi_gpu.json" in seen["command"][seen["command"].index("--config_file") + 1]) is (processes > 1)
    assert seen["command"][-2:] == ["--max_epochs", "1"]


def test_a_failure_says_what_the_command_said(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = type("Result", (), {"returncode": 1, "stderr": "no such file"})
    monkeypatch.setattr(launch.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(RuntimeError, match="no such file"):
        launch.run_bundle("training", "train", {})
