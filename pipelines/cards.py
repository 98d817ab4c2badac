"""The card of a repository, its ``README.md``, from manifests: front matter for the hub and what a reader has to know.

Corpora and alignments have the cards of their stages, with the words on loading that fit a pushed folder.
"""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from pipelines.parcel import MODEL, Parcel, size_of

TAGS = ["action-recognition", "clip", "video", "alt-toolkit"]
PAPER = "2311.15619"
RANDOM = (
    "> **Random weights.** The vision-language model behind this has random weights (`--pretrained none`): embeddings, "
    "entities, predictions and figures mean nothing. For tests only."
)


def card(parcel: Parcel, repo_id: str, license: str | None) -> str:
    """The card as Markdown; the same artifact gives the same card."""
    body = {"run": _run, "corpus": _corpus, "labels": _labels, "alignments": _alignments}[parcel.kind]
    text = _without_front_matter(body(parcel, repo_id))
    if parcel.manifest["model"].get("random_weights"):
        title, _, rest = text.partition("\n")
        text = f"{title}\n\n{RANDOM}\n{rest}"
    return f"---\n{yaml.safe_dump(_front_matter(parcel, license), sort_keys=False)}---\n\n{text}"


def _without_front_matter(text: str) -> str:
    return text.split("\n---\n", 1)[1].lstrip() if text.startswith("---\n") else text


def _front_matter(parcel: Parcel, license: str | None) -> dict[str, Any]:
    front: dict[str, Any] = {"license": license or "other"}
    if license is None:
        front["license_name"] = "not-stated"
    if parcel.kind != "run":
        front |= {"tags": [*TAGS, parcel.kind]}
        data = [{"split": "train", "path": _table(parcel)}]
        return {**front, "configs": [{"config_name": "default", "data_files": data}]}
    front |= {"library_name": "alt-toolkit", "pipeline_tag": "video-classification", "tags": TAGS}
    if results := _results(parcel):
        front["model-index"] = [{"name": parcel.source.name, "results": results}]
    return front


def _table(parcel: Parcel) -> str:
    """The table, or the pattern of all tables, that the hub is to show of a data set."""
    from aligner.artifact import shard_name
    from corpus_builder.artifact import ENTITIES, LABELS

    first = shard_name(0)
    return {"corpus": ENTITIES, "labels": LABELS, "alignments": first.replace("00000", "*")}[parcel.kind]


def _results(parcel: Parcel) -> list[dict[str, Any]]:
    """Evaluations as the hub's model-index has them; accuracies are shares of one."""
    return [
        {
            "task": {"type": "video-classification"},
            "dataset": {"type": found["name"], "name": found["name"], "split": found["split"]},
            "metrics": [
                {"type": "accuracy", "name": name, "value": round(found[key], 4)}
                for name, key in (("top-1", "top1"), (f"top-{found['top5_k']}", "top5"))
            ],
        }
        for found in _evaluations(parcel)
    ]


def _evaluations(parcel: Parcel) -> list[dict[str, Any]]:
    from adapter.artifact import evaluation_name

    pattern = evaluation_name("*")
    files = [content for name, content in parcel.files.items() if fnmatchcase(name, pattern)]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if isinstance(file, Path)]


def _run(parcel: Parcel, repo_id: str) -> str:
    manifest, config = parcel.manifest, parcel.manifest["config"]
    form = (
        f"`model={config.get('model')}`, queries `{config.get('queries')}`, context `{config.get('context')}`"
    )
    sections = {
        "What it is": "A video adapter of the method Align before Adapt (ALT, CVPR 2024, "
        f"[arXiv {PAPER}](https://arxiv.org/abs/{PAPER})), trained with an open toolkit: aligned entities of a text "
        "corpus ask, the video answers, and a cosine with the texts of any labels decides. "
        f"Form: {form}, {config.get('blocks')} blocks. "
        f"Trained on {len(manifest['labels'])} classes: {_listed(manifest['labels'])}.",
        "Intended use": "Naming actions in short clips among labels of one's own, and research on what such a "
        "prediction hangs on. Not for surveillance, nor for decisions about people. What it learned from is told by "
        "the hashes below; whatever its videos lack or favour, it will, too.",
        "Results": _result_table(parcel),
        "How to load it": _run_loading(parcel, repo_id),
        "Model behind it": _model(manifest["model"], parcel),
        "Where it is from": _origin(manifest),
        "Files": _files(parcel),
    }
    return _page(f"{repo_id.partition('/')[2]}: a video adapter", sections)


def _listed(labels: list[str]) -> str:
    return ", ".join(labels[:12]) + (" ..." if len(labels) > 12 else "")


def _result_table(parcel: Parcel) -> str:
    found = _evaluations(parcel)
    if not found:
        return "No evaluation is in this folder."
    lines = [
        "| evaluation | split | candidates | videos | top-1, % | mean class, % |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one['name']} | {one['split']} | {one['classes']} | {one['n']} | {100 * one['top1']:.1f} | "
        f"{100 * one['mean_class_accuracy']:.1f} |"
        for one in found
    ]
    trained = sum(one["n_trained_on"] for one in found)
    if trained:
        lines.append(f"\n{trained} of the scored videos trained the model or chose its epoch.")
    return "\n".join(
        [*lines, "\nFrom `eval-*.json` in this folder, each with intervals, classes and counts."]
    )


def _run_loading(parcel: Parcel, repo_id: str) -> str:
    pulled = f"```bash\nalt pull hf://{repo_id} --out run\n```"
    if parcel.config is None:
        return (
            f"{pulled}\n\nThis is the adapter alone: `adapter eval run` and `adapter predict run` score alignments "
            "that `aligner run` made with the same model."
        )
    return (
        f'```python\nimport alt\n\nmodel = alt.load("hf://{repo_id}")\n'
        'print(model.predict("clip.mp4", labels=["riding a bicycle", "playing a drum"]).label)\n```\n\n'
        f"On the command line `alt predict clip.mp4 --labels labels.txt --run hf://{repo_id}`. "
        f"For the stages:\n\n{pulled}"
    )


def _corpus(parcel: Parcel, repo_id: str) -> str:
    from corpus_builder.artifact import ENTITIES, open_corpus
    from corpus_builder.card import data_card

    return data_card(open_corpus(parcel.source), ENTITIES, _pulled(repo_id, "corpus", _OPEN_CORPUS))


_OPEN_CORPUS = (
    'import corpus_builder\n\ncorpus = corpus_builder.open("corpus")\nprint(corpus.entities.head())'
)
_OPEN_LABELS = """from pathlib import Path

from adapter.labels import open_labels

labels = open_labels(Path("labels"))
print(labels.labels[:3], labels.embeddings.shape)"""
_OPEN_ALIGNMENTS = """from pathlib import Path

from adapter.alignments import open_alignments

alignments = open_alignments(Path("alignments"))
video = next(alignments.read(sorted(alignments.index)[:1]))
print(video.embeddings.shape)  # frames, regions + 1 (0 = class token), dim"""


def _labels(parcel: Parcel, repo_id: str) -> str:
    manifest = parcel.manifest
    sections = {
        "What is in it": f"{manifest['labels']} class names, each with the mean unit embedding of its prompts in the "
        "space of a CLIP model.",
        "How to load it": _pulled(repo_id, "labels", _OPEN_LABELS),
        "Model behind it": _model(manifest["model"], parcel),
        "Where it is from": _origin(manifest),
        "Files": _files(parcel),
    }
    return _page(f"{manifest['labels']} class names and their embeddings", sections)


def _alignments(parcel: Parcel, repo_id: str) -> str:
    from aligner.artifact import all_failures, schema_of
    from aligner.card import data_card

    manifest = parcel.manifest
    videos = manifest["videos"] - len(all_failures(parcel.source))
    rows = videos * manifest["frames"] * (manifest["regions"] + 1) * len(manifest.get("views", [None]))
    loading = _pulled(repo_id, "alignments", _OPEN_ALIGNMENTS)
    return data_card(
        manifest,
        schema_of(manifest),
        [],
        rows=rows,
        videos=videos,
        planned=manifest["videos"],
        loading=loading,
    )


def _pulled(repo_id: str, out: str, code: str) -> str:
    return f"```bash\nalt pull hf://datasets/{repo_id} --out {out}\n```\n\n```python\n{code}\n```"


def _model(model: dict[str, Any], parcel: Parcel) -> str:
    weights = "none: RANDOM WEIGHTS" if model.get("random_weights") else model.get("pretrained") or "its own"
    own = (
        f" Its files are in `{MODEL}/`." if any(name.startswith(f"{MODEL}/") for name in parcel.files) else ""
    )
    return (
        f"`{model['name']}` (open_clip), weights: {weights}, SHA-256 `{model['weights_sha256']}`, {model['embed_dim']} "
        f"dimensions; it keeps its own licence.{own} Other weights are refused."
    )


def _origin(manifest: dict[str, Any]) -> str:
    told = json.dumps(manifest.get("inputs", {}), indent=2, sort_keys=True, ensure_ascii=False)
    config = json.dumps(manifest["config"], indent=2, sort_keys=True, ensure_ascii=False)
    return (
        f"Made by {manifest['package']}; fingerprint `{manifest['fingerprint']}`. From:\n\n```json\n{told}\n```\n\n"
        f"Settings:\n\n```json\n{config}\n```"
    )


def _files(parcel: Parcel) -> str:
    lines = ["| file | bytes | SHA-256 |", "|---|---|---|"]
    for name, content in parcel.files.items():
        known = parcel.manifest["files"].get(name, {}).get("sha256")
        lines.append(f"| `{name}` | {size_of(content)} | {f'`{known}`' if known else ''} |")
    return "\n".join(lines) + "\n\n`manifest.json` holds the hashes; `alt pull` verifies them."


def _page(title: str, sections: dict[str, str]) -> str:
    return "\n\n".join([f"# {title}", *(f"## {head}\n\n{text}" for head, text in sections.items())]) + "\n"
