import pytest

from corpus_builder.config import (
    BODY_PARTS,
    TEMPLATES,
    CorpusConfig,
    CorpusError,
    check_templates,
    did_you_mean,
)


def test_templates_are_many_distinct_and_hold_the_name_once():
    assert len(TEMPLATES) >= 16 and len(set(TEMPLATES)) == len(TEMPLATES)
    assert check_templates(TEMPLATES) == TEMPLATES


@pytest.mark.parametrize("template", ["a video", "{} and {}", "a {name} video"])
def test_a_template_without_one_place_is_refused(template):
    with pytest.raises(CorpusError, match="--template"):
        check_templates([template])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("taggers", "spcy", r"--taggers is 'spcy'.*did you mean 'spacy'"),
        ("strategy", "leks", r"--strategy.*did you mean 'lesk'"),
        ("min_count", 0, "--min-count is 0"),
        ("max_words", 0, "--max-words is 0"),
        ("spacy_model", "", "--spacy-model is empty"),
    ],
)
def test_a_bad_option_is_named(field, value, message):
    with pytest.raises(CorpusError, match=message):
        CorpusConfig(**{field: value})


def test_body_parts_are_distinct():
    names = [name for name, _ in BODY_PARTS]
    assert len(set(names)) == len(names) and {"head", "hand", "foot", "eye"} <= set(names)


def test_did_you_mean_is_silent_when_nothing_is_near():
    assert did_you_mean("zzz", ["name", "label"]) == ""
