"""The processes that train or score together: one by default, several under ``torchrun``.

A step's batch is one list of videos that all processes know; rank r takes every ``world``-th of them from the r-th on.
Gradients are summed, each video weighted by its share of the whole batch, so that the result does not depend on how
many processes share it. A rank without a video adds nothing and still takes part: nobody waits for ever.

What is scored is cut into passes of fixed content, and every pass belongs to one rank: a number that a matrix product
gives can depend, in its last bits, on how many rows are multiplied at once, so their number is nobody's choice.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float32
from torch import Tensor, nn

from adapter.config import AdapterError, reason

Json = TypeVar("Json")

PASS = 32  # videos that are scored together, whatever the number of ranks


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
        with _answered():
            dist.all_reduce(total)
        return total.to(tensor.device)

    def stacked(self, tensor: Tensor) -> Tensor:
        """One row a rank: a tensor of equal shape and dtype from each."""
        if self.world == 1:
            return tensor.unsqueeze(0)
        rows = [torch.empty_like(tensor, device=self.device) for _ in range(self.world)]
        with _answered():
            dist.all_gather(rows, tensor.to(self.device))
        return torch.stack(rows).to(tensor.device)

    def rows(
        self, order: Sequence[int], shape: Sequence[int], work: Callable[[Sequence[int]], Tensor], seed: int
    ) -> Float32[Tensor, "items ..."]:
        """One row of ``shape`` an item, on the CPU: the same bits on every rank, for any number of ranks.

        ``order`` holds each of 0 .. n - 1 once and is cut into passes of ``PASS`` items; ``work`` makes the rows of a
        pass, with torch's generator seeded by ``seed`` and the pass. More ranks than passes leave some idle.
        """
        # A sum with -0.0 changes no bit, a sum with 0.0 would change -0.0.
        found = torch.full((len(order), *shape), -0.0)
        times = torch.zeros(len(order))
        gpus = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(gpus):
            for start in self.part(range(0, len(order), PASS)):
                torch.manual_seed(seed + start)
                part = order[start : start + PASS]
                found[part] = work(part).float().cpu()
                times[part] += 1
        found, times = self.sum(found), self.sum(times)
        assert bool((times == 1).all()), "every item has its row from exactly one rank"
        return found

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
            with _answered():
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
        with _answered():
            size = torch.tensor([len(text.encode()) if self.leads else 0], device=self.device)
            dist.broadcast(size, 0)
            content = list(text.encode()) if self.leads else [0] * int(size)
            letters = torch.tensor(content, dtype=torch.uint8, device=self.device)
            dist.broadcast(letters, 0)
        return bytes(letters.tolist()).decode()


@contextmanager
def _answered() -> Iterator[None]:
    # A process that ends closes its connections; what it said to the user is the reason.
    try:
        yield
    except RuntimeError as error:
        raise AdapterError(
            f"another of the {dist.get_world_size()} processes ended before its part was done ({reason(error)}); its "
            "own message says why"
        ) from error


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
