import pytest

from corpus_builder.config import (
    BODY_PARTS,
    CorpusConfig,
    CorpusError,
    check_templates,
    did_you_mean,
)


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
        ("precision", "bf61", "--precision.*did you mean 'bf16'"),
        ("entity_text", "{unit}", "--entity-text is '{unit}'"),
        ("entity_text", "{unit} {unit}: {description}", "--entity-text"),
        ("entity_text", "{unit}: {gloss}", "expected {unit} and {description} once each"),
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
