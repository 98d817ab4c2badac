import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus_builder.config import CorpusConfig, CorpusError
from corpus_builder.senses import load_chooser
from corpus_builder.wordfile import Row, parse, read_words, told
from corpus_builder.wordnet import open_lexicon


@pytest.fixture(scope="module")
def words(shared):
    lexicon = open_lexicon(shared / "nltk_data")
    choose = load_chooser(lexicon, CorpusConfig())
    return lambda path, column=None, most=8: read_words(path, column, lexicon, choose, most)


def written(tmp_path, text, name="words.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("Traffic_Light", Row("traffic light")),
        ("tench, Tinca tinca", Row("tench", ("tinca tinca",))),
        ("bow_(decorative_ribbons)", Row("bow", (), "decorative ribbons")),
        ("horse\t a  large animal ", Row("horse", description="a large animal")),
        ("bat.n.05", Row(sense="bat.n.05")),
        ("n02139199", Row(sense="n02139199")),
        ("n01440764 tench, Tinca tinca", Row("tench", ("tinca tinca",), sense="n01440764")),
        ("n01440764,tench", Row("tench", sense="n01440764")),
        ("n01440764\ttench", Row("tench", sense="n01440764")),
        ("club\tbat.n.05", Row("club", sense="bat.n.05")),
        ("(what)", Row("(what)", (), "what")),
    ],
)
def test_forms_of_a_row(text, row):
    assert parse(text) == row


def test_without_senses_a_synset_is_a_word():
    assert parse("bat.n.05", senses=False) == Row("bat.n.05")
    assert parse("bat\tbat.n.05", senses=False) == Row("bat", description="bat.n.05")


@given(st.lists(st.binary(max_size=30).map(lambda raw: raw.translate(None, b"\r\n")), min_size=1))
def test_every_row_of_any_bytes_is_told_of_once(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("any") / "w.txt"
    path.write_bytes(b"apple\n" + b"\n".join(rows) + b"\n")
    found = read_words(path, None, None, None, 8)
    assert len(found) == len(rows) + 1
    for item in found:
        assert item.candidate.kept == (item.candidate.reason is None)
        assert not item.candidate.kept or item.name.strip()
    assert next(told(found)).startswith(f"{len(found)} rows, ")


@pytest.mark.shared
def test_class_names_of_imagenet_coco_and_lvis_get_their_senses(words, tmp_path):
    rows = {
        "n02139199": "bat.n.01",
        "n01440764 tench, Tinca tinca": "tench.n.01",
        "bat.n.05": "bat.n.05",
        "sax, saxophone": "sax.n.02",
        "bow_(decorative_ribbons)": "bow.n.08",
        "bow_(weapon)": "bow.n.04",
        "great white shark, white shark, man-eater": "great_white_shark.n.01",
        "black-and-tan coonhound": "black-and-tan_coonhound.n.01",
        "T-shirt": "jersey.n.03",
        "iPod": "ipod.n.01",
        "traffic light": "traffic_light.n.01",
        "hair drier": "hand_blower.n.01",
        "tv": "television_receiver.n.01",
        "teeth": "tooth.n.01",
        "sports ball": None,
        "wug": None,
    }
    found = words(written(tmp_path, "\ufeff" + "\n".join(rows) + "\n"))
    got = [item.choice.sense.name if item.choice.sense else None for item in found]
    assert dict(zip(rows, got, strict=True)) == rows
    assert [item.key for item in found][-2:] == ["sports ball", "wug"]
    assert [item.count for item in found] == [1] * len(rows)


@pytest.mark.shared
def test_rows_that_give_no_entity_are_counted_by_reason(words, tmp_path):
    text = (
        b"apple\n\nApple\nn99999999\nbat.n.77\n--\na b c d\nx\0y\ncaf\xe9\n"
        + b"w" * 3000
        + b"\n"
        + b"v" * 99999
        + b"\n"
    )
    found = words(written(tmp_path, text), most=3)
    assert [item.candidate.reason for item in found] == [
        None,
        "blank",
        None,
        "no such noun synset in WordNet",
        "no such noun synset in WordNet",
        "no word",
        "too many words",
        "NUL byte",
        "not UTF-8",
        "too long",
        "too long",
    ]
    lines = list(told(found))
    assert lines[0] == "11 rows, 2 kept, 1 of them duplicates" and "2 rows dropped: too long" in lines


@pytest.mark.shared
def test_the_same_words_from_every_format(words, tmp_path):
    names, columns = ["horse", "hot dog", "guitar"], {"name": None, "thing": "thing"}
    expected = [item.key for item in words(written(tmp_path, "\n".join(names)))]
    assert expected[0] == "horse.n.01"
    for header, column in columns.items():
        rows = [{header: name, "id": i} for i, name in enumerate(names)]
        csv = "\n".join([f"id,{header}", *(f"{row['id']},{row[header]}" for row in rows)])
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "w.parquet")
        for path in (
            written(tmp_path, csv, "w.csv"),
            written(tmp_path, "\n".join(map(json.dumps, rows)), "w.jsonl"),
            written(tmp_path, json.dumps({"info": 1, "categories": rows}), "w.json"),
            written(tmp_path, json.dumps(rows), "v.json"),
            tmp_path / "w.parquet",
        ):
            assert [item.key for item in words(path, column)] == expected, path.name
    for data in (names, dict(enumerate(names)), dict.fromkeys(names, ""), {"0": ["n02374451", "horse"]}):
        found = words(written(tmp_path, json.dumps(data), "u.json"))
        assert [item.key for item in found] == expected[: len(data)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("w.txt", "", "WORDS w.txt: the file is empty"),
        ("w.doc", "x", "got '.doc', expected a .txt"),
        ("w.csv", "nam,b\nx,y\n", "no column 'word or name or label or phrase or class' .did you mean 'nam'"),
        ("w.json", "3", "expected a list or a dict of words"),
        ("w.json", "[]", "got an empty list"),
        ("w.json", "[", "is not valid JSON"),
        ("w.parquet", "x", "is not a Parquet file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, text, message):
    with pytest.raises(CorpusError, match=message):
        read_words(written(tmp_path, text, name), None, None, None, 8)
    with pytest.raises(CorpusError, match="no such file"):
        read_words(tmp_path / "nothing.txt", None, None, None, 8)
