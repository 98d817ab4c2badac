"""Train the demo's tiny CLIP from scratch on the drawn world: ``python -m pipelines.toyworld.pretrain``.

The model is an ordinary open_clip model (custom config, see ``MODEL``) and is saved as a folder that
``open_clip.create_model("local-dir:...")`` reads. Four losses, one batch of fresh frames per step:

- image-caption contrastive loss (CLIP);
- region loss: every output token, merged or not, against the texts of the entities it covers (known from the
  drawing); merged in every second step, so that merged regions keep a meaning;
- the class token against the entities that are in the frame;
- a bag-of-words loss on the captions, so that "throwing" and "catching", which look alike in a single frame, do not
  collapse into one text.

The last three stand in for the hundreds of millions of captions a real CLIP has seen.

The shipped model is what the defaults give: 5000 steps, about 40 minutes on two cores. ``training.json`` beside the
weights says so, with the accuracies it had.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from aligner.encoder import ClipRegionEncoder
from pipelines.toyworld.captions import STEMS, action_caption, entity_text, still_caption
from pipelines.toyworld.render import render, sample_clip
from pipelines.toyworld.vocabulary import ACTIONS, BODY_PARTS, ENTITIES, OBJECTS, SCENES

PIXELS, PATCH = 64, 8
CONTEXT = 32
EMBED_DIM = 128
MODEL = {
    "embed_dim": EMBED_DIM,
    "vision_cfg": {"image_size": PIXELS, "layers": 4, "width": 128, "head_width": 32, "patch_size": PATCH},
    # The token table of CLIP's vocabulary is most of the file, hence the narrow text tower.
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2},
}
MERGE = 8  # pairs merged per block: 64 patches become 32 regions
PREPROCESS = {
    "size": PIXELS,
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
}
VISIBLE = 0.004  # smallest share of the frame at which an object counts as seen


def entity_weights(objects: float, scenes: float, body_parts: float) -> Tensor:
    """One weight for each of ENTITIES, by its kind."""
    parts = ((objects, OBJECTS), (scenes, SCENES), (body_parts, BODY_PARTS))
    return torch.cat([torch.full((len(names),), weight) for weight, names in parts])


# An object is what a frame is about; a scene fills most of it and would drown the rest.
FRAME_WEIGHT = entity_weights(1.0, 0.15, 0.4)


def region_weights(progress: float) -> Tensor:
    """Objects first, which are hard and few of the patches; scenes and people count more as training goes on."""
    return entity_weights(1.0, 0.1 + 0.5 * progress, 0.4 + 0.4 * progress)


@dataclass(frozen=True)
class Example:
    """``pixels`` (64, 64, 3) uint8; ``cover`` (patches, entities) share of each patch; caption and its words."""

    pixels: np.ndarray
    cover: np.ndarray
    caption: str


def vocabulary_words() -> list[str]:
    """Words whose presence the bag-of-words loss predicts: verbs, particles and entities."""
    verbs = {word for action in ACTIONS for word in action.verb.split()}
    return [*sorted(verbs), *ENTITIES]


def patch_cover(entity: np.ndarray) -> np.ndarray:
    """Share of every patch that each entity covers, (patches, entities) float32, from a map of entity indices."""
    grid = PIXELS // PATCH
    side = entity.shape[0] // grid
    patch = np.repeat(np.arange(grid), side)
    index = (patch[:, None] * grid + patch[None, :]) * len(ENTITIES) + entity
    counts = np.bincount(index.ravel(), minlength=grid * grid * len(ENTITIES))
    return (counts.reshape(grid * grid, -1) / side**2).astype(np.float32)


def _worn(rgb: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Light, noise and compression as a video file may have them."""
    picture = rgb.astype(np.float32) * random.uniform(0.85, 1.15) + random.normal(
        0, random.uniform(0, 5), rgb.shape
    )
    worn = np.clip(picture, 0, 255).astype(np.uint8)
    if random.uniform() < 0.3:
        buffer = BytesIO()
        Image.fromarray(worn).save(buffer, "JPEG", quality=int(random.integers(40, 90)))
        worn = np.asarray(Image.open(buffer))
    return worn


def example(seed: int, index: int, sprite_offset: int = 0) -> Example:
    """The frame, ground truth and caption number ``index`` of a stream: a pure function of its arguments."""
    random = np.random.default_rng((seed, index))
    action = ACTIONS[int(random.integers(len(ACTIONS)))] if random.uniform() < 0.5 else None
    clip = sample_clip(action, random)
    frame = render(clip, float(random.uniform()), PIXELS, sprite_offset)
    cover = patch_cover(frame.entity)
    seen = [
        name
        for name, share in zip(ENTITIES, cover.mean(0), strict=True)
        if share > VISIBLE and name in OBJECTS
    ]
    if action:
        others = [name for name in seen if name != action.object]
        caption = action_caption(action, clip.scene, others, random)
    else:
        caption = still_caption(seen, clip.scene, random)
    return Example(_worn(frame.rgb, random), cover, caption)


class Stream(IterableDataset):
    """Endless batches of fresh examples; worker w of n draws every n-th batch."""

    def __init__(self, seed: int, batch: int) -> None:
        self.seed, self.batch = seed, batch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Batches in order."""
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=CONTEXT)
        words = vocabulary_words()
        number = worker
        while True:
            examples = [example(self.seed, number * self.batch + i) for i in range(self.batch)]
            captions = [item.caption for item in examples]
            bags = [[word in caption.replace(",", " ").split() for word in words] for caption in captions]
            yield {
                "pixels": torch.from_numpy(np.stack([item.pixels for item in examples])),
                "cover": torch.from_numpy(np.stack([item.cover for item in examples])),
                "tokens": tokenizer(captions),
                "words": torch.tensor(bags, dtype=torch.float32),
            }
            number += workers


def normalise(pixels: Tensor) -> Tensor:
    """(frames, height, width, 3) uint8 to CLIP's normalised (frames, 3, height, width) float32."""
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def region_cover(source: Tensor, cover: Tensor, tokens: int) -> Tensor:
    """Share of each region that every entity covers, (frames, tokens - 1, entities), class token left out."""
    member = functional.one_hot(source, tokens).float()[:, :, 1:]
    total = member.transpose(1, 2) @ cover
    return total / total.sum(-1, keepdim=True).clamp_min(1e-6)


def region_loss(tokens: Tensor, cover: Tensor, texts: Tensor, scale: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of regions against entity texts, covered shares as soft targets, weighted by what covers most."""
    logits = scale * functional.normalize(tokens, dim=-1) @ texts.T
    weight = weights[cover.argmax(-1)]
    return -(weight * (cover * logits.log_softmax(-1)).sum(-1)).sum() / weight.sum()


def frame_loss(image: Tensor, cover: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of the class token against the entities in the frame, each visible one alike."""
    seen = (cover.mean(1) > VISIBLE).float() * FRAME_WEIGHT
    target = seen / seen.sum(-1, keepdim=True).clamp_min(1e-6)
    return -(target * (scale * image @ texts.T).log_softmax(-1)).sum(-1).mean()


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric loss within the batch."""
    logits = scale * image @ text.T
    diagonal = torch.arange(len(logits))
    return (functional.cross_entropy(logits, diagonal) + functional.cross_entropy(logits.T, diagonal)) / 2


class Trainer:
    """Model, word head and optimiser of one training run."""

    def __init__(self, seed: int, steps: int, learning_rate: float) -> None:
        torch.manual_seed(seed)
        self.model = open_clip.CLIP(**MODEL)
        open_clip.set_model_preprocess_cfg(self.model, PREPROCESS)
        self.encoders = {merge: ClipRegionEncoder(self.model, merge) for merge in (0, MERGE)}
        self.words = nn.Linear(EMBED_DIM, len(vocabulary_words()))
        self.tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=CONTEXT)
        self.random = np.random.default_rng(seed)
        parameters = [*self.model.parameters(), *self.words.parameters()]
        self.optimiser = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
        warm, self.steps = 300, steps
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser,
            lambda step: min(
                (step + 1) / warm, 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * min(1, step / steps)))
            ),
        )

    def entity_texts(self) -> Tensor:
        """Unit embeddings of all entities, the wording drawn anew each time."""
        texts = [entity_text(name, self.random) for name in ENTITIES]
        return self.model.encode_text(self.tokenizer(texts), normalize=True)

    def step(self, batch: dict[str, Tensor], merge: int) -> dict[str, float]:
        """One optimiser step; returns the losses."""
        weights = region_weights(self.schedule.last_epoch / self.steps)
        encoded = self.encoders[merge].encode(normalise(batch["pixels"]))
        image = functional.normalize(encoded.embeddings[:, 0], dim=-1)
        text = self.model.encode_text(batch["tokens"], normalize=True)
        texts, scale = self.entity_texts(), self.model.logit_scale.exp().clamp(max=100)
        cover = region_cover(encoded.source, batch["cover"], encoded.embeddings.shape[1])
        losses = {
            "contrastive": contrastive_loss(image, text, scale),
            "region": region_loss(encoded.embeddings[:, 1:], cover, texts, scale, weights),
            "frame": frame_loss(image, batch["cover"], texts, scale),
            "words": functional.binary_cross_entropy_with_logits(self.words(text) * 10, batch["words"]) * 10,
        }
        self.optimiser.zero_grad()
        (
            0.5 * losses["contrastive"] + losses["region"] + 0.5 * losses["frame"] + 0.3 * losses["words"]
        ).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.schedule.step()
        return {name: float(loss.detach()) for name, loss in losses.items()}


@torch.no_grad()
def evaluate(
    model: open_clip.CLIP, merge: int = MERGE, frames: int = 512, seed: int = 10**6, **encoder: Any
) -> dict[str, float]:
    """Accuracies on unseen frames with unseen sprite variants (0..1).

    ``acc_patch``, ``acc_object_patch``: the best entity is the one that covers most of the patch (all patches / those
    mostly object); ``acc_region``, ``acc_object_region``: the same after merging; ``acc_region_present``: the best
    entity covers at least a quarter of the region; ``acc_frame_object``: the class token's best object is in the
    frame. ``encoder`` are options of ClipRegionEncoder.
    """
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=CONTEXT)
    texts = _prompted(model, tokenizer, list(ENTITIES))
    examples = [example(seed, index, sprite_offset=1000) for index in range(frames)]
    pixels = normalise(torch.from_numpy(np.stack([item.pixels for item in examples])))
    cover = torch.from_numpy(np.stack([item.cover for item in examples]))
    result: dict[str, float] = {}
    for name, r in (("patch", 0), ("region", merge)):
        encoded = ClipRegionEncoder(model, r, **encoder)(pixels)
        truth = region_cover(encoded.source, cover, encoded.embeddings.shape[1])
        best = (functional.normalize(encoded.embeddings[:, 1:], dim=-1) @ texts.T).argmax(-1)
        right = (best == truth.argmax(-1)).float()
        result[f"acc_{name}"] = float(right.mean())
        result[f"acc_object_{name}"] = float(right[truth.argmax(-1) < len(OBJECTS)].mean())
        result[f"acc_{name}_present"] = float((truth.gather(-1, best[..., None]) >= 0.25).float().mean())
    best = (encoded.embeddings[:, 0] @ texts[: len(OBJECTS)].T).argmax(-1)
    seen = (cover.mean(1) > VISIBLE)[:, : len(OBJECTS)]
    hit = seen.gather(1, best[:, None])[:, 0].float()
    result["acc_frame_object"] = float(hit[seen.any(-1)].mean())
    return result


def _prompted(
    model: open_clip.CLIP, tokenizer: open_clip.tokenizer.SimpleTokenizer, names: list[str]
) -> Tensor:
    texts = torch.stack(
        [
            model.encode_text(tokenizer([f"{stem} a {name}" for name in names]), normalize=True)
            for stem in STEMS
        ]
    )
    return functional.normalize(texts.mean(0), dim=-1)


def save(model: nn.Module, folder: Path, facts: dict[str, object]) -> None:
    """Save as an open_clip folder in fp16, with the facts of the training beside it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "training.json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")


def train(options: argparse.Namespace) -> None:
    """Train, printing losses and accuracies every so many steps, and save."""
    torch.set_num_threads(1)
    stream = Stream(options.seed, options.batch)
    loader = iter(DataLoader(stream, batch_size=None, num_workers=options.workers, prefetch_factor=8))
    trainer = Trainer(options.seed, options.steps, options.learning_rate)
    begun = time.perf_counter()
    for step in range(1, options.steps + 1):
        losses = trainer.step(next(loader), merge=MERGE if step % 2 else 0)
        if step % options.every == 0 or step == options.steps:
            scores = evaluate(trainer.model)
            line = {"step": step, "minutes": (time.perf_counter() - begun) / 60, **losses, **scores}
            print(json.dumps({key: round(value, 4) for key, value in line.items()}), flush=True)
            run = {name: getattr(options, name) for name in ("seed", "steps", "batch", "learning_rate")}
            save(trainer.model, options.out, {**run, "images": step * options.batch, "accuracy": scores})


def main() -> None:
    """Command line of the training."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tinyclip")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw frames")
    parser.add_argument("--every", type=int, default=500, help="steps between evaluations")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
