"""Senses weighed by a model: CLIP's text tower, or a sequence-to-sequence model tuned for the task (T5).

Both score every candidate's gloss against the text that the phrase was found in; the best is the sense, its lead
the margin. Neither has been run on real weights where this was written: the tests prove the wiring on tiny ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from corpus_builder.config import CorpusError
from corpus_builder.disambiguate import Choice
from corpus_builder.embed import TextEncoder
from corpus_builder.wordnet import Sense

T5_DEFAULT = "jpwahle/t5-large-word-sense-disambiguation"
"""A T5 tuned to pick the description of a word in a sentence (Wahle et al., 2021); fetched at first use."""

Scorer = Callable[[str, str, Sequence[Sense]], list[float]]
"""(phrase, text it was found in, candidate senses) -> one score per sense, higher is better."""


def choose(scorer: Scorer, phrase: str, text: str, senses: Sequence[Sense]) -> Choice:
    """The sense of the highest score; a tie goes to the more frequent. A single sense is not scored."""
    if len(senses) < 2:
        return Choice(senses[0] if senses else None, 0.0, senses=tuple(senses))
    scores = scorer(phrase, text, senses)
    best = max(range(len(senses)), key=lambda i: (scores[i], -i))
    rest = max(score for i, score in enumerate(scores) if i != best)
    return Choice(senses[best], scores[best] - rest, tuple(scores), tuple(senses))


class ClipScorer:
    """Cosine of ``"phrase: gloss"`` and the text in a CLIP text tower's space."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._vectors: dict[str, np.ndarray] = {}

    def __call__(self, phrase: str, text: str, senses: Sequence[Sense]) -> list[float]:
        """See ``Scorer``; from -1 to 1."""
        glosses = [f"{sense.form}: {sense.gloss}" for sense in senses]
        missing = [one for one in dict.fromkeys([text, *glosses]) if one not in self._vectors]
        self._vectors.update(zip(missing, self._encoder.encode(missing), strict=True))
        return [float(self._vectors[gloss] @ self._vectors[text]) for gloss in glosses]


class T5Scorer:
    """Log-likelihood per token of each gloss as the answer to "which description fits?"."""

    def __init__(self, name: str = T5_DEFAULT, device: str = "cpu") -> None:
        self._model, self._tokenizer = _load_t5(name)
        self._model = self._model.eval().to(device)
        self._device = device

    @torch.inference_mode()
    def __call__(self, phrase: str, text: str, senses: Sequence[Sense]) -> list[float]:
        """See ``Scorer``; at most 0."""
        question = self._encode(t5_question(phrase, text, senses))
        state = self._model.get_encoder()(**question)
        scores = []
        for sense in senses:
            answer = self._encode(sense.gloss)["input_ids"]
            logits = self._model(
                encoder_outputs=state, attention_mask=question["attention_mask"], labels=answer
            ).logits
            likely = logits.float().log_softmax(-1).gather(-1, answer[..., None])
            scores.append(float(likely.mean()))
        return scores

    def _encode(self, text: str) -> dict[str, Any]:
        tokens = self._tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
        return {name: tokens[name].to(self._device) for name in ("input_ids", "attention_mask")}


def t5_question(phrase: str, text: str, senses: Sequence[Sense]) -> str:
    """The prompt: the question, the glosses, and the text with the phrase marked by quotes."""
    marked = text.replace(phrase, f'" {phrase} "', 1) if phrase in text else f'{text} (" {phrase} ")'
    glosses = ", ".join(f'" {sense.gloss} "' for sense in senses)
    return (
        f'question: which description describes the word " {phrase} " best in the following context? '
        f"descriptions: [ {glosses} ] context: {marked}"
    )


def _load_t5(name: str) -> tuple[Any, Any]:
    try:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
    except ImportError:
        raise CorpusError(
            "--strategy t5 needs transformers: pip install 'alt-toolkit[wsd]', or choose --strategy extended"
        ) from None
    try:
        return (
            AutoModelForSeq2SeqLM.from_pretrained(name, use_safetensors=True),
            AutoTokenizer.from_pretrained(name),
        )
    except (OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CorpusError(
            f"--sense-model '{name}' could not be loaded: {first}. Without a network, give a folder with the"
            " model, its safetensors and its tokenizer, or choose --strategy extended"
        ) from None
