"""What a caption claims to show: everyday objects by the words that name them.

CHAIR (Rohrbach et al. 2018, section 3) counts objects that a caption names and the picture does not show. Flickr8k has
no object annotations, so what a picture shows is what any of its five captions names; an object that five people left
out counts as invented. The figures are therefore upper bounds, and comparable between systems judged here only.
"""

import re
from collections.abc import Sequence
from typing import Final

import numpy as np

from pocketlens.distill.evaluation.metrics import Bootstrap, Figure

__all__ = ["OBJECTS", "hallucination", "named"]

OBJECTS: Final[dict[str, frozenset[str]]] = {
    name: frozenset((name, *words.split()))
    for name, words in {
        "person": "people persons man men woman women boy boys girl girls child children kid kids guy guys lady ladies "
        "toddler toddlers baby babies adult adults teenager teenagers male female couple crowd group family person's "
        "player players someone somebody girl's boy's man's woman's gentleman bride groom",
        "dog": "dogs puppy puppies poodle poodles retriever retrievers greyhound greyhounds shepherd terrier collie "
        "bulldog hound hounds rottweiler doberman dachshund",
        "cat": "cats kitten kittens",
        "horse": "horses pony ponies",
        "cow": "cows bull bulls cattle calf",
        "sheep": "lamb lambs goat goats",
        "bird": "birds seagull seagulls duck ducks goose geese pigeon pigeons",
        "ball": "balls football soccer basketball baseball volleyball softball",
        "frisbee": "frisbees disc",
        "bike": "bikes bicycle bicycles bicyclist bicyclists cyclist cyclists biker bikers bmx motorcycle motorcycles "
        "motorcyclist motorcyclists motorbike motorbikes motocross",
        "car": "cars truck trucks jeep van taxi suv vehicle vehicles",
        "bus": "buses",
        "train": "trains subway",
        "boat": "boats canoe canoes kayak kayaks raft rafts sailboat ship kayaker",
        "plane": "planes airplane airplanes aircraft",
        "skateboard": "skateboards skateboarder skateboarders skateboarding",
        "surfboard": "surfboards surfer surfers surfing surfs",
        "snowboard": "snowboards snowboarder snowboarders snowboarding",
        "ski": "skis skier skiers skiing",
        "sled": "sleds sledding toboggan",
        "water": "ocean sea lake river pool pond wave waves stream creek puddle waterfall surf fountain swims swimming "
        "shore",
        "snow": "snowy ice snowbank",
        "sand": "sandy beach beaches dune dunes",
        "grass": "grassy lawn field fields meadow pasture yard park backyard",
        "tree": "trees forest woods branch branches wooded log logs",
        "mountain": "mountains hill hills hillside mountainside cliff cliffs peak",
        "rock": "rocks rocky boulder boulders stone stones",
        "street": "streets road roads sidewalk sidewalks pavement",
        "building": "buildings house houses skyscraper store",
        "bench": "benches",
        "chair": "chairs couch sofa seat seats",
        "table": "tables desk",
        "bed": "beds",
        "fence": "fences fenced railing",
        "wall": "walls",
        "swing": "swings",
        "slide": "slides",
        "trampoline": "trampolines",
        "tent": "tents",
        "umbrella": "umbrellas",
        "hat": "hats cap caps helmet helmets beanie",
        "glasses": "sunglasses goggles",
        "shirt": "shirts t-shirt sweater sweatshirt jersey jerseys",
        "jacket": "jackets coat coats vest",
        "dress": "dresses skirt skirts",
        "trousers": "pants jeans shorts trunks",
        "camera": "cameras",
        "guitar": "guitars",
        "flag": "flags",
        "stick": "sticks",
        "rope": "ropes",
        "toy": "toys",
        "flower": "flowers",
        "bag": "bags backpack backpacks purse",
        "bottle": "bottles",
        "food": "cake pizza sandwich",
        "drink": "drinks beer",
    }.items()
}
"""Objects by name with every word that names them; no word names two."""

_OBJECT_OF: Final = {word: name for name, words in OBJECTS.items() for word in words}
_WORD: Final = re.compile(r"[a-z]+(?:['-][a-z]+)*")


def named(text: str) -> frozenset[str]:
    """Return the objects that `text` names."""
    return frozenset(_OBJECT_OF[word] for word in _WORD.findall(text.lower()) if word in _OBJECT_OF)


def hallucination(
    captions: Sequence[str], references: Sequence[Sequence[str]], *, bootstrap: Bootstrap
) -> dict[str, Figure]:
    """Return `hallucination` (CHAIR_i: invented / named objects) and `hallucination_captions` (CHAIR_s), in [0, 1]."""
    told = [named(text) for text in captions]
    shown = [frozenset().union(*map(named, texts)) for texts in references]
    invented = np.array([len(a - b) for a, b in zip(told, shown, strict=True)], dtype=np.float64)
    return {
        "hallucination": bootstrap.ratio(invented, np.array([len(a) for a in told], dtype=np.float64)),
        "hallucination_captions": bootstrap.mean((invented > 0).astype(np.float64)),
    }
