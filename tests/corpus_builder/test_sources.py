import json
import string

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corpus_builder.config import CorpusError
from corpus_builder.sources import (
    clean_name,
    iter_captions,
    label_mentions,
    read_descriptions,
    read_expansions,
    read_labels,
)


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("YoYo", "yo yo"),
        ("brush_hair", "brush hair"),
        ("Blow-drying  hair", "blow drying hair"),
        ("TVShow", "tv show"),
        ("playing DVDs", "playing dvds"),
        ("BMX", "bmx"),
        ("UCF101 clip", "ucf101 clip"),
        ("passing American football (in game)", "passing american football (in game)"),
    ],
)
def test_known_names(given, cleaned):
    assert clean_name(given) == cleaned


NAMES = st.text(alphabet=string.ascii_letters + string.digits + " _-()'", max_size=40)


@given(NAMES)
def test_cleaning_keeps_every_letter_and_is_idempotent(name):
    cleaned = clean_name(name)
    assert clean_name(cleaned) == cleaned
    assert cleaned.replace(" ", "") == "".join(c for c in name if c not in " _-").lower()
    assert cleaned == " ".join(cleaned.split())


@given(st.lists(st.text(alphabet=string.ascii_lowercase, min_size=1, max_size=8), min_size=1, max_size=5))
def test_camel_case_and_underscores_clean_to_the_same_words(words):
    words = [word for word in words if len(word) > 1] or ["ab"]
    expected = " ".join(words)
    assert clean_name("".join(word.capitalize() for word in words)) == expected
    assert clean_name("_".join(words)) == expected


def test_three_formats_give_the_same_labels(tmp_path):
    names = ["ApplyEyeMakeup", "yo_yo", "walking the dog"]
    (tmp_path / "a.txt").write_text("\n".join(names) + "\n\n")
    (tmp_path / "a.csv").write_text("id,name\n" + "".join(f"{i},{name}\n" for i, name in enumerate(names)))
    (tmp_path / "a.json").write_text(json.dumps(names))
    read = [read_labels(tmp_path / f"a.{kind}").labels for kind in ("txt", "csv", "json")]
    assert read[0] == read[1] == read[2]
    assert [label.label for label in read[0]] == names
    assert [label.class_id for label in read[0]] == [0, 1, 2]


def test_csv_ids_and_a_chosen_column(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("﻿id,action\n7,surfing\n3,archery\n", encoding="utf-8")
    labels = read_labels(path, "action").labels
    assert [(label.class_id, label.label) for label in labels] == [(7, "surfing"), (3, "archery")]


def test_json_dict_gives_expansions_as_lists_or_strings(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"archery": ["bow", "target"], "surfing": "wave"}))
    file = read_labels(path)
    mentions = label_mentions(file)
    assert [(m.text, m.label, m.source) for m in mentions] == [
        ("archery", "archery", "label"),
        ("bow", "archery", "expansion"),
        ("target", "archery", "expansion"),
        ("surfing", "surfing", "label"),
        ("wave", "surfing", "expansion"),
    ]
    assert {m.context for m in mentions[:3]} == {"archery"}


def test_expansions_are_matched_by_label_or_by_class_id(tmp_path):
    (tmp_path / "labels.csv").write_text("id,name\n1,archery\n0,surfing\n")
    labels = read_labels(tmp_path / "labels.csv").labels
    (tmp_path / "by_id.json").write_text(json.dumps({"0": ["wave"], "1": ["bow"]}))
    (tmp_path / "by_name.json").write_text(json.dumps({"surfing": "wave", "archery": "bow"}))
    expected = {"surfing": ("wave",), "archery": ("bow",)}
    assert read_expansions(tmp_path / "by_id.json", labels) == expected
    assert read_expansions(tmp_path / "by_name.json", labels) == expected
    (tmp_path / "bad.json").write_text(json.dumps({"archer": "bow"}))
    with pytest.raises(CorpusError, match="'archer' .did you mean 'archery'"):
        read_expansions(tmp_path / "bad.json", labels)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "empty"),
        ("a.txt", "\n \n", "the list is empty"),
        ("a.txt", "run\njump\nrun\n", "'run' stands twice, as entries 1 and 3"),
        ("a.txt", "run\n---\n", "entry 2 .'---'. holds no name"),
        ("a.csv", "id,nmae\n0,run\n", "no column 'name or label' .did you mean 'nmae'..; it has id, nmae"),
        ("a.csv", "id,name\n", "the list is empty"),
        ("a.json", "[]", "the list is empty"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "3", "got a int, expected a list of names or a dict"),
        ("a.json", '{"run": 3}', "the value of 'run' is a int"),
        ("a.json", '{"0": ["bow"], "1": ["wave"]}', "keys are class ids.*--expansions a.json"),
        ("a.xlsx", "x", "'.xlsx', expected a .txt, .csv, .json, .jsonl or .parquet"),
    ],
)
def test_bad_label_files_are_explained(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(CorpusError, match=message):
        read_labels(tmp_path / name)


def test_missing_file_and_wrong_encoding(tmp_path):
    with pytest.raises(CorpusError, match="--labels .*nothing.csv: no such file"):
        read_labels(tmp_path / "nothing.csv")
    (tmp_path / "latin.txt").write_bytes("café\n".encode("latin-1"))
    with pytest.raises(CorpusError, match="not UTF-8"):
        read_labels(tmp_path / "latin.txt")


def test_unknown_label_column_lists_the_columns(tmp_path):
    (tmp_path / "a.csv").write_text("id,name\n0,run\n")
    with pytest.raises(
        CorpusError, match="no column 'nam' .did you mean 'name'..; it has id, name.*--label-column"
    ):
        read_labels(tmp_path / "a.csv", "nam")


def test_captions_from_three_formats(tmp_path):
    captions = ["a man rides a horse", "two dogs run"]
    (tmp_path / "c.txt").write_text("\n\n".join(captions))
    (tmp_path / "c.csv").write_text("id,caption\n" + "".join(f"{i},{c}\n" for i, c in enumerate(captions)))
    pq.write_table(pa.table({"text": [captions[0], None, captions[1]]}), tmp_path / "c.parquet")
    for kind in ("txt", "csv", "parquet"):
        assert list(iter_captions(tmp_path / f"c.{kind}")) == captions


def test_bad_captions_are_explained(tmp_path):
    (tmp_path / "c.parquet").write_bytes(b"PAR0 no")
    with pytest.raises(CorpusError, match="not a Parquet file"):
        list(iter_captions(tmp_path / "c.parquet"))
    (tmp_path / "c.txt").write_text("\n\n")
    with pytest.raises(CorpusError, match="holds no caption"):
        list(iter_captions(tmp_path / "c.txt"))


def test_suffixes_may_be_in_capitals(tmp_path):
    for name, content in (("A.TXT", "run\n"), ("A.CSV", "name\nrun\n"), ("A.JSON", '["run"]')):
        (tmp_path / name).write_text(content)
        assert [label.label for label in read_labels(tmp_path / name).labels] == ["run"]
    pq.write_table(pa.table({"text": ["a dog"]}), tmp_path / "C.PARQUET")
    assert (
        list(iter_captions(tmp_path / "C.PARQUET"))
        == list(iter_captions(tmp_path / "C.PARQUET"))
        == ["a dog"]
    )


@pytest.mark.parametrize(
    ("columns", "hint"), [("id,labels", "labels"), ("id,action", "action"), ("id,classname,x", "classname")]
)
def test_the_hint_looks_for_every_usual_name(tmp_path, columns, hint):
    (tmp_path / "a.csv").write_text(f"{columns}\n")
    with pytest.raises(CorpusError, match=f"did you mean '{hint}'"):
        read_labels(tmp_path / "a.csv")


def test_text_that_is_not_utf8_is_explained(tmp_path):
    (tmp_path / "c.txt").write_bytes("a dog\na café\n".encode("latin-1"))
    (tmp_path / "c.csv").write_bytes("caption\na café\n".encode("latin-1"))
    raw = pa.array(["a café".encode("latin-1")], pa.binary())
    pq.write_table(pa.table({"text": raw}), tmp_path / "c.parquet")
    for kind in ("txt", "csv", "parquet"):
        with pytest.raises(CorpusError, match="not UTF-8"):
            list(iter_captions(tmp_path / f"c.{kind}"))


def test_a_caption_column_without_text_is_explained(tmp_path):
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "c.parquet")
    with pytest.raises(CorpusError, match="column 'text' holds a int, expected text.*--caption-column"):
        list(iter_captions(tmp_path / "c.parquet"))


def test_cut_and_damaged_parquet_captions_are_explained(tmp_path):
    pq.write_table(pa.table({"text": [f"caption {i}" for i in range(9000)]}), tmp_path / "whole.parquet")
    data = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[: len(data) // 2])
    (tmp_path / "damaged.parquet").write_bytes(data[:4] + bytes(2000) + data[2004:])
    with pytest.raises(CorpusError, match="cut.parquet is not a Parquet file"):
        list(iter_captions(tmp_path / "cut.parquet"))
    with pytest.raises(CorpusError, match="damaged.parquet is cut or damaged"):
        list(iter_captions(tmp_path / "damaged.parquet"))


@pytest.mark.shared
def test_the_real_label_files_read(shared):
    labels = read_labels(shared / "data/labels/kinetics_400_labels.csv").labels
    assert len(labels) == 400 and labels[399].label == "zumba"
    expansions = read_expansions(shared / "data/descriptors/ost_k400_spatio_4.json", labels)
    assert expansions["abseiling"] == ("climber", "rope", "harness", "mountain")


def read_all(path, column=None):
    captions = iter_captions(path, column)
    return list(captions), dict(captions.skipped), captions.rows


def test_rows_that_hold_no_caption_are_counted_by_reason(tmp_path):
    path = tmp_path / "captions.txt"
    rows = [
        b"\xef\xbb\xbfa dog runs",
        b"",
        b"caf\xe9 noir",
        b"a\x00b",
        b"x" * 5_000_000,
        "\U0001f600".encode(),
    ]
    rows += [
        "\u05e9\u05dc\u05d5\u05dd".encode(),
        "a caf\u00e9 \U0001f600".encode(),
        b"a cat",
        b"two dogs",
        b"a hat",
    ]
    path.write_bytes(b"\n".join(rows) + b"\n")
    texts, skipped, total = read_all(path)
    assert texts == ["a dog runs", "a caf\u00e9 \U0001f600", "a cat", "two dogs", "a hat"]
    assert skipped == {"blank": 1, "not UTF-8": 1, "NUL byte": 1, "too long": 1, "no Latin letters": 2}
    assert total == len(rows)


def test_a_file_in_another_encoding_is_an_error_with_the_way_out(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes("ein M\u00e4dchen\nein Gr\u00fcnspan\n".encode("latin-1"))
    with pytest.raises(CorpusError, match="2 of the first 2 rows are not UTF-8.*iconv"):
        read_all(path)


def test_broken_rows_of_json_lines_and_csv_are_counted(tmp_path):
    lines = tmp_path / "captions.jsonl"
    lines.write_text('{"caption": "a dog"}\n{"caption": \n{"other": 1}\n{"caption": "a cat"}\n')
    texts, skipped, total = read_all(lines)
    assert texts == ["a dog", "a cat"] and sum(skipped.values()) == 2 and total == 4
    table = tmp_path / "captions.csv"
    table.write_text("id,caption\n1,a dog\n2\n3,a cat,too,many\n4,a hat\n")
    texts, skipped, total = read_all(table)
    assert texts == ["a dog", "a hat"] and skipped == {"ragged row": 2} and total == 4


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.sampled_from([".txt", ".csv", ".jsonl"]))
def test_any_bytes_are_captions_and_counts_or_a_clear_error(tmp_path, data, suffix):
    path = tmp_path / f"captions{suffix}"
    path.write_bytes((b"caption\n" if suffix == ".csv" else b"") + data)
    captions = iter_captions(path)
    seen = 0
    try:
        for text in captions:
            seen += 1
            assert text.strip() and "\x00" not in text and "\n" not in text
    except CorpusError as error:
        assert "captions" in str(error)
    else:
        assert seen + sum(captions.skipped.values()) == captions.rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "got an empty list, expected a dict of phrase -> description"),
        ("{}", "got an empty dict"),
        ('{"a": 1}', "the entry of 'a' is neither a text nor a dict"),
        ('{"a": " "}', "the entry of 'a' is neither"),
        ('{"a": {"explanations": ["x"]}}', "the entry of 'a' is neither"),
        ('{"a": {"looks": ["x"]}}', "the entry of 'a' is neither"),
        ('{"A b": "x", "a  B": "y"}', "'a b' stands twice"),
        ("{", "is not valid JSON"),
    ],
)
def test_descriptions_of_another_form_are_refused(text, message, tmp_path):
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(CorpusError, match=message):
        read_descriptions(tmp_path / "d.json")
    with pytest.raises(CorpusError, match="--descriptions .*no such file"):
        read_descriptions(tmp_path / "none.json")


def test_descriptions_are_texts_or_parts_of_an_answer(tmp_path):
    (tmp_path / "d.json").write_text(
        '{"Eye  Makeup": {"looks": "dark\\nlines", "sentence": "paint"}, "zumba": " a dance "}'
    )
    assert read_descriptions(tmp_path / "d.json") == {"eye makeup": "paint; dark lines", "zumba": "a dance"}
