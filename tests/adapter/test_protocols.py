"""Every recipe on synthetic scores, against a reference that knows the miniature lists without reading them."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from adapter.artifact import scores_table
from adapter.config import AdapterError
from adapter.lists import open_list
from adapter.protocols import compare, drawn, open_lists, part_videos, run_protocol
from adapter.recipes import RECIPES, Draw, Part, find
from adapter.scoretable import ScoreTable, read_scores_file
from adapter.tabulate import comparison_words, recipe_words, result_words, table_of


def scores_of(mini, data, seed=0, name="model"):
    """Random scores that lean to the truth, for every video of a data set over its classes and two more."""
    rng = np.random.default_rng(seed)
    names = [f"new deed {c}" for c in range(1, 7)] if data == "k600" else mini.classes[data]
    videos = [(mini.video(label, i), label) for label in names for i in range(mini.per_class)]
    videos = [videos[i] for i in rng.permutation(len(videos))]
    labels = [*rng.permutation(names).tolist(), "unheard of", "something else"]
    scores = rng.normal(size=(len(videos), len(labels)))
    scores[np.arange(len(videos)), [labels.index(label) for _, label in videos]] += 1.0
    return ScoreTable(name, tuple(video for video, _ in videos), tuple(labels), scores[None])


def naive_top1(mini, table, names, places):
    """Share of videos (class, number) whose best candidate is their class, one by one."""
    right = []
    for name in names:
        for i in places:
            row = dict(
                zip(table.labels, table.scores[0][table.video_ids.index(mini.video(name, i))], strict=True)
            )
            right.append(max(names, key=lambda label: row[label]) == name)
    return float(np.mean(right))


def expected_parts(mini, name, tables):
    """Top-1 of every part of a recipe by its name, as method.md 3 describes it."""
    data, protocol = name.split("-", 1)
    names = mini.classes.get(data, [])
    two = range(mini.tested)
    split = lambda i: range(mini.tested * (i - 1), mini.tested * i)  # noqa: E731
    top1 = lambda table, own, places: naive_top1(mini, table, own, places)  # noqa: E731
    if protocol in ("supervised", "linear-probe") and data in ("ucf101", "hmdb51"):
        return [top1(tables[i - 1], names, split(i)) for i in (1, 2, 3)]
    if protocol.startswith("base-to-novel"):
        base = [names[c] for c in mini.base[data]]
        novel = [label for label in names if label not in base]
        return [top1(table, own, two) for own in (base, novel) for table in tables]
    if protocol.startswith("ep1"):
        # HMDB51's classes are drawn from in alphabetical order, whatever the file of classes has.
        order = sorted(names) if data == "hmdb51" else names
        return [top1(tables[0], half, range(mini.per_class)) for half in draws(protocol, order)]
    if protocol.startswith("ep3"):
        return [top1(tables[0], names, split(i)) for i in (1, 2, 3)]
    if data == "k600":
        places = {"vifi": lambda i: range(i, i + 2), "text4vis": lambda i: range(i, i + 3)}
        where = places.get(protocol, lambda i: [9])
        own = lambda i: [f"new deed {c}" for c in range(i, i + 4)]  # noqa: E731
        return [top1(tables[0], own(i), where(i)) for i in (1, 2, 3)]
    sizes = {"ep2": mini.per_class, "ep2-5100": mini.per_class, "supervised-text4vis": mini.tested + 1}
    return [top1(tables[0], names, range(sizes.get(protocol, mini.tested)))]


def draws(protocol, order):
    if protocol == "ep1-numpy":
        for i in range(10):
            yield [order[c] for c in np.random.RandomState(i).permutation(len(order))[: len(order) // 2]]
        return
    import random

    random.seed(2023)
    for _ in range(10):
        places = list(range(len(order)))
        random.shuffle(places)
        yield [order[c] for c in places[: len(order) // 2]]


@pytest.mark.parametrize("name", [name for name in RECIPES if "as-numbered" not in name])
def test_every_recipe_against_one_by_one(mini, name):
    recipe = RECIPES[name]
    data = name.split("-")[0]
    tables = [scores_of(mini, data, seed, f"run {seed}") for seed in range(len(recipe.runs) or 1)]
    result = run_protocol(recipe, tables, mini.root)
    expected = expected_parts(mini, name, tables)
    assert [part["top1"] for part in result["parts"]] == pytest.approx(expected)
    table = result["table"]["top1"]
    if recipe.statistic == "harmonic":
        base, novel = np.mean(expected[:3]), np.mean(expected[3:])
        assert table["base"]["mean"] == pytest.approx(base)
        assert table["novel"]["std"] == pytest.approx(np.std(expected[3:]))
        assert table["harmonic_mean"] == pytest.approx(2 * base * novel / (base + novel))
    else:
        assert table["mean"] == pytest.approx(np.mean(expected))
        assert table["std"] == pytest.approx(np.std(expected)) and table["n"] == len(expected)
    assert not any(part["missing"] or part["failed"] for part in result["parts"])
    low, high = result["top1_interval"]
    assert low <= (table.get("harmonic_mean") or table["mean"]) <= high
    assert all(len(file["sha256"]) == 64 for file in result["lists"])
    assert result["protocol"] in result_words(result) and recipe.about in recipe_words(name, mini.root)


def test_half_class_draws_are_the_published_ones(shared):
    """Draws 0 and 9 of Open-VCLIP for HMDB51, and draw 9 for UCF101, as that repository lists them."""
    hmdb = open_list(shared / "data", "hmdb51_test1").classes.names
    assert [hmdb[c] for c in drawn(Draw("python", 0), 51)] == (
        "brush hair,chew,climb,draw sword,dribble,drink,fall floor,golf,handstand,hit,hug,laugh,pullup,punch,"
        "pushup,ride bike,ride horse,run,situp,somersault,stand,swing baseball,talk,throw,turn"
    ).split(",")
    assert [hmdb[c] for c in drawn(Draw("python", 9), 51)] == (
        "cartwheel,clap,climb,dive,fall floor,fencing,handstand,hit,hug,kick,kiss,laugh,pullup,punch,push,"
        "pushup,ride bike,ride horse,shoot bow,situp,sword,sword exercise,turn,walk,wave"
    ).split(",")
    lists = open_lists(find("ucf101-ep1-python"), shared / "data")
    part = part_videos(find("ucf101-ep1-python").parts[0], lists)
    assert len(part.classes) == 50 and len(part.videos) == 6483
    assert sum(len(lists[name].videos) for name in part_names(lists)) == 13320
    np.random.seed(3)  # noqa: NPY002 - the form in which Text4Vis draws
    assert drawn(Draw("numpy", 3), 101) == sorted(np.random.permutation(101)[:50])  # noqa: NPY002


def part_names(lists):
    return ("ucf101_train1", "ucf101_test1")


def test_sizes_of_recipes_on_the_official_lists(shared):
    sizes = {
        "hmdb51-ep3": [(1530, 51)] * 3,
        "k600-vifi": [(14084, 160), (13978, 160), (14136, 160)],
        "k400-supervised": [(19877, 400)],
        "hmdb51-ep2-5100": [(5100, 51)],
        "hmdb51-base-to-novel": [(780, 26)] * 3 + [(750, 25)] * 3,
        "ucf101-few-shot-16": [(3783, 101)],
    }
    for name, expected in sizes.items():
        recipe = find(name)
        lists = open_lists(recipe, shared / "data")
        found = [part_videos(part, lists) for part in recipe.parts]
        assert [(len(part.videos), len(part.classes)) for part in found] == expected
        assert all(len(set(part.keys)) == len(part.keys) for part in found)


def test_missing_and_failed_videos_are_named_and_never_replaced(mini):
    whole = scores_of(mini, "hmdb51")
    gone, broken = mini.video("kick", 0), mini.video("sword", 1)
    kept = [i for i, video in enumerate(whole.video_ids) if video not in (gone, broken)]
    table = replace(
        whole,
        video_ids=tuple(whole.video_ids[i] for i in kept),
        scores=whole.scores[:, kept],
        failed={broken: "truncated", "other.avi": "no stream"},
    )
    result = run_protocol(find("hmdb51-few-shot-2"), [table], mini.root)
    (part,) = result["parts"]
    assert (part["listed"], part["n"]) == (12, 10)
    assert part["missing"] == [gone] and part["failed"] == {broken: "truncated"}
    assert part["top1_missing_wrong"] == pytest.approx(part["top1"] * 10 / 12)
    assert f"1 missing: {gone}" in result_words(result) and f"{broken} (truncated)" in result_words(result)
    with pytest.raises(
        AdapterError, match="has none of the 12 videos of part test split 1, such as v00_brush"
    ):
        run_protocol(
            find("hmdb51-few-shot-2"),
            [replace(table, video_ids=("x",), scores=table.scores[:, :1])],
            mini.root,
        )


def test_order_and_other_videos_change_nothing(mini):
    table = scores_of(mini, "ucf101")
    order = np.random.default_rng(5).permutation(len(table.video_ids))
    shuffled = replace(
        table,
        video_ids=(*(f"folder/{table.video_ids[i]}" for i in order), "other.mp4"),
        scores=np.concatenate([table.scores[:, order], table.scores[:, :1]], axis=1),
    )
    first, second = (run_protocol(find("ucf101-ep3"), [t], mini.root) for t in (table, shuffled))
    assert first == second


def test_labels_are_matched_by_name_however_they_are_spelled(mini):
    table = scores_of(mini, "ucf101")
    spelled = replace(
        table, labels=tuple(label.replace("PullUps", "pull_ups").lower() for label in table.labels)
    )
    name = find("ucf101-ep2")
    assert (
        run_protocol(name, [table], mini.root)["table"] == run_protocol(name, [spelled], mini.root)["table"]
    )
    lacking = replace(
        table, labels=tuple("Pull Up" if label == "PullUps" else label for label in table.labels)
    )
    with pytest.raises(AdapterError, match=r"1 of 7 candidates, such as 'PullUps' \(did you mean 'Pull Up'"):
        run_protocol(name, [lacking], mini.root)


def test_numbers_as_published_swap_two_pairs_of_hmdb51(mini):
    """A perfect model is right on all videos by name, and wrong on the four swapped classes by number."""
    table = scores_of(mini, "hmdb51")
    truth = [next(n for n in table.labels if f"_{n.replace(' ', '_')}_u" in v) for v in table.video_ids]
    perfect = np.array([[float(label == own) for label in table.labels] for own in truth])
    table = replace(table, scores=perfect[None])
    assert run_protocol(find("hmdb51-ep3"), [table], mini.root)["table"]["top1"]["mean"] == 1.0
    result = run_protocol(find("hmdb51-ep3-as-numbered"), [table], mini.root)
    assert result["table"]["top1"]["mean"] == pytest.approx(2 / 6)
    assert "errors included" in result["notes"][-1]


def test_seen_and_unseen_classes(mini):
    table = scores_of(mini, "ucf101")
    part = run_protocol(find("ucf101-ep2"), [table], mini.root)["parts"][0]
    # Without a run, what Kinetics-400 names counts as seen: archery, pull ups, shot put.
    assert part["seen"]["classes"] == 3 and part["unseen"]["classes"] == 4
    part = run_protocol(find("ucf101-ep2"), [replace(table, train_labels=("yo yo",))], mini.root)["parts"][0]
    assert part["seen"]["classes"] == 1 and part["seen"]["n"] == mini.per_class
    few = run_protocol(find("ucf101-few-shot-2"), [table], mini.root)["parts"][0]
    assert "seen" not in few and "seen" not in few["per_class"][0]


def test_unknown_training_classes_are_said(own_mini):
    (own_mini.root / "labels/kinetics_400_labels.csv").unlink()
    result = run_protocol(find("ucf101-ep2"), [scores_of(own_mini, "ucf101")], own_mini.root)
    assert "seen" not in result["parts"][0]
    assert result["notes"] == [
        "ucf101_train1 lists 126 videos, as published it has 9537",
        "ucf101_test1 lists 14 videos, as published it has 3783",
        "seen and unseen classes are not told apart for model: the lists lack the classes of k400",
    ]


def test_training_videos_are_refused_in_the_test(own_mini):
    table = scores_of(own_mini, "hmdb51")
    trained = replace(table, trained_on=frozenset({f"train/{own_mini.video('kick', 1)[:-4]}.mp4", "z.mp4"}))
    with pytest.raises(
        AdapterError, match="1 of its 12 videos trained model or chose its epoch, such as .'v01_kick_u"
    ):
        run_protocol(find("hmdb51-few-shot-2"), [trained], own_mini.root)
    allowed = frozenset({own_mini.video("kick", 2), "z.mp4"})
    part = run_protocol(find("hmdb51-few-shot-2"), [replace(table, trained_on=allowed)], own_mini.root)[
        "parts"
    ][0]
    assert part["training"] == {"listed": 12, "run": 2, "both": 1}
    # The published few-shot lists hold videos of test splits 2 and 3.
    lists = open_lists(find("hmdb51-ep3"), own_mini.root)
    lists["hmdb51_few_shot_16"] = open_list(own_mini.root, "hmdb51_few_shot_16")
    with pytest.raises(
        AdapterError, match="12 of the 96 training videos of hmdb51_few_shot_16 .* are tested too"
    ):
        part_videos(Part("split 2", ("hmdb51_test2",), ("hmdb51_few_shot_16",)), lists)


def test_a_few_shot_list_with_another_number_of_shots_is_refused(own_mini):
    file = own_mini.root / "splits/few_shot/hmdb51_train1_few_shot_2.txt"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[1:]))
    with pytest.raises(AdapterError, match="should hold 2 videos of each class; it holds 1 of 'brush hair'"):
        open_lists(find("hmdb51-few-shot-2"), own_mini.root)


def test_novel_classes_must_be_new_to_the_run(mini):
    recipe = find("hmdb51-base-to-novel")
    tables = [
        replace(scores_of(mini, "hmdb51", s), train_labels=("Sword", "sword exercise")) for s in range(3)
    ]
    assert run_protocol(recipe, tables, mini.root)["table"]["top1"]["base"]["n"] == 3
    tables[1] = replace(tables[1], train_labels=("Sword", "Kick"))
    with pytest.raises(
        AdapterError, match="novel s2: model was trained on 1 of the novel classes, such as 'kick'"
    ):
        run_protocol(recipe, tables, mini.root)
    with pytest.raises(
        AdapterError, match="needs 3 runs in this order: trained on s1, trained on s2, .*; got 2"
    ):
        run_protocol(recipe, tables[:2], mini.root)


def test_templates_of_ssv2_come_without_brackets(mini):
    table = scores_of(mini, "ssv2")
    braced = replace(table, labels=tuple(label.replace("something", "[something]") for label in table.labels))
    with pytest.raises(AdapterError, match=r"templates in brackets, such as '.*\[something\]"):
        run_protocol(find("ssv2-supervised"), [braced], mini.root)


def test_labels_that_came_with_the_videos_check_the_numbers_of_the_list(own_mini):
    """A file of classes in another order cannot be told from Kinetics' file names, but from the alignments."""
    table = scores_of(own_mini, "k400")
    known = {own_mini.video("yoga", 0): "Yoga", own_mini.video("zumba", 0): "not a candidate"}
    run_protocol(find("k400-supervised-text4vis"), [replace(table, known=known)], own_mini.root)
    labels = own_mini.root / "labels/kinetics_400_labels.csv"
    labels.write_text(labels.read_text().replace("yoga", "X").replace("zumba", "yoga").replace("X", "zumba"))
    with pytest.raises(
        AdapterError, match="v00_yoga_u_nm.avi is 'zumba' by the list and 'Yoga' by the alignments"
    ):
        run_protocol(find("k400-supervised-text4vis"), [replace(table, known=known)], own_mini.root)


def test_bad_scores_are_refused(mini):
    table = scores_of(mini, "ssv2")
    with pytest.raises(AdapterError, match="model scores 1 videos twice, such as .'a'"):
        replace(table, video_ids=("a.avi", "a.mp4", *table.video_ids[2:]))
    with pytest.raises(AdapterError, match="has a class twice: Poking it, poking_it"):
        replace(table, labels=("Poking it", "poking_it", "a", "b", "c", "d"))
    scores = table.scores.copy()
    scores[0, 3, 2] = np.nan
    with pytest.raises(AdapterError, match="scores of 1 videos are not finite"):
        replace(table, scores=scores)
    video = mini.video("Poking it", 0)
    place = table.video_ids.index(mini.video("Poking it", 9))
    twice = replace(table, video_ids=(*table.video_ids[:place], "x/" + video, *table.video_ids[place + 1 :]))
    with pytest.raises(AdapterError, match="have one name, which the list has once"):
        run_protocol(find("ssv2-few-shot-2"), [twice], mini.root)
    with pytest.raises(AdapterError, match="no protocol 'ssv2-supervise'.*did you mean 'ssv2-supervised'"):
        find("ssv2-supervise")


def test_scores_from_files(tmp_path, mini):
    table = scores_of(mini, "ssv2")
    stored = scores_table(table.video_ids, table.labels, table.scores)
    pq.write_table(stored, tmp_path / "s.parquet")
    stored.to_pandas().to_csv(tmp_path / "s.csv", index=False)
    odds = np.exp(table.scores)
    chances = scores_table(table.video_ids, table.labels, odds / odds.sum(-1, keepdims=True))
    pq.write_table(chances, tmp_path / "p.parquet")
    found = [
        run_protocol(find("ssv2-supervised"), [read_scores_file(tmp_path / name)], mini.root)["parts"][0]
        for name in ("s.parquet", "s.csv", "p.parquet")
    ]
    assert found[0] | {"run": ""} == found[1] | {"run": ""}
    # Probabilities over more classes, restricted and normalised, are a softmax over the candidates.
    assert found[2]["top1"] == found[0]["top1"]
    assert found[2]["calibration"]["ece"] == pytest.approx(found[0]["calibration"]["ece"], abs=1e-5)
    (tmp_path / "bad.csv").write_text("video,a\nx,1\n")
    for name in ("bad.csv", "none.parquet"):
        with pytest.raises(
            AdapterError, match="it needs a column video_id and a column of numbers for each label"
        ):
            read_scores_file(tmp_path / name)


def test_views_are_averaged_among_the_candidates(tmp_path, mini):
    """Softmax over the candidates of a part, then the mean over views: other classes of the label set have no say."""
    first, second = (scores_of(mini, "hmdb51", seed) for seed in (0, 1))
    rows = [second.video_ids.index(video) for video in first.video_ids]
    other = second.scores[:, rows][..., second.columns(first.labels)]
    # The second view is all but sure of a class that is no candidate: over all labels it would not count.
    other[..., first.labels.index("unheard of")] += 20
    table = replace(first, scores=np.concatenate([first.scores, other]))
    result = run_protocol(find("hmdb51-base-to-novel"), [table] * 3, mini.root)
    half = [mini.classes["hmdb51"][c] for c in mini.base["hmdb51"]]
    places = [first.labels.index(name) for name in half]
    chances = np.exp(table.scores[..., places])
    best = (chances / chances.sum(-1, keepdims=True)).mean(0).argmax(-1)
    tested = [(mini.video(name, i), c) for c, name in enumerate(half) for i in range(mini.tested)]
    right = [best[first.video_ids.index(video)] == c for video, c in tested]
    assert result["parts"][0]["top1"] == np.mean(right)
    one = run_protocol(find("hmdb51-base-to-novel"), [first] * 3, mini.root)
    assert one["parts"][0]["per_class"] != result["parts"][0]["per_class"]
    # Files hold every view of a video, in any order of rows.
    stored = scores_table(table.video_ids, table.labels, table.scores)
    assert stored["view"].to_pylist()[:4] == [0, 1, 0, 1]
    mixed = stored.take(np.random.default_rng(0).permutation(len(stored)))
    mixed.to_pandas().to_csv(tmp_path / "s.csv", index=False)
    again = run_protocol(find("hmdb51-base-to-novel"), [read_scores_file(tmp_path / "s.csv")] * 3, mini.root)
    assert again["table"] == result["table"]
    pq.write_table(stored.slice(1), tmp_path / "gap.parquet")
    with pytest.raises(
        AdapterError, match="view must number the views of every video from 0 to 1, each once"
    ):
        read_scores_file(tmp_path / "gap.parquet")


def test_seeds_are_averaged_and_models_compared(mini):
    seeds = [scores_of(mini, "ucf101", s, f"seed {s}") for s in range(3)]
    recipe = find("ucf101-ep3")
    alone = [run_protocol(recipe, [table], mini.root)["table"]["top1"]["mean"] for table in seeds]
    result = run_protocol(recipe, seeds, mini.root)
    table = result["table"]["top1"]
    assert (table["mean"], table["std"]) == (pytest.approx(np.mean(alone)), pytest.approx(np.std(alone)))
    assert (table["n"], table["over"], len(table_of(result))) == (3, "runs", 1 + 9 + 1)
    worse = [replace(t, scores=-t.scores) for t in seeds]
    found = compare(recipe, seeds, worse, mini.root)
    expected = np.mean(alone) - run_protocol(recipe, worse, mini.root)["table"]["top1"]["mean"]
    assert found["difference"] == pytest.approx(expected) and found["interval"][0] > 0
    assert found["parts"]["split 1"]["sign_flip_p"] == 0.25 and found["parts"]["split 1"]["n"] == 14
    single = compare(recipe, seeds[:1], worse[:1], mini.root)
    assert set(single["parts"]["split 2"]["mcnemar"]) == {"only_first", "only_second", "p"}
    assert "McNemar p" in comparison_words(single) and "sign flips over 3 runs" in comparison_words(found)
    assert compare(recipe, seeds, seeds, mini.root)["interval"] == [0.0, 0.0]
    with pytest.raises(AdapterError, match="3 runs against 1; runs are compared in pairs"):
        compare(recipe, seeds, worse[:1], mini.root)
    place = seeds[0].video_ids.index(mini.video("Typing", 0))
    fewer = tuple("x" if i == place else video for i, video in enumerate(seeds[0].video_ids))
    with pytest.raises(AdapterError, match="1 videos are scored by one of the two models only"):
        compare(recipe, seeds[:1], [replace(seeds[0], video_ids=fewer)], mini.root)
