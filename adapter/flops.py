"""Cost of a video in the paper's convention, where a "GFLOP" is a billion multiply-accumulates (MACs).

Counted are matrix products and convolutions of one view: patch embedding, blocks, alignment, adapter. Left out, as in
the published counts, are norms, activations and softmax, what token merging itself compares (0.1 %), the projection to
the joint space (0.4 %), and the product of z with the labels.
"""

from dataclasses import dataclass

from adapter.config import AdapterError, ModelConfig, did_you_mean
from adapter.layers import GEOMETRY_FEATURES, TIME_FEATURES
from adapter.model import Shape, block_sizes, temporal_layers, track_features


@dataclass(frozen=True)
class Tower:
    """Sizes of a vision transformer; ``patch`` and ``image`` in pixels a side, ``dim`` of the joint space."""

    width: int
    layers: int
    patch: int
    image: int
    dim: int

    @property
    def patches(self) -> int:
        """Patches of a frame."""
        return (self.image // self.patch) ** 2


TOWERS = {
    "ViT-B-32": Tower(768, 12, 32, 224, 512),
    "ViT-B-16": Tower(768, 12, 16, 224, 512),
    "ViT-L-14": Tower(1024, 24, 14, 224, 768),
    "ViT-L-14-336": Tower(1024, 24, 14, 336, 768),
    "ViT-H-14": Tower(1280, 32, 14, 224, 1024),
}


@dataclass(frozen=True)
class Setting:
    """What a model is used on: ``tokens`` of a frame with cls, ``entities`` each is compared with, ``top_k`` kept.

    ``classes`` count where each has a z of its own (``readout=labels``).
    """

    dim: int
    frames: int
    tokens: int
    entities: int
    top_k: int
    classes: int = 1

    @property
    def shape(self) -> Shape:
        """What a model is built for."""
        return Shape(self.dim, self.frames)


@dataclass(frozen=True)
class Cost:
    """MACs of one view; ``encoder`` is None where the tower is unknown."""

    encoder: int | None
    alignment: int
    adapter: int

    @property
    def total(self) -> int:
        """All of the known parts."""
        return (self.encoder or 0) + self.alignment + self.adapter


def find_tower(name: str) -> Tower:
    """A tower by open_clip's name, or by five numbers ``WIDTH,LAYERS,PATCH,IMAGE,DIM``; others raise."""
    known = name.removesuffix("-quickgelu")
    if known in TOWERS:
        return TOWERS[known]
    parts = name.split(",")
    if len(parts) == 5 and all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        return Tower(*map(int, parts))
    raise AdapterError(
        f"--tower is '{name}'{did_you_mean(known, TOWERS)}; it must be one of {', '.join(TOWERS)}, or five numbers "
        "WIDTH,LAYERS,PATCH,IMAGE,DIM such as 768,12,16,224,512"
    )


def tokens_after(tower: Tower, merge: int) -> list[int]:
    """Tokens of a frame, cls included, before the first block and after the merge of every block."""
    tokens = [tower.patches + 1]
    for _ in range(tower.layers):
        tokens.append(tokens[-1] - max(0, min(merge, (tokens[-1] - 1) // 2)))
    return tokens


def encoder_macs(tower: Tower, merge: int) -> int:
    """MACs of one frame; ``merge`` pairs of tokens join in every block, between attention and MLP."""
    tokens = tokens_after(tower, merge)
    square = tower.width**2
    attention = sum(4 * n * square + 2 * n * n * tower.width for n in tokens[:-1])
    mlp = sum(8 * n * square for n in tokens[1:])
    return tower.patches * 3 * tower.patch**2 * tower.width + attention + mlp


def alignment_macs(config: ModelConfig, at: Setting) -> int:
    """MACs of the cosines with every entity, for the tokens that the model's queries align.

    The product of Â and S (Eq. 5) is a look-up and costs nothing; written out it would cost the same again.
    """
    if config.model != "alt" or config.queries in ("learned", "cls"):
        return 0
    tracked = config.queries == "tracks"
    tokens = {"all": at.tokens, "regions": at.tokens - 1, "cls": 1}["regions" if tracked else config.align]
    return at.frames * tokens * at.entities * at.dim


def adapter_macs(config: ModelConfig, at: Setting) -> int:
    """MACs of the adapter on one video, from cached alignments to z."""
    if config.model == "mean_pool":
        return 0
    width = block_sizes(config, at.dim)[0]
    if config.model == "adapt_then_align":
        t, w = at.frames, width
        layer = _attention(t, t, w) + _ffn(t, w, config)
        code = t * TIME_FEATURES * w
        return _mlp(t, at.dim, w) + code + temporal_layers(config, at.shape) * layer + _mlp(1, w, at.dim)
    blocks = config.blocks * _block(config, at, width)
    return _queries(config, at, width) + _context(config, at, width) + blocks + _readout(config, at, width)


def cost(config: ModelConfig, at: Setting, tower: Tower | None, merge: int) -> Cost:
    """MACs of one view by part."""
    encoder = at.frames * encoder_macs(tower, merge) if tower else None
    return Cost(encoder, alignment_macs(config, at), adapter_macs(config, at))


def _mlp(rows: int, dim_in: int, dim_out: int, ratio: int = 1) -> int:
    return rows * ratio * dim_out * (dim_in + dim_out)


def _attention(queries: int, keys: int, width: int) -> int:
    # Query and output for each query, key and value for each key, then both products of attention.
    return 2 * (queries + keys) * width**2 + 2 * queries * keys * width


def _ffn(rows: int, width: int, config: ModelConfig) -> int:
    return 2 * config.ffn_ratio * rows * width**2


def _time(config: ModelConfig, at: Setting, width: int) -> int:
    return at.frames * TIME_FEATURES * width if config.time_codes == "fourier" else 0


def _pool(config: ModelConfig, at: Setting) -> int:
    return at.frames * at.tokens * at.dim if config.pool == "attention" else 0


def _queries(config: ModelConfig, at: Setting, width: int) -> int:
    frames = _mlp(at.frames, at.dim, width, config.mlp_ratio) + _time(config, at, width)
    if config.queries == "learned":
        return 0
    if config.queries == "cls":
        return frames
    if config.queries == "tracks":
        tracks = _count(config, at)
        code = tracks * (at.frames * track_features() * width + width**2)
        centres = tracks * at.frames * (at.tokens - 1) * 2
        named = _mlp(tracks, at.dim, width, config.mlp_ratio) if config.track_identity else 0
        return named + code + centres
    rematch = at.frames * at.tokens * (at.dim**2 + at.top_k * at.dim) if config.rematch else 0
    return frames + _pool(config, at) + rematch


def _readout(config: ModelConfig, at: Setting, width: int) -> int:
    if config.has_own_z:
        return _mlp(1, width, at.dim, config.mlp_ratio)
    # The rest of each label is found among all entities, once for a batch.
    matched = at.classes * (_count(config, at) * (at.dim + width) + at.entities * at.dim)
    return matched + _mlp(at.classes, width, at.dim, config.mlp_ratio)


def _count(config: ModelConfig, at: Setting) -> int:
    return min(config.tracks, at.entities) if config.queries == "tracks" else at.frames


def _context(config: ModelConfig, at: Setting, width: int) -> int:
    if not config.has("ca"):
        return 0
    rows = at.frames * _keys(config, at)
    geometry = rows * GEOMETRY_FEATURES * width if config.context == "regions" else 0
    pool = _pool(config, at) if config.context == "pooled" else 0
    return _mlp(rows, at.dim, width, config.mlp_ratio) + geometry + pool + _time(config, at, width)


def _keys(config: ModelConfig, at: Setting) -> int:
    return at.tokens if config.context == "regions" else 1


def _block(config: ModelConfig, at: Setting, width: int) -> int:
    sa, ca, conv = map(config.has, ("sa", "ca", "conv"))
    queries, keys = _count(config, at), at.frames * _keys(config, at)
    channels = width if config.conv == "dense" else 1
    parts = (
        sa * _attention(queries, queries, width),
        conv * at.frames * config.kernel * channels * width,
        ca * _attention(queries, keys, width),
        (1 + (sa and ca and config.ffn == "each")) * _ffn(queries, width, config),
    )
    return sum(parts)
