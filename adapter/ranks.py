"""The processes that train together: one by default, several under ``torchrun``.

A step's batch is one list of videos that all processes know; rank r takes every ``world``-th of them from the r-th on.
Gradients are summed, each video weighted by its share of the whole batch, so that the result does not depend on how
many processes share it. A rank without a video adds nothing and still takes part: nobody waits for ever.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adapter.config import AdapterError

Json = TypeVar("Json")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together, and the device it computes on."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and speaks to the user."""
        return self.rank == 0

    def part(self, batch: Sequence[int]) -> Sequence[int]:
        """This rank's videos of a batch: every video belongs to exactly one rank."""
        return batch[self.rank :: self.world]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, on the tensor's own device; the same bits on every rank."""
        if self.world == 1:
            return tensor
        total = tensor.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def stacked(self, tensor: Tensor) -> Tensor:
        """One row a rank: a tensor of equal shape and dtype from each."""
        if self.world == 1:
            return tensor.unsqueeze(0)
        rows = [torch.empty_like(tensor, device=self.device) for _ in range(self.world)]
        dist.all_gather(rows, tensor.to(self.device))
        return torch.stack(rows).to(tensor.device)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the sum of all ranks' gradients in place of each rank's own.

        A parameter that no rank has a gradient for keeps none, as in a single process.
        """
        if self.world == 1:
            return
        learned = [p for p in parameters if p.requires_grad]
        has = torch.tensor([float(p.grad is not None) for p in learned], device=self.device)
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in learned]
        total = self.sum(torch.cat([has, *(gradient.flatten() for gradient in own)]))
        parts = total[len(learned) :].split([p.numel() for p in learned])
        for parameter, held, part in zip(learned, total[: len(learned)].tolist(), parts, strict=True):
            parameter.grad = part.view_as(parameter) if held else None

    def wait(self) -> None:
        """Until every rank is here: what the first rank wrote before can be read after."""
        if self.world > 1:
            dist.barrier()

    def first(self, work: Callable[[], Json]) -> Json:
        """Let rank 0 do something; its result (JSON types) or its ``AdapterError`` is everyone's."""
        if self.world == 1:
            return work()
        told: list[object] = [None, None]
        if self.leads:
            try:
                told = [work(), None]
            except AdapterError as error:
                told = [None, str(error)]
        result, problem = json.loads(self._told(json.dumps(told)))
        if problem is not None:
            raise AdapterError(problem)
        return result

    def _told(self, text: str) -> str:
        # Bytes rather than objects: torch would pickle those.
        size = torch.tensor([len(text.encode()) if self.leads else 0], device=self.device)
        dist.broadcast(size, 0)
        content = list(text.encode()) if self.leads else [0] * int(size)
        letters = torch.tensor(content, dtype=torch.uint8, device=self.device)
        dist.broadcast(letters, 0)
        return bytes(letters.tolist()).decode()


def leads() -> bool:
    """Whether this process is the one that speaks to the user; needs no process group."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, or stay alone; leaves them at the end.

    ``torchrun`` tells through ``RANK``, ``LOCAL_RANK``, ``WORLD_SIZE`` and ``MASTER_ADDR``. Each process takes the GPU
    of its local rank where the device is CUDA without a number (NCCL), else the CPU (gloo). A process group that the
    caller made is used and left open.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 and not dist.is_initialized():
        yield Ranks(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(device, dist.get_rank(), dist.get_world_size())
    finally:
        if ours:
            dist.destroy_process_group()
