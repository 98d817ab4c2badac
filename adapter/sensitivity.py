"""What a prediction hangs on: accuracy with frames in another order, and with only some entities to align to."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64

from adapter.alignments import Alignments
from adapter.config import ModelConfig
from adapter.dataset import Batch
from adapter.measures import mcnemar
from adapter.model import aligned_to_labels

ORDERS = 3
KINDS: dict[str, tuple[str, ...]] = {
    "scenes": ("scene",),
    "objects": ("object", "animal", "food", "plant"),
}
"""The corpus builder's kinds that count as one family."""

Hits = Callable[[Callable[[Batch], Batch]], Bool[np.ndarray, " videos"]]


def measure_sensitivity(alignments: Alignments, form: ModelConfig, hits: Hits) -> dict[str, Any]:
    """Accuracy of a model whose ``hits(change)`` says which videos are right when every batch is changed.

    ``reversed`` plays backwards; ``shuffled`` is the mean over three drawn orders of frames, the same for all
    videos. ``scenes`` and ``objects`` align every token again, to entities of these kinds alone, by exact cosine.
    Every entry has ``top1``, its ``change`` against the videos as they are, and McNemar's test (of shuffled: of the
    first order). Where something cannot be measured, the entry is a sentence that says why.
    """
    plain = hits(lambda batch: batch)
    found: dict[str, Any] = {"as_is": float(plain.mean())}
    found["reversed"] = _compared(plain, hits(Batch.reversed))
    orders = [hits(partial(Batch.in_order, frames=order)) for order in drawn_orders(alignments.frames)]
    mixed = float(np.mean(orders))
    found["shuffled"] = {**_compared(plain, orders[0]), "top1": mixed, "change": mixed - found["as_is"]}
    for family, kinds in KINDS.items():
        ids, why = entities_of(alignments, form, kinds)
        found[family] = why or {
            **_compared(plain, hits(aligned_to(ids, alignments.entities.embeddings))),
            "kinds": list(kinds),
            "entities": len(ids),
        }
    return found


def drawn_orders(frames: int) -> list[list[int]]:
    """Orders of frames by seeds 0, 1 ...; never the order itself, unless there is no other."""
    orders: list[list[int]] = []
    for seed in range(ORDERS):
        rng = np.random.default_rng((frames, seed))
        order = rng.permutation(frames).tolist()
        while frames > 1 and order == sorted(order):
            order = rng.permutation(frames).tolist()
        orders.append(order)
    return orders


def entities_of(
    alignments: Alignments, form: ModelConfig, kinds: tuple[str, ...]
) -> tuple[Int64[np.ndarray, " chosen"], str]:
    """Ids of the entities of some kinds, or a sentence why a model cannot be asked with them alone."""
    told = alignments.entities.kinds or ()
    ids = np.array([i for i, kind in enumerate(told) if kind in kinds], np.int64)
    if not form.reads_entities:
        return ids, "this form reads no entities of the corpus"
    if alignments.store == "topk":
        return ids, "the alignments keep no embeddings of regions, so they cannot be aligned again"
    if not told:
        return ids, "the corpus does not tell the kinds of its entities"
    return ids, "" if len(ids) else f"the corpus has no entity of kind {' or '.join(kinds)}"


def aligned_to(ids: Int64[np.ndarray, " chosen"], embeddings: np.ndarray) -> Callable[[Batch], Batch]:
    """The change that aligns every token to some entities alone."""

    def change(batch: Batch) -> Batch:
        device = batch.embeddings.device
        again = aligned_to_labels(batch, torch.from_numpy(embeddings[ids]).to(device))
        return replace(again, topk_entity=torch.from_numpy(ids).to(device)[again.topk_entity])

    return change


def _compared(plain: Bool[np.ndarray, " videos"], changed: Bool[np.ndarray, " videos"]) -> dict[str, Any]:
    change = float(changed.mean() - plain.mean())
    return {"top1": float(changed.mean()), "change": change, "mcnemar_p": mcnemar(plain, changed)["p"]}
