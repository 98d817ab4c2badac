"""Evaluation protocols as data: which lists, which candidates, which runs, which statistic.

A recipe has a version: whatever changes a number it prints raises it. Sources are the papers and the public
repositories that each sentence names.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from adapter.config import AdapterError, did_you_mean
from adapter.lists import SHOTS, SPLITS

DRAWS = 10


@dataclass(frozen=True)
class Draw:
    """The ``index``-th published draw of half of the classes, floor(C / 2) of them.

    ``numpy``: the first half of ``RandomState(index).permutation(C)`` (Text4Vis, BIKE). ``python``: the first
    half of a shuffled ``range(C)``, all draws from one stream ``Random(2023)`` (Open-VCLIP).
    """

    scheme: str
    index: int


@dataclass(frozen=True)
class Part:
    """One evaluation: the videos of the lists ``test`` among all their classes.

    None of the videos of ``train`` may be tested. ``shots`` is how many of each class they must hold (0: any).
    ``run`` is the place of its run among those that the recipe names. ``group`` is what its figure counts
    towards where the statistic tells groups apart.
    """

    name: str
    test: tuple[str, ...]
    train: tuple[str, ...] = ()
    draw: Draw | None = None
    run: int = 0
    shots: int = 0
    group: str = ""


@dataclass(frozen=True)
class Recipe:
    """A named protocol.

    ``statistic``: ``single`` (one part), ``mean`` (mean and population standard deviation over the parts) or
    ``harmonic`` (2BN / (B + N) of the mean over base parts and the mean over novel parts). ``runs`` says what
    each run given is, where parts have runs of their own; a recipe without takes one or more, seeds alike.
    ``views`` is frames and clips x crops as published; views are averaged as probabilities. ``source`` names
    the classes that published runs were trained on. ``plain_templates`` refuses classes in brackets.
    ``as_numbered`` takes class numbers as the published file of classes has them, errors included. ``probe``
    scores with a linear classifier for each part, fitted to z of its training videos.
    """

    name: str
    about: str
    parts: tuple[Part, ...]
    statistic: str
    views: str
    version: int = 1
    runs: tuple[str, ...] = ()
    source: str = ""
    plain_templates: bool = False
    as_numbered: bool = False
    probe: bool = False

    def lists(self) -> tuple[str, ...]:
        """Names of all lists it reads, each once."""
        return tuple(dict.fromkeys(name for part in self.parts for name in (*part.test, *part.train)))


def find(name: str) -> Recipe:
    """The recipe of a name; an unknown one raises ``AdapterError``."""
    if name not in RECIPES:
        raise AdapterError(
            f"no protocol '{name}'{did_you_mean(name, RECIPES)}; `adapter protocol list` shows all"
        )
    return RECIPES[name]


def _supervised() -> Iterator[Recipe]:
    lists = {
        "": ("ViFi-CLIP's 19,877", ("k400_base_test", "k400_novel_test")),
        "-text4vis": ("Text4Vis' 19,796", ("k400_text4vis",)),
    }
    for suffix, (whose, names) in lists.items():
        yield Recipe(
            f"k400-supervised{suffix}",
            f"Kinetics-400, {whose} validation videos; links rot, so papers are not on equal videos",
            (Part("validation", names),),
            "single",
            "16 or 32 frames, 3 x 1 (ALT); 4 x 3 (X-CLIP, ViFi-CLIP)",
        )
    yield Recipe(
        "ssv2-supervised",
        "Something-Something v2, validation videos; no plain horizontal flip, templates without brackets",
        (Part("validation", ("ssv2_test",)),),
        "single",
        "16 or 32 frames over the whole video, 1 x 3 or 3 x 1",
        plain_templates=True,
    )
    for data in ("ucf101", "hmdb51"):
        parts = tuple(
            Part(f"split {i}", (f"{data}_test{i}",), (f"{data}_train{i}",), run=i - 1) for i in SPLITS
        )
        yield Recipe(
            f"{data}-supervised",
            "three official splits, a run trained on each training split; mean and standard deviation",
            parts,
            "mean",
            "as trained",
            runs=tuple(f"trained on split {i}" for i in SPLITS),
        )
        yield Recipe(
            f"{data}-linear-probe",
            "a linear classifier on z of one frozen run, fitted to each official training split",
            parts,
            "mean",
            "as trained (ALT)",
            runs=tuple(f"probe of split {i}" for i in SPLITS),
            probe=True,
        )


def _zero_shot() -> Iterator[Recipe]:
    full = {
        "ucf101": ("ucf101_train1", "ucf101_test1"),
        "hmdb51": ("hmdb51_full",),
        "hmdb51-5100": ("hmdb51_train1", "hmdb51_test1"),
    }
    who = {"numpy": "Text4Vis, BIKE", "python": "Open-VCLIP, FROSTER"}
    views = {"numpy": "8 to 32 frames, 1 x 1 or 4 x 3", "python": "8 frames of stride 16, 3 x 1"}
    of = {"numpy": ("ucf101", "hmdb51"), "python": ("ucf101", "hmdb51-5100")}
    for scheme, names in of.items():
        for name in names:
            yield Recipe(
                f"{name.split('-')[0]}-ep1-{scheme}",
                f"zero-shot EP1: ten draws of half of the classes, all their videos ({who[scheme]})",
                tuple(Part(f"draw {i}", full[name], draw=Draw(scheme, i)) for i in range(DRAWS)),
                "mean",
                views[scheme],
                source="k400",
            )
    for name, lists in full.items():
        yield Recipe(
            f"{name.split('-')[0]}-ep2{'-5100' if '5100' in name else ''}",
            "zero-shot EP2: all classes, all videos"
            + {"hmdb51-5100": " of split 1 (Open-VCLIP, FROSTER)", "hmdb51": " (Text4Vis, BIKE)"}.get(
                name, ""
            ),
            (Part("all videos", lists),),
            "single",
            "8 to 32 frames, 1 x 1, 3 x 1 or 4 x 3",
            source="k400",
        )
    for data in ("ucf101", "hmdb51"):
        parts = tuple(Part(f"split {i}", (f"{data}_test{i}",)) for i in SPLITS)
        about = "zero-shot EP3: the three official test splits, all classes (X-CLIP, ViFi-CLIP, ALT)"
        views_alt = "32 frames, 1 x 1"
        yield Recipe(f"{data}-ep3", about, parts, "mean", views_alt, source="k400")
        if data == "hmdb51":
            swapped = "; classes as the published file numbers them: kick and kick ball, sword and sword "
            yield Recipe(
                f"{data}-ep3-as-numbered",
                f"{about}{swapped}exercise are swapped",
                parts,
                "mean",
                views_alt,
                source="k400",
                as_numbered=True,
            )
    yield from _k600()


def _k600() -> Iterator[Recipe]:
    families = {
        "vifi": ("ViFi-CLIP, OST; mostly videos of the training folder", "32 frames, 1 x 1"),
        "text4vis": ("Text4Vis, BIKE", "8 to 32 frames, 1 x 1 or 4 x 3"),
        "open_vclip": ("Open-VCLIP, FROSTER; validation videos only", "8 frames of stride 16, 3 x 1"),
    }
    for family, (who, views) in families.items():
        yield Recipe(
            f"k600-{family.replace('_', '-')}",
            f"zero-shot Kinetics-600: three draws of 160 of the classes that Kinetics-400 lacks ({who}); other "
            "videos than the other families', so figures do not compare",
            tuple(Part(f"split {i}", (f"k600_{family}_{i}",)) for i in SPLITS),
            "mean",
            views,
            source="k400",
        )


def _few_shot() -> Iterator[Recipe]:
    for data, test in (("hmdb51", "hmdb51_test1"), ("ucf101", "ucf101_test1"), ("ssv2", "ssv2_test")):
        for shots in SHOTS:
            on = "validation videos" if data == "ssv2" else "test split 1"
            why = "" if data == "ssv2" else ", since the published training lists overlap with splits 2 and 3"
            part = Part(on, (test,), (f"{data}_few_shot_{shots}",), shots=shots)
            yield Recipe(
                f"{data}-few-shot-{shots}",
                f"trained on {shots} videos of each class, tested on {on} alone{why}",
                (part,),
                "single",
                "32 frames, 1 x 1",
                plain_templates=data == "ssv2",
            )


def _base_to_novel() -> Iterator[Recipe]:
    for data in ("k400", "hmdb51", "ucf101", "ssv2"):
        parts = tuple(
            Part(
                f"{half} s{i}", (f"{data}_{half}_test",), (f"{data}_base_train{i}",), None, i - 1, group=half
            )
            for half in ("base", "novel")
            for i in SPLITS
        )
        yield Recipe(
            f"{data}-base-to-novel",
            "16 videos of each base class, three runs (s1 to s3); each half of the classes among itself; "
            "harmonic mean of the means (ViFi-CLIP)",
            parts,
            "harmonic",
            "32 frames, 1 x 1",
            runs=tuple(f"trained on s{i}" for i in SPLITS),
            plain_templates=data == "ssv2",
        )


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for group in (_supervised, _zero_shot, _few_shot, _base_to_novel)
    for recipe in group()
}
