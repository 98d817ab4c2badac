"""Texts and pictures -> unit vectors by the two towers of an open_clip model.

The model is loaded in fp32 and hashed before anything else is done to it, so that a corpus, its labels and
the alignments made with them can be told to come from one model.
"""

import hashlib
import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor

from corpus_builder.config import PRECISIONS, CorpusError, check_choice, did_you_mean

BATCH = {"cpu": 8, "cuda": 256}
"""Texts in every batch, by kind of device; the last is filled up."""
STEP = 4
"""Lengths are rounded up to a multiple of so many tokens: few kinds of batches, little padding."""
SEED = 0
PROMPTS = "prompts.safetensors"
_UNREACHABLE = re.compile(r"download|connection|offline|resolve|timed out|the Hub", re.IGNORECASE)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@runtime_checkable
class TextEncoder(Protocol):
    """Turns texts into unit vectors, and says which model does it (``info`` as in a manifest's ``model``)."""

    info: dict[str, Any]

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Unit float32 vectors, one row per text."""
        ...

    def truncated(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than the model reads."""
        ...


class OpenClip:
    """The towers of an open_clip model, on one device."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        info: dict[str, Any],
        device: str = "cpu",
        precision: str = "fp32",
    ) -> None:
        self._model = model.eval().to(device)
        self._tokenizer = tokenizer
        self._device = device
        self._kind = device.partition(":")[0]
        self._precision = precision
        self.info = info

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Unit float32 vectors, one row per text; a text beyond the context length is cut.

        A text's vector depends on nothing but the text: batches are of one shape per length, and a kernel adds up
        a row in the same order whatever the other rows hold. The order of the batches' rows is that of the texts
        themselves, so that even a kernel that does not would give the same rows for texts in another order.
        """
        out = np.zeros((len(texts), self.info["embed_dim"]), dtype=np.float32)
        if not texts:
            return out
        tokens = self._tokenizer(list(texts))
        lengths = lengths_of(self._model, tokens)
        order = sorted(range(len(texts)), key=lambda row: (lengths[row], texts[row]))
        for length, group in itertools.groupby(order, key=lengths.__getitem__):
            rows, size = list(group), BATCH[self._kind]
            for batch in (rows[start : start + size] for start in range(0, len(rows), size)):
                out[batch] = self._encode_batch(tokens[batch], length)
        return out

    def _encode_batch(
        self, tokens: Int[Tensor, "texts context"], length: int
    ) -> Float[np.ndarray, "texts dim"]:
        """Unit vectors of texts of one length, in a batch filled up with the first of them."""
        missing = BATCH[self._kind] - len(tokens)
        filled = torch.cat([tokens, tokens[:1].expand(missing, -1)]).to(self._device)
        half = DTYPES.get(self._precision)
        with torch.autocast(self._kind, half, enabled=half is not None):
            features = text_features(self._model, filled, length)
        return torch.nn.functional.normalize(features.float(), dim=-1)[: len(tokens)].cpu().numpy()

    @torch.inference_mode()
    def encode_images(self, images: Iterable[Image]) -> Float[np.ndarray, "images dim"]:
        """Unit float32 vectors, one row per picture, in one batch, prepared as the model's own settings ask.

        Of pictures that come from a generator one is held at a time, at its full size.
        """
        prepared = [self._preprocess(image) for image in images]
        if not prepared:
            return np.zeros((0, self.info["embed_dim"]), dtype=np.float32)
        pixels = torch.stack(prepared).to(self._device)
        return torch.nn.functional.normalize(self._model.encode_image(pixels).float(), dim=-1).cpu().numpy()

    @cached_property
    def _preprocess(self) -> Callable[[Image], Float[Tensor, "channels height width"]]:
        """What open_clip makes for evaluation: resize, crop, normalise."""
        from open_clip.transform import PreprocessCfg, image_transform_v2

        known = {field.name for field in fields(PreprocessCfg)}
        told = {key: value for key, value in self._model.visual.preprocess_cfg.items() if key in known}
        return image_transform_v2(PreprocessCfg(**told), is_train=False)

    def truncated(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than the model's context."""
        length = self._tokenizer.context_length
        if not hasattr(self._tokenizer, "encode"):
            pieces = self._tokenizer.tokenizer(list(texts))["input_ids"] if texts else []
            return sum(len(piece) > length for piece in pieces)
        # start and end marks take two places
        return sum(len(self._tokenizer.encode(text)) + 2 > length for text in texts)


def lengths_of(model: Any, tokens: Int[Tensor, "texts context"]) -> list[int]:
    """How much of the context each text needs, in steps of ``STEP`` tokens.

    Under a causal mask nothing after the end mark reaches it, so padding can be cut: several times the speed
    on short prompts, the same vectors to rounding. Models of another build need all of the context.
    """
    import open_clip

    context = tokens.shape[1]
    causal = isinstance(model, open_clip.CLIP) and model.attn_mask is not None
    if not causal or model.text_pool_type != "argmax":
        return [context] * len(tokens)
    filled = tokens.argmax(dim=-1) + 1
    return (-(-filled // STEP) * STEP).clamp(max=context).tolist()


def text_features(
    model: Any, tokens: Int[Tensor, "texts context"], length: int
) -> Float[Tensor, "texts dim"]:
    """``model.encode_text`` up to length, on the first ``length`` tokens (see :func:`lengths_of`)."""
    if length == tokens.shape[1]:
        return model.encode_text(tokens)
    short = {
        "positional_embedding": model.positional_embedding[:length],
        "attn_mask": model.attn_mask[:length, :length],
    }
    out = torch.func.functional_call(model, short, (), {"text": tokens[:, :length]})
    return out["text_features"] if isinstance(out, dict) else out[1]


def load_text_encoder(
    name: str, pretrained: str | None = None, device: str = "auto", precision: str = "fp32"
) -> OpenClip:
    """Load an open_clip model; its image tower comes with it.

    Args:
        name: a built-in architecture, ``hf-hub:org/repo`` or ``local-dir:PATH``.
        pretrained: a tag or a weights file; ``none`` for seeded random weights; to be left out with a schema.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for whichever there is.
        precision: ``fp32``, or on a GPU ``bf16`` or ``fp16`` (autocast).

    Raises:
        CorpusError: unknown name or tag, no such device, half precision without a GPU, weights missing or not to
            be had; says which choices there are.
    """
    import open_clip

    chosen = choose_device(device, precision)
    name = check_model(name, pretrained)
    try:
        with _quiet_loggers():
            model = _create(name, pretrained)
            tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip, the hub client, safetensors and torch each raise their own kinds
        raise CorpusError(_why(name, pretrained, error)) from error
    info = {
        "name": _portable(name),
        "pretrained": Path(pretrained).name if pretrained and Path(pretrained).is_file() else pretrained,
        "weights_sha256": weights_sha256(model),
        "embed_dim": _embed_dim(model, tokenizer),
        "random_weights": pretrained == "none",
    }
    return OpenClip(model, tokenizer, info, chosen, precision)


def choose_device(device: str, precision: str = "fp32") -> str:
    """The torch device of ``--device``.

    Raises :class:`CorpusError` unless this machine has it, and it has ``--precision``: a CPU computes in fp32.
    """
    check_choice("--precision", precision, PRECISIONS)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        hint = did_you_mean(device, ("auto", "cpu", "cuda"))
        raise CorpusError(f"--device is '{device}', expected auto, cpu, cuda or cuda:N{hint}")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device != "cpu" and int(device.partition(":")[2] or 0) >= gpus:
        raise CorpusError(f"--device is '{device}', found {gpus} usable GPUs; use --device cpu or auto")
    if device == "cpu" and precision != "fp32":
        raise CorpusError(f"--precision {precision} needs a GPU, the device is cpu; use --precision fp32")
    return device


def check_model(name: str, pretrained: str | None) -> str:
    """The model's name as open_clip lists it (``ViT-B/16`` is ``ViT-B-16``).

    Raises :class:`CorpusError` unless ``--model`` and ``--pretrained`` go together and are known.
    """
    import open_clip

    if name.startswith(("local-dir:", "hf-hub:")):
        _check_schema(name, pretrained)
        return name
    known = open_clip.list_models()
    key = name.replace("/", "-")
    if key not in known:
        hint = did_you_mean(key, known) or ", or use hf-hub:ORG/REPO or local-dir:PATH"
        raise CorpusError(f"--model '{name}' is not an open_clip model{hint}")
    tags = open_clip.list_pretrained_tags_by_model(key)
    choices = f"one of {', '.join(tags) or '(no tags)'}, a weights file, or 'none' for random weights"
    if pretrained is None:
        raise CorpusError(f"--model {name} needs --pretrained: {choices}")
    if pretrained != "none" and not is_tag(key, pretrained) and not Path(pretrained).is_file():
        raise CorpusError(
            f"--pretrained '{pretrained}' is neither a tag of {name} nor a file"
            f"{did_you_mean(pretrained, tags)}; expected {choices}"
        )
    return key


def is_tag(model: str, pretrained: str) -> bool:
    """Whether open_clip publishes weights of ``model`` under that tag."""
    import open_clip

    return bool(open_clip.pretrained.is_pretrained_cfg(model, pretrained))


def is_published(name: str, pretrained: str | None) -> bool:
    """Whether a name out of a manifest suffices to get the model, wherever one is."""
    if name.startswith(("local-dir:", "hf-hub:")):
        return name.startswith("hf-hub:")
    return pretrained in (None, "none") or is_tag(name, str(pretrained))


def model_location(name: str, pretrained: str | None) -> dict[str, str] | None:
    """Where a model lies on this machine, or None where its name alone finds it.

    ``{"model": "local-dir:/abs/folder"}``, or ``{"model": "ViT-B-16", "pretrained": "/abs/weights.pt"}``.
    """
    if name.startswith("local-dir:"):
        return {"model": f"local-dir:{Path(name.removeprefix('local-dir:')).resolve()}"}
    name = name.replace("/", "-") if not name.startswith("hf-hub:") else name
    if is_published(name, pretrained):
        return None
    return {"model": name, "pretrained": str(Path(str(pretrained)).resolve())}


def _check_schema(name: str, pretrained: str | None) -> None:
    if pretrained is not None:
        raise CorpusError(
            f"--model {name} brings its own weights: leave out --pretrained (got '{pretrained}')"
        )
    if not name.startswith("local-dir:"):
        return
    folder = Path(name.removeprefix("local-dir:"))
    for file in ("open_clip_config.json", "open_clip_model.safetensors"):
        if not (folder / file).is_file():
            raise CorpusError(
                f"--model local-dir: '{folder}' holds no {file}; it takes a folder with open_clip_config.json"
                " and open_clip_model.safetensors"
            )


@contextmanager
def _quiet_loggers() -> Iterator[None]:
    """Mute loggers for a while: open_clip warns of what was asked for, and what fails is told by our error."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _create(name: str, pretrained: str | None) -> Any:
    import open_clip

    if pretrained != "none":
        model = open_clip.create_model(name, pretrained=pretrained, precision="fp32", require_pretrained=True)
        if name.startswith("local-dir:"):
            _attach_prompts(model, Path(name.removeprefix("local-dir:")) / PROMPTS)
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return open_clip.create_model(name, precision="fp32", pretrained_text=False)


def _attach_prompts(model: Any, file: Path) -> None:
    """Prompts of the image tower that `alt finetune` learned belong to the model's identity, as in the aligner."""
    if file.is_file():
        from safetensors.torch import load_file

        model.visual.prompts = torch.nn.Parameter(load_file(file)["prompts"], requires_grad=False)


def _why(name: str, pretrained: str | None, error: Exception) -> str:
    weights = f" with --pretrained {pretrained}" if pretrained else ""
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
    if _UNREACHABLE.search(str(error)):
        return (
            f"--model {name}{weights} could not be loaded: its weights are not on this machine, and they could not be "
            "downloaded. With a network they are fetched once, into the cache of HF_HOME; without one, give a weights "
            f"file (--pretrained FILE.safetensors) or a folder (--model local-dir:PATH). What went wrong: {first}"
        )
    return (
        f"--model {name}{weights} could not be loaded: {first}. Without a network, give a weights file"
        " (--pretrained FILE.safetensors) or a folder (--model local-dir:PATH)"
    )


def _portable(name: str) -> str:
    """The model's name without a machine's path: ``local-dir:/a/b/tinyclip`` -> ``local-dir:tinyclip``."""
    if not name.startswith("local-dir:"):
        return name
    return f"local-dir:{Path(name.removeprefix('local-dir:')).resolve().name}"


@torch.inference_mode()
def _embed_dim(model: Any, tokenizer: Any) -> int:
    return int(model.eval().encode_text(tokenizer(["a"])).shape[-1])


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 over a model's state in sorted order: name, shape and values (floats as fp32)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        values = values.to(torch.float32) if values.is_floating_point() else values
        digest.update(name.encode())
        digest.update(str(tuple(values.shape)).encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def embed_labels(
    names: Sequence[str], templates: Sequence[str], encoder: TextEncoder
) -> Float[np.ndarray, "labels dim"]:
    """Class vectors: the mean of the unit embeddings over the templates, brought back to unit length."""
    prompts = [template.replace("{}", name) for name in names for template in templates]
    vectors = encoder.encode(prompts).reshape(len(names), len(templates), -1).astype(np.float64)
    means = vectors.mean(axis=1)
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)
