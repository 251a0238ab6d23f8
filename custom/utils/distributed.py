"""Training and evaluation in several processes, as ``torchrun`` starts them with the overlay ``multi_gpu.json``.

Every function does nothing special in a single process, so the code that calls them need not ask.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from monai.data import CacheDataset
from monai.data.utils import set_rnd
from monai.utils import get_dist_device
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm import tqdm

__all__ = [
    "CachedShare",
    "JoinedCache",
    "average_gradients",
    "is_main",
    "largest",
    "main_first",
    "mean_of_ranks",
    "rank",
    "same_start",
    "seed_rank",
    "share_of_rank",
    "smallest",
    "synchronized",
    "unsynchronized",
    "world_size",
]

Item = TypeVar("Item")


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return rank() == 0


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block, then the others: what it makes is made once, and they find it there.

    All processes must come here. An error of the main process lets the others in, so that none waits for ever.
    """
    try:
        if world_size() > 1 and not is_main():
            dist.barrier()
        yield
    finally:
        if world_size() > 1 and is_main():
            dist.barrier()


def share_of_rank(items: Sequence[Item], *, even: bool = False) -> list[Item]:
    """Every ``world_size()``-th item, from this process's rank on; all in a single process.

    Args:
        items: the same on every process.
        even: repeat first items where needed, so that every process has equally many, as training in step asks for.
            Otherwise each item belongs to one process: an average over the processes counts none twice.

    Raises:
        ValueError: for fewer items than processes, as a process without work would leave the others waiting.
    """
    items, processes = list(items), world_size()
    if len(items) < processes:
        raise ValueError(
            f"data: expected at least one item for each of the {processes} processes; found {len(items)}. Start no "
            f"more than {len(items)} processes (torchrun --nproc_per_node)."
        )
    if even:
        items += items[: -len(items) % processes]
    return items[rank() :: processes]


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    if world_size() == 1:
        return number
    highest = torch.tensor(number, device=get_dist_device())
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return int(highest)


def smallest(values: torch.Tensor) -> torch.Tensor:
    """The smallest of the processes' ``values``, each element by itself, on the CPU."""
    if world_size() == 1:
        return values
    lowest = values.to(get_dist_device())
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    return lowest.cpu()


def mean_of_ranks(values: Mapping[str, float]) -> dict[str, float]:
    """Each value's mean over the processes, which all have the same keys."""
    if world_size() == 1:
        return dict(values)
    # in single precision, as not every device has doubles
    total = torch.tensor(list(values.values()), dtype=torch.float32, device=get_dist_device())
    dist.all_reduce(total)
    return dict(zip(values, (total / world_size()).tolist(), strict=True))


def synchronized(module: nn.Module, *, find_unused_parameters: bool = False) -> nn.Module:
    """``module`` as ``DistributedDataParallel``: equal weights at the start, averaged gradients after each backward.

    Args:
        module: on one device, which need not be named.
        find_unused_parameters: whether some parameters get no gradient, as for ``DistributedDataParallel``.
    """
    if world_size() == 1:
        return module
    # buffers need no broadcast before each step: the schedule's are constant, and the codebook's statistics are
    # summed over the processes where they are updated
    return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=find_unused_parameters)


def unsynchronized(module: nn.Module) -> AbstractContextManager:
    """Within it, backward passes through what ``synchronized`` gave add to this process's gradients alone."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def same_start(module: nn.Module) -> None:
    """Give every process the main process's weights, for a module outside ``synchronized``."""
    if world_size() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def average_gradients(module: nn.Module) -> None:
    """Replace the gradients by their mean over the processes, for a module outside ``synchronized``."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if world_size() > 1 and gradients:
        joined = parameters_to_vector(gradients)
        dist.all_reduce(joined)
        vector_to_parameters(joined / world_size(), gradients)


def seed_rank(seed: int, epoch: int, dataset: object = None) -> None:
    """Seed torch, NumPy, Python and the transforms of ``dataset`` anew: other crops and noise on every process.

    The state follows from the arguments and the rank alone, so a resumed run draws what it would have drawn.
    """
    entropy = np.random.SeedSequence([seed, epoch, rank()])
    torch_seed, numpy_seed, python_seed, transform_seed = (int(s) for s in entropy.generate_state(4))
    torch.manual_seed(torch_seed)
    np.random.seed(numpy_seed)
    random.seed(python_seed)
    set_rnd(dataset, transform_seed)


class JoinedCache(CacheDataset):
    """``CacheDataset`` that, after a fault, waits for the threads that still read.

    MONAI leaves them running; a program that then ends is aborted (``terminate called without an active exception``).
    """

    def _fill_cache(self, indices: Sequence[int] | None = None) -> list:
        wanted = range(self.cache_num) if indices is None else indices
        with ThreadPoolExecutor(self.num_workers) as threads:
            items = threads.map(self._load_cache_item, wanted)
            return list(tqdm(items, "Loading dataset", len(wanted), disable=not self.progress))


class CachedShare(JoinedCache):
    """``CacheDataset`` of this process's share of ``data``, equally long on every process.

    Args:
        data: the whole data set's.
        args, kwargs: as for ``CacheDataset``.
    """

    def __init__(self, data: Sequence[Mapping], *args: Any, **kwargs: Any) -> None:
        super().__init__(share_of_rank(data, even=True), *args, **{"progress": is_main(), **kwargs})
