"""Tests of custom.inference.evaluator: files one by one, read ahead, written behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from monai.data import DataLoader, MetaTensor
from torch import nn

from custom.data.tolerant import TolerantDataset
from custom.inference.evaluator import FileEvaluator, ReadAhead
from custom.utils.files import OutputError


class Counting:
    """Gives 0 to n - 1 and counts what was taken."""

    def __init__(self, number: int) -> None:
        self.number, self.taken = number, 0

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[int]:
        for i in range(self.number):
            self.taken += 1
            yield i


def test_no_more_than_one_is_read_ahead() -> None:
    source, seen = Counting(5), []
    with ThreadPoolExecutor(1) as thread:
        ahead = ReadAhead(source, thread)
        assert len(ahead) == 5
        for item in ahead:
            thread.submit(lambda: None).result()
            assert source.taken <= item + 2
            seen.append(item)
    assert seen == list(range(5))


def evaluator(
    numbers: list[int], write: Callable[[dict], dict], infer: Callable[..., torch.Tensor] | None = None
) -> FileEvaluator:
    def read(item: dict) -> dict:
        if item["image"] < 0:
            raise ValueError(f"{item['image']}: unreadable")
        meta = {"filename_or_obj": f"file{item['image']}"}
        return {"image": MetaTensor(torch.full((1, 2, 2, 2), float(item["image"])), meta=meta)}

    return FileEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(TolerantDataset([{"image": n} for n in numbers], read), batch_size=1),
        network=nn.Identity(),
        inferer=infer or (lambda inputs, network: network(inputs)),
        postprocessing=write,
    )


def test_files_are_written_in_order_by_another_thread() -> None:
    written, threads = [], set()

    def write(data: dict) -> dict:
        written.append(data["pred"].mean().item())
        threads.add(threading.current_thread())
        return data

    evaluator([3, 1, 2], write).run()
    assert written == [3, 1, 2]
    assert threading.main_thread() not in threads


def test_one_result_at_most_waits_to_be_written() -> None:
    """While a file is slow to write, the network computes one more, not all."""
    release, computed = threading.Event(), []

    def infer(inputs: torch.Tensor, network: nn.Module) -> torch.Tensor:
        computed.append(inputs.mean().item())
        if len(computed) == 2:
            release.set()
        return inputs

    def write(data: dict) -> dict:
        assert release.wait(30)
        assert len(computed) <= written[0] + 2
        written[0] += 1
        return data

    written = [0]
    evaluator([0, 1, 2, 3], write, infer).run()
    assert written == [4]


def test_faults_of_reading_computing_and_writing_cost_their_own_file() -> None:
    written = []

    def infer(inputs: torch.Tensor, network: nn.Module) -> torch.Tensor:
        if inputs.mean() == 2:
            raise RuntimeError("no memory")
        return inputs

    def write(data: dict) -> dict:
        if data["pred"].mean() == 3:
            raise OSError("disk full")
        written.append(data["pred"].mean().item())
        return data

    with pytest.raises(ValueError, match="3 of 5 files could not be translated, the others were") as caught:
        evaluator([1, -1, 2, 3, 4], write, infer).run()
    assert written == [1, 4]
    for text in ("-1: unreadable", "file2: RuntimeError: no memory", "file3: OSError: disk full"):
        assert text in str(caught.value)


def test_an_interruption_leaves_what_is_written_and_does_not_hang() -> None:
    written = []

    def infer(inputs: torch.Tensor, network: nn.Module) -> torch.Tensor:
        if inputs.mean() == 2:
            raise KeyboardInterrupt
        return inputs

    with pytest.raises(KeyboardInterrupt):
        evaluator([0, 1, 2, 3], lambda data: written.append(data["pred"].mean().item()) or data, infer).run()
    assert written == [0, 1]


def test_nothing_to_do() -> None:
    evaluator([], lambda data: data).run()


def test_a_place_that_cannot_be_written_to_ends_the_run() -> None:
    """Whatever comes next could not be written either, and takes minutes to compute."""
    computed = []

    def write(item: dict) -> dict:
        raise OutputError("out/a.nii.gz: expected a place that can be written to; found No space left on device.")

    def infer(inputs: torch.Tensor, network: nn.Module) -> torch.Tensor:
        computed.append(1)
        return network(inputs)

    with pytest.raises(OutputError, match="No space left on device"):
        evaluator([1, 2, 3, 4], write, infer).run()
    assert len(computed) < 4
