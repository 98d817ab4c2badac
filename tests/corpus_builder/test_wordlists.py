import pytest

from corpus_builder.config import CorpusError
from corpus_builder.wordlists import WordList, read_list


def test_phrases_synsets_and_remarks(tmp_path):
    path = tmp_path / "deny.txt"
    path.write_text(
        "\ufeffTennis  racket # the thing\n\n# nothing\nbat.n.01\nst. bernard\n", encoding="utf-8"
    )
    assert read_list(path, "--deny") == WordList(
        frozenset({"tennis racket", "st. bernard"}), frozenset({"bat.n.01"})
    )
    assert read_list(None, "--deny") == WordList()


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"# only a remark\n", "--deny deny.txt holds no entry"), (b"\xff\xfe", "--deny deny.txt is not UTF-8")],
)
def test_bad_lists_are_told(tmp_path, data, message):
    path = tmp_path / "deny.txt"
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=message):
        read_list(path, "--deny")
    with pytest.raises(CorpusError, match="expected a text file"):
        read_list(tmp_path / "none.txt", "--deny")
