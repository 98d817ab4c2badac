"""A run's forward pass for other programs: ``torch.export`` (``.pt2``) or ONNX (``.onnx``), in float32.

What goes in are the tensors of a batch, the table of entities and the table of labels; what comes out are the logits
of Eq. 10 and z. Number of videos, tokens, cached entities, entities of the corpus and labels are free; frames and
dimension are the run's. The file tells its inputs, outputs and origin: ``read_facts`` reads them.
"""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.export import Dim

from adapter import __version__
from adapter.artifact import Run, make_folder, open_run, write_atomic
from adapter.checkpoint import load_model, settings_of
from adapter.config import AdapterError, ModelConfig, did_you_mean
from adapter.dataset import Batch
from adapter.model import VideoAdapter

FORMS = {"torch": ".pt2", "onnx": ".onnx"}
FACTS = "alt.json"
OUTPUTS = ("logits", "z")
# Free sizes by name, and the size of each in the batch that is traced; no two alike, none 0 or 1.
SIZES = {"videos": 3, "tokens": 5, "topk": 4, "entities": 41, "labels": 7}
TOLERANCE = 1e-4
INPUTS: dict[str, tuple[str, tuple[str | int, ...], str]] = {
    "embeddings": (
        "float32",
        ("videos", "frames", "tokens", "dim"),
        "unit embeddings: class token, then regions",
    ),
    "topk_entity": ("int64", ("videos", "frames", "tokens", "topk"), "rows of entities nearest to a token"),
    "topk_score": ("float32", ("videos", "frames", "tokens", "topk"), "their cosines, the highest first"),
    "geometry": (
        "float32",
        ("videos", "frames", "tokens", 3),
        "centroid x, y and area share, 0..1 (class token: .5 .5 1)",
    ),
    "mask": ("bool", ("videos", "frames", "tokens"), "False where a frame has fewer regions"),
    "entities": ("float32", ("entities", "dim"), "unit embeddings of the corpus"),
    "labels": ("float32", ("labels", "dim"), "unit embeddings of the candidate labels"),
}


@dataclass(frozen=True)
class Exported:
    """What was written, and the largest difference to the run's own cosines on another batch than the traced one."""

    file: Path
    form: str
    bytes: int
    difference: float
    facts: dict[str, Any]


class Forward(nn.Module):
    """The model with plain tensors for arguments."""

    def __init__(self, model: VideoAdapter) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        embeddings: Float[Tensor, "videos frames tokens dim"],
        topk_entity: Int64[Tensor, "videos frames tokens topk"],
        topk_score: Float[Tensor, "videos frames tokens topk"],
        geometry: Float[Tensor, "videos frames tokens 3"],
        mask: Bool[Tensor, "videos frames tokens"],
        entities: Float[Tensor, "entities dim"],
        labels: Float[Tensor, "classes dim"],
    ) -> tuple[Float[Tensor, "videos classes"], Float[Tensor, "videos *each dim"]]:
        """Logits and z; norms, times and true labels, which no form reads, are filled in."""
        batch = Batch(
            embeddings,
            topk_score[..., 0],
            topk_entity,
            topk_score,
            geometry,
            times=geometry[:, :, 0, 0],
            mask=mask,
            label=topk_entity[:, 0, 0, 0],
        )
        out = self.model(batch, entities, labels)
        return out.logits, out.z


@dataclass(frozen=True)
class Traced:
    """A run's forward pass as ``torch.export`` traced it; ``shape`` is its frames and dim, ``z_axes`` those of z."""

    run: Run
    config: ModelConfig
    forward: Forward
    program: torch.export.ExportedProgram
    shape: dict[str, int]
    z_axes: int

    def write(self, out: Path, form: str | None = None) -> Exported:
        """Write one file, read it back and compare it; arguments and errors as ``export``."""
        form = _form(out, form)
        make_folder(out.parent)
        facts = _facts(self)
        content = {"torch": _torch_bytes, "onnx": _onnx_bytes}[form](self.program, facts)
        write_atomic(out, lambda temporary: _write(temporary, content))
        difference = _compare(self, {"torch": _run_torch, "onnx": _run_onnx}[form](out))
        if difference > TOLERANCE:
            out.unlink()
            raise AdapterError(
                f"the exported model differs from run {self.run.path.name} by {difference:.2g} in cosine, more than "
                f"{TOLERANCE:.0e}; nothing was kept: try the other --format, and report this"
            )
        return Exported(out, form, len(content), difference, facts)


def export(run: Path, out: Path, form: str | None = None) -> Exported:
    """Write a run's forward pass to one file, read it back, and compare it with the run on a batch of other sizes.

    Args:
        run: a finished run.
        out: the file; ``.pt2`` for ``torch``, ``.onnx`` for ``onnx``.
        form: one of ``FORMS``; by the suffix of ``out`` where it is None.

    Raises:
        AdapterError: no run, an unknown format, a form that cannot be exported, a package that is missing, or a file
            whose results differ from the run's by more than ``TOLERANCE``.
    """
    if _form(out, form) == "onnx":
        _runtime()
    return trace(run).write(out, form)


def trace(run: Path) -> Traced:
    """Trace a run's forward pass with free sizes; raises ``AdapterError`` as ``export`` does."""
    opened = open_run(run)
    config = settings_of(opened).model
    _check_exportable(config)
    forward = Forward(load_model(opened, torch.device("cpu"))).eval()
    shape = {"frames": opened.manifest["frames"], "dim": opened.manifest["dim"]}
    inputs = tuple(random_inputs(SIZES | shape).values())
    with torch.no_grad():
        z = forward(*inputs)[1]
        program = torch.export.export(forward, inputs, dynamic_shapes=_free(config), strict=False)
    return Traced(opened, config, forward, program, shape, z.ndim)


def read_facts(file: Path) -> dict[str, Any]:
    """What an exported file tells of itself: run, model, labels trained on, inputs and outputs with their shapes.

    Raises:
        AdapterError: a file that ``export`` did not write.
    """
    if not file.is_file():
        raise AdapterError(f"there is no file {file}; `adapter export RUN --out {file.name}` writes one")
    try:
        if file.suffix == ".onnx":
            metadata = _runtime().InferenceSession(file).get_modelmeta().custom_metadata_map
            return json.loads(metadata[FACTS])
        extra = {FACTS: ""}
        torch.export.load(file, extra_files=extra)
        return json.loads(extra[FACTS])
    except AdapterError:
        raise
    except Exception as error:  # readers of either format raise whatever they like
        raise AdapterError(
            f"{file} holds no exported run ({type(error).__name__}); `adapter export RUN --out FILE` writes one"
        ) from error


def random_inputs(sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
    """Inputs of the exported forward with random values; ``sizes`` names every axis of ``INPUTS``.

    In every other frame the last token is masked.
    """
    draw = torch.Generator().manual_seed(seed)
    shapes = {name: [_size(axis, sizes) for axis in axes] for name, (_, axes, _) in INPUTS.items()}
    made: dict[str, Tensor] = {}
    for name in ("embeddings", "entities", "labels"):
        made[name] = nn.functional.normalize(torch.randn(shapes[name], generator=draw), dim=-1)
    made["topk_entity"] = torch.randint(sizes["entities"], shapes["topk_entity"], generator=draw)
    made["topk_score"] = torch.rand(shapes["topk_score"], generator=draw).sort(-1, descending=True).values
    made["geometry"] = torch.rand(shapes["geometry"], generator=draw)
    made["mask"] = torch.ones(shapes["mask"], dtype=torch.bool)
    made["mask"][:, ::2, 1:][..., -1:] = False
    return {name: made[name] for name in INPUTS}


def _size(axis: str | int, sizes: Mapping[str, int]) -> int:
    return axis if isinstance(axis, int) else sizes[axis]


def _form(out: Path, form: str | None) -> str:
    if form is None:
        form = next((name for name, suffix in FORMS.items() if out.suffix == suffix), None)
        if form is None:
            raise AdapterError(
                f"--out {out.name} ends in neither {' nor '.join(FORMS.values())}; name such a file, or pass --format"
            )
    if form not in FORMS:
        raise AdapterError(
            f"--format is '{form}'{did_you_mean(form, FORMS)}; it must be one of {', '.join(FORMS)}"
        )
    if out.suffix != FORMS[form]:
        raise AdapterError(f"--out {out.name} must end in {FORMS[form]} for --format {form}")
    return form


def _check_exportable(config: ModelConfig) -> None:
    """Controls and noise are experiments: what they draw at random cannot be a file."""
    if config.identities != "aligned" or config.noise == "always":
        raise AdapterError(
            f"a run with identities={config.identities} and noise={config.noise} is no function of its inputs alone; "
            "only identities=aligned without noise=always can be exported"
        )


def _free(config: ModelConfig) -> dict[str, dict[int, Any]]:
    """The axes of every input that may have another size than when traced."""
    least = {name: 1 for name in SIZES} | {"tokens": 3}
    if config.model == "alt" and config.queries == "tracks":
        least["entities"] = config.tracks
    dims = {name: Dim(name, min=least[name]) for name in SIZES}
    return {
        name: {place: dims[str(axis)] for place, axis in enumerate(axes) if axis in dims}
        for name, (_, axes, _) in INPUTS.items()
    }


def _facts(traced: Traced) -> dict[str, Any]:
    manifest, shape = traced.run.manifest, traced.shape
    return {
        "package": f"adapter {__version__}",
        "run": {"fingerprint": manifest["fingerprint"], "inputs": manifest.get("inputs", {})},
        "variant": traced.config.variant,
        "model": manifest["model"],
        "trained_labels": traced.run.train_labels,
        "inputs": [
            {"name": name, "dtype": dtype, "shape": [shape.get(str(axis), axis) for axis in axes], "is": what}
            for name, (dtype, axes, what) in INPUTS.items()
        ],
        "outputs": [
            {
                "name": "logits",
                "dtype": "float32",
                "shape": ["videos", "labels"],
                "is": "scaled cosines of z and labels",
            },
            {
                "name": "z",
                "dtype": "float32",
                "shape": ["videos", *["labels"] * (traced.z_axes - 2), shape["dim"]],
                "is": "unit representation of a video (for each label, where the form has one each)",
            },
        ],
    }


def _torch_bytes(program: Any, facts: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={FACTS: json.dumps(facts, sort_keys=True)})
    return buffer.getvalue()


def _onnx_bytes(program: Any, facts: dict[str, Any]) -> bytes:
    _runtime()
    exported = torch.onnx.export(
        program, input_names=list(INPUTS), output_names=list(OUTPUTS), dynamo=True, verbose=False
    )
    assert exported is not None
    proto = exported.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = FACTS, json.dumps(facts, sort_keys=True)
    return proto.SerializeToString()


def _runtime() -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch writes ONNX with it
    except ImportError as error:
        raise AdapterError(
            f"ONNX needs the package {error.name}, which is not here; run `pip install 'alt-toolkit[onnx]'`"
        ) from None
    return onnxruntime


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


Runner = Callable[[Mapping[str, Tensor]], Tensor]


def _run_torch(file: Path) -> Runner:
    module = torch.export.load(file).module()
    return lambda inputs: module(*inputs.values())[0]


def _run_onnx(file: Path) -> Runner:
    session = _runtime().InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(
        session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})[0]
    )


@torch.no_grad()
def _compare(traced: Traced, exported: Runner) -> float:
    """Largest difference in cosines (logits over their scale) on a batch of other sizes."""
    entities = 50 + traced.config.tracks
    sizes = {"videos": 2, "tokens": 4, "topk": 3, "entities": entities, "labels": 4, **traced.shape}
    inputs = random_inputs(sizes, seed=1)
    wanted = traced.forward(*inputs.values())[0]
    return float((exported(inputs) - wanted).abs().max() / traced.forward.model.log_scale.exp())
