"""The page of ``alt explore``: Gradio components around ``explore.py``. Nothing is fetched from elsewhere."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from corpus_builder.search import Hit
from pipelines.errors import USER_ERRORS
from pipelines.explore import Explorer, Region, Sight, answer, effects, picture, region_at
from pipelines.report import ORIGINS
from pipelines.workflow import Say

HOST = "127.0.0.1"
SHOWN = 5  # labels of an answer
HEAD = ["entity", "cosine", "meaning"]
TABLE: dict[str, Any] = {
    "headers": HEAD,
    "column_widths": ["24%", "14%", "62%"],
    "wrap": True,
    "interactive": False,
}
KEPT_S = 3600  # how long a video that was dropped in is kept
ABOUT = (
    "# Explore\n**{run}**, {entities} entities. Every frame is cut into regions, and each region belongs to the entity "
    "whose text lies nearest to it. Switch entities off to see what the prediction rests on; click a region to see "
    "what it is near to."
)
# Fonts of the system: those of Gradio's themes come from elsewhere.
THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
# The model computes for one request at a time.
ALONE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "run", "api_visibility": "private"}


def serve(explorer: Explorer, port: int, open_page: bool, say: Say) -> None:
    """Show the page to this machine until Ctrl-C; ``OSError`` where the port is taken."""
    app = build(explorer)
    launch(app, port, open_page)
    say(f"http://{HOST}:{port}; Ctrl-C ends it")
    app.block_thread()


def launch(app: gr.Blocks, port: int | None, open_page: bool = False) -> str:
    """Start to serve, without waiting; returns the address."""
    _, address, _ = app.launch(
        server_name=HOST,
        server_port=port,
        inbrowser=open_page,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        theme=THEME,
    )
    return address


def build(explorer: Explorer) -> gr.Blocks:
    """The page; it is not served yet."""
    about = ABOUT.format(
        run=f"{explorer.source.layout.root.name}: {explorer.source.adapter}", entities=len(explorer.corpus)
    )
    with gr.Blocks(title="alt explore", analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)) as page:
        sight, chosen = gr.State(), gr.State()
        gr.Markdown(about)
        with gr.Row():
            with gr.Column():
                video = gr.Video(label="Video", sources=["upload"], height=240)
                typed = gr.Textbox(
                    "\n".join(explorer.train_labels),
                    label="Labels, one a line or with commas between them",
                    lines=4,
                    max_lines=8,
                )
                go = gr.Button("Look", variant="primary")
                notes = gr.Markdown()
                with gr.Row():
                    whole = gr.Label(label="Prediction", num_top_classes=SHOWN)
                    without = gr.Label(label="With what is switched on", num_top_classes=SHOWN)
            with gr.Column():
                frame = gr.Slider(1, 2, 1, step=1, label="Frame", interactive=True)
                image = gr.Image(label="Regions", interactive=False, buttons=["fullscreen"])
                told = gr.Markdown("Click a region.")
                near = gr.Dataframe(label="Entities of the corpus nearest to it", **TABLE)
        kept = gr.CheckboxGroup(
            label="Entities of the video, and by how much the best label's logit falls without each",
            show_select_all=True,
        )
        with gr.Row():
            query = gr.Textbox(label="Search the corpus", placeholder="something to ride on", submit_btn=True)
        hits = gr.Dataframe(label="Entities nearest to the text", **TABLE)

        do = Handlers(explorer)
        answers, shown = (
            (do.predict, [sight, kept], [whole, without]),
            (do.show, [sight, frame, kept, chosen], image),
        )
        looked = go.click(do.look, [video, typed, sight], [sight, kept, frame, chosen, notes], **ALONE)
        looked.success(*answers, **ALONE).success(*shown, **ALONE)
        kept.input(*answers, **ALONE).success(*shown, **ALONE)
        frame.input(do.forget, None, chosen, **ALONE).success(*shown, **ALONE)
        image.select(do.click, [sight, frame], [chosen, told, near], **ALONE).success(*shown, **ALONE)
        query.submit(do.search, query, hits, **ALONE)
    return page


class Handlers:
    """What happens on the page, in the form that Gradio wants."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer

    def look(self, file: str | None, typed: str, before: Sight | None) -> tuple[Any, ...]:
        """Align a new video; the same one again gets other labels only."""
        with _told():
            if file is None:
                raise gr.Error("Drop in a video first.", print_exception=False)
            labels = typed.replace("\n", ",").split(",")
            if before is not None and before.file == Path(file).resolve():
                sight = self.explorer.choose_labels(before, labels)
            else:
                sight = self.explorer.look(Path(file), labels)
            found = effects(sight)
        choices = [(f"{one.name} ({one.effect:+.2f})", one.entity_id) for one in found]
        frames = len(sight.card.times_s)
        boxes = gr.CheckboxGroup(choices=choices, value=[one.entity_id for one in found])
        notes = "\n\n".join(
            f"⚠ {escape(warning)}" for warning in (*sight.warnings, sight.card.note) if warning
        )
        return sight, boxes, gr.Slider(maximum=max(frames, 2), value=1), None, notes

    def predict(self, sight: Sight | None, kept: Sequence[int]) -> tuple[dict[str, float], dict[str, float]]:
        """Probabilities with all entities and with those that are kept."""
        if sight is None:
            return {}, {}
        found = answer(sight, _off(sight, kept))
        pairs = (found.probabilities, found.probabilities_without)
        before, after = (dict(zip(found.labels, shares, strict=True)) for shares in pairs)
        return before, after

    def show(
        self, sight: Sight | None, frame: float, kept: Sequence[int], chosen: int | None
    ) -> np.ndarray | None:
        """The frame with its regions."""
        if sight is None or not sight.card.frames:
            return None
        return picture(sight, _place(sight, frame), _off(sight, kept), chosen)

    def forget(self) -> None:
        """Another frame has other regions."""

    def click(self, sight: Sight | None, frame: float, event: gr.SelectData) -> tuple[Any, ...]:
        """The region under the pointer, and what it is near to."""
        with _told():
            if sight is None:
                raise gr.Error("Look at a video first.", print_exception=False)
            region = region_at(sight, _place(sight, frame), *event.index)
            near = self.explorer.search_region(sight, region.frame, region.region)
        return region.region, _words(region), _rows(near)

    def search(self, text: str) -> list[list[str]]:
        """Entities nearest to a text."""
        with _told():
            return _rows(self.explorer.search_text(text))


@contextmanager
def _told() -> Iterator[None]:
    """What a user can mend is told on the page."""
    try:
        yield
    except (*USER_ERRORS, OSError) as error:
        raise gr.Error(escape(str(error)), print_exception=False) from error


def _off(sight: Sight, kept: Sequence[int]) -> set[int]:
    return {*sight.places} - {*kept}


def _place(sight: Sight, frame: float) -> int:
    return min(int(frame), len(sight.card.times_s)) - 1


def _words(region: Region) -> str:
    entity, score = region.entities[0]
    origin = ORIGINS.get(entity.source, entity.source)
    meaning = f": {escape(entity.gloss)}" if entity.gloss else ""
    others = ", ".join(f"{escape(other.name)} {cosine:.3f}" for other, cosine in region.entities[1:])
    return (
        f"**{escape(entity.name)}** {score:.3f}{meaning} ({origin}). {region.patches} patches at "
        f"{region.time_s:.2f} s. Next: {others or 'none kept'}."
    )


def _rows(hits: Sequence[Hit]) -> list[list[str]]:
    return [[hit.name, f"{hit.cosine:.3f}", hit.gloss or ""] for hit in hits]
