"""A small noun lexicon in WordNet's database format, and a tagger, both written into an NLTK data folder.

The glosses are our own. Besides the demo world's entities the lexicon holds rival senses of the ambiguous words
(bat, racket, drum, kite, trunk of a case ...), so that disambiguation has something to decide. Files are written as
``wndb(5WN)`` describes them, for the reader in NLTK that also reads Princeton WordNet.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.toyworld.vocabulary import ACTIONS, BODY_PARTS, OBJECTS, SCENES, with_article

LEXNAMES = (
    "adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition "
    "noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object "
    "noun.person noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape "
    "noun.state noun.substance noun.time verb.body verb.change verb.cognition verb.communication verb.competition "
    "verb.consumption verb.contact verb.creation verb.emotion verb.motion verb.perception verb.possession "
    "verb.social verb.stative verb.weather adj.ppl"
).split()

# lemma(s, first is the synset's name) | lexicographer file | hypernym's first lemma | gloss.
# The order of a lemma's lines is the order of its senses, most frequent first, as in WordNet.
_TABLE = """
entity | Tops | | anything that can be seen or named
object,thing | Tops | entity | something solid that can be touched
artifact | artifact | object | an object made by people for a use
toy,plaything | artifact | artifact | an artifact that children play with
sports_equipment | artifact | artifact | equipment used to play a sport or a game
instrument,musical_instrument | artifact | artifact | a device on which a player makes music
tool | artifact | artifact | a thing held in the hand to do work
container | artifact | artifact | a thing to put or carry other things in
vehicle | artifact | artifact | something to ride on or to move loads with
furniture | artifact | artifact | furnishings of a room such as seats and tables
device | artifact | artifact | a thing made to do one job
animal | animal | entity | a living creature that can move by itself
bird | animal | animal | a feathered animal with wings that flies
plant | plant | entity | a living thing with roots and leaves
food | food | entity | something to eat
place | location | entity | a part of the land or of a building
activity | act | entity | something that people do
occasion,event | event | entity | something that happens at a time
noise | event | occasion | a loud sound that disturbs
body_part | body | entity | a part of the body of a person or an animal
person | person | entity | a human being
ball | artifact | toy | a round orange ball with black lines that is thrown, caught, bounced or kicked
ball | event | occasion | a formal evening party with dancing
frisbee | artifact | toy | a light flat plastic disc that is thrown and caught
balloon | artifact | toy | a thin pink rubber bag full of air with a string that floats
box | artifact | container | a brown cardboard container with flat sides and a lid
box | plant | plant | an evergreen shrub with small leaves grown as a hedge
cup | artifact | container | a small red container with a handle for hot drinks
cup | possession | entity | a prize given to the winner of a contest
suitcase | artifact | container | a case with a handle for clothes on a journey
bottle | artifact | container | a tall green glass container with a narrow neck
book | communication | entity | a written work that has been published
book | artifact | artifact | printed pages bound together, held open and read
phone,telephone | artifact | device | a thin device with a screen held in the hand to talk and call
chair | artifact | furniture | a wooden seat for one person with a back and legs
chair,chairperson | person | person | the person who leads a meeting
cart | artifact | vehicle | a green basket on wheels that is pushed or pulled
barbell | artifact | sports_equipment | a metal bar with heavy plates at both ends that is lifted
ladder | artifact | tool | two long yellow rails with steps between them to climb up and down
ladder | state | entity | an ordering of people by rank
bicycle,bike | artifact | vehicle | a vehicle with two wheels and pedals that is ridden
skateboard | artifact | vehicle | a short purple board with small wheels that is ridden standing
horse | animal | animal | a large brown animal with a mane that is ridden
horse | artifact | sports_equipment | a padded block on legs that gymnasts vault over
dog | animal | animal | a tame animal with hanging ears that barks and is walked on a lead
dog | person | person | a dull or unlucky fellow
cat | animal | animal | a small grey furry animal with pointed ears and whiskers
guitar | artifact | instrument | a wooden instrument with six strings that is played with the fingers
drum | artifact | container | a metal barrel to store oil
drum | artifact | instrument | a round red instrument with a white skin that is played with sticks
trumpet | artifact | instrument | a brass instrument with valves and a wide bell that is played by blowing
violin,fiddle | artifact | instrument | a small brown wooden instrument that is played with a bow
bat | animal | animal | a small flying animal that sleeps in the day and hunts at night
bat | artifact | sports_equipment | a smooth wooden club for swinging at a ball in a game
racket | event | noise | a loud and unpleasant noise
racket,racquet | artifact | sports_equipment | an oval frame with strings and a handle for swinging at a ball
hammer | artifact | tool | a tool with a heavy metal head for swinging at nails
broom | artifact | tool | a brush of straw on a long stick to sweep the floor
kite | animal | bird | a bird of prey that has a forked tail
kite | artifact | toy | a toy of colourful cloth for flying in the wind on a string
umbrella | artifact | device | a folding purple canopy on a stick that is lifted against the rain
lamp | artifact | furniture | a light with a pale shade on a stand
bucket,pail | artifact | container | an open grey metal container with a handle to carry water
flower | plant | plant | the colourful petals of a plant on a green stem
flower | time | entity | the best time of a life
apple | food | food | a round green fruit with a short stem
park | location | place | a public garden with trees, grass and a path
beach | location | place | the sand along the shore of the sea
street | artifact | place | a road with grey buildings on both sides
kitchen | artifact | place | a room with tiles and cupboards where meals are cooked
gym,gymnasium | artifact | place | a hall with a wooden floor for sports
stage | artifact | place | a platform with lights and curtains where players perform
stage | time | entity | a section of a process
snow | phenomenon | entity | white flakes of frozen water on mountains and fields
library | artifact | place | a room with shelves full of books
head | body | body_part | the top part of the body with face and hair
head | person | person | a person who is in charge
torso,trunk | body | body_part | the middle part of the body in a shirt
arm | body | body_part | the limb from the shoulder to the hand in a sleeve
arm,weapon | artifact | device | a thing used to fight
hand | body | body_part | the end of the arm with fingers that holds things
leg | body | body_part | the limb from the hip to the foot in trousers
leg | location | entity | a section of a journey
foot | body | body_part | the end of the leg in a shoe
foot | quantity | entity | a unit of length of twelve inches
"""


@dataclass(frozen=True)
class Synset:
    """One line of the table: its lemmas, lexicographer file, the name of its hypernym and the gloss."""

    lemmas: tuple[str, ...]
    lexname: str
    hypernym: str
    gloss: str


def synsets() -> list[Synset]:
    """All synsets in table order."""
    rows = [[cell.strip() for cell in line.split("|")] for line in _TABLE.strip().splitlines()]
    return [
        Synset(tuple(lemmas.split(",")), f"noun.{lexname}", up, gloss) for lemmas, lexname, up, gloss in rows
    ]


def gloss_of(entity: str) -> str:
    """The gloss of a demo entity's visual sense (the one that can be drawn)."""
    visual = ("artifact", "animal", "body", "plant", "food", "location", "phenomenon")
    for synset in synsets():
        if entity in synset.lemmas and synset.lexname.removeprefix("noun.") in visual:
            if (entity, synset.hypernym) not in _RIVALS:
                return synset.gloss
    raise KeyError(f"{entity!r} is not in the demo lexicon")


_RIVALS = {
    ("box", "plant"),
    ("drum", "container"),
    ("bat", "animal"),
    ("kite", "bird"),
    ("horse", "sports_equipment"),
}
_RIVALS |= {("arm", "device")}


def _data_line(
    synset: Synset, offset: int, offsets: dict[int, int], index: int, all_synsets: list[Synset]
) -> str:
    """A line of ``data.noun``; eight-digit offsets keep its length the same in both passes."""
    lemmas = " ".join(f"{lemma} 0" for lemma in synset.lemmas)
    pointers = []
    for other, target in enumerate(all_synsets):
        if target.lemmas[0] == synset.hypernym and _first(all_synsets, synset.hypernym) == other:
            pointers.append(f"@ {offsets.get(other, 0):08d} n 0000")
        if target.hypernym == synset.lemmas[0] and _first(all_synsets, synset.lemmas[0]) == index:
            pointers.append(f"~ {offsets.get(other, 0):08d} n 0000")
    links = f"{len(pointers):03d} " + "".join(f"{pointer} " for pointer in pointers)
    number = LEXNAMES.index(synset.lexname)
    return f"{offset:08d} {number:02d} n {len(synset.lemmas):02x} {lemmas} {links}| {synset.gloss}  \n"


def _first(all_synsets: list[Synset], lemma: str) -> int:
    return next(index for index, synset in enumerate(all_synsets) if synset.lemmas[0] == lemma)


def _layout(all_synsets: list[Synset]) -> tuple[dict[int, int], str]:
    """Byte offsets of all synsets and the text of ``data.noun``: one pass to measure, one to write."""
    offsets: dict[int, int] = {}
    text = ""
    for _ in range(2):
        text = "  1 A small lexicon of the demo world, in the format of a WordNet database.  \n"
        position = len(text)
        for index, synset in enumerate(all_synsets):
            line = _data_line(synset, position, offsets, index, all_synsets)
            offsets[index] = position
            text += line
            position += len(line)
    return offsets, text


def write_wordnet(folder: Path) -> None:
    """Write the lexicon as a WordNet database under ``folder`` (``corpora/wordnet`` of an NLTK data folder)."""
    folder.mkdir(parents=True, exist_ok=True)
    all_synsets = synsets()
    offsets, data = _layout(all_synsets)
    senses: dict[str, list[int]] = {}
    for index, synset in enumerate(all_synsets):
        for lemma in synset.lemmas:
            senses.setdefault(lemma, []).append(index)
    index_lines, sense_lines, counts = [], [], []
    for lemma in sorted(senses):
        places = " ".join(f"{offsets[index]:08d}" for index in senses[lemma])
        n = len(senses[lemma])
        index_lines.append(f"{lemma} n {n} 2 @ ~ {n} {n} {places}  \n")
        for rank, index in enumerate(senses[lemma], start=1):
            key = f"{lemma}%1:{LEXNAMES.index(all_synsets[index].lexname):02d}:{rank:02d}::"
            frequency = max(0, 10 - 3 * rank)
            sense_lines.append(f"{key} {offsets[index]:08d} {rank} {frequency}\n")
            counts.append(f"{frequency} {key} {rank}\n")
    (folder / "data.noun").write_text(data)
    (folder / "index.noun").write_text("".join(index_lines))
    (folder / "index.sense").write_text("".join(sorted(sense_lines)))
    (folder / "cntlist.rev").write_text("".join(sorted(counts, key=lambda line: line.split()[1])))
    (folder / "noun.exc").write_text("feet foot\n")
    kinds = {"noun": 1, "verb": 2, "adj": 3, "adv": 4}
    lex = [f"{i:02d}\t{name}\t{kinds[name.split('.')[0]]}\n" for i, name in enumerate(LEXNAMES)]
    (folder / "lexnames").write_text("".join(lex))
    for part in ("verb", "adj", "adv"):
        for name in (f"data.{part}", f"index.{part}", f"{part}.exc"):
            (folder / name).write_text("")


def tagged_sentences() -> list[list[tuple[str, str]]]:
    """Sentences of the demo world with Penn Treebank tags, known by construction."""
    sentences = []
    for action in ACTIONS:
        verb, *particle = action.verb.split()
        article = with_article(action.object).split()[0]
        words = [(verb, "VBG"), *((word, "RP") for word in particle), (article, "DT"), (action.object, "NN")]
        sentences.append(words)
        sentences.append([("a", "DT"), ("person", "NN"), ("is", "VBZ"), *words, (".", ".")])
        for scene in SCENES:
            place = [("in", "IN"), ("the", "DT"), (scene, "NN")]
            sentences.append([("a", "DT"), ("person", "NN"), *words, *place])
    for name in OBJECTS:
        for scene in SCENES:
            sentences.append([("a", "DT"), (name, "NN"), ("in", "IN"), ("the", "DT"), (scene, "NN")])
        sentences.append([(name, "NN"), ("and", "CC"), ("an", "DT"), ("apple", "NN")])
    for part in BODY_PARTS:
        sentences.append([("the", "DT"), (part, "NN"), ("of", "IN"), ("a", "DT"), ("person", "NN")])
    return sentences


def write_tagger(folder: Path) -> None:
    """Train NLTK's perceptron tagger on the demo world's sentences and save it where NLTK looks for its own."""
    import random

    from nltk.tag import PerceptronTagger

    tagger = PerceptronTagger(load=False)
    state = random.getstate()
    random.seed(0)  # the trainer shuffles with the global generator
    try:
        tagger.train(tagged_sentences(), nr_iter=5)
    finally:
        random.setstate(state)
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / "averaged_perceptron_tagger_eng"
    files = {"weights": tagger.model.weights, "tagdict": tagger.tagdict, "classes": sorted(tagger.classes)}
    for name, content in files.items():
        stem.with_name(f"{stem.name}.{name}.json").write_text(json.dumps(content, sort_keys=True))


def write_nltk_data(folder: Path) -> Path:
    """Write lexicon and tagger as an NLTK data folder and return it."""
    write_wordnet(folder / "corpora" / "wordnet")
    write_tagger(folder / "taggers" / "averaged_perceptron_tagger_eng")
    return folder
