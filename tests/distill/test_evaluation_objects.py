import re
from pathlib import Path

import numpy as np
import pytest

from pocketlens.core.errors import DataError
from pocketlens.distill.data.sample import Sample
from pocketlens.distill.evaluation.metrics import Bootstrap, hallucination_figures
from pocketlens.distill.evaluation.objects import ObjectTable, object_table, read_object_table, true_kinds
from pocketlens.distill.evaluation.probes import Probe, affirmed, denied, draw_probes, probe_figures, probe_texts
from pocketlens.distill.evaluation.zero_shot import labels_of, read_class_prompts
from pocketlens.distill.scenes.truth import SYNONYMS, mentioned_kinds

TABLE = ObjectTable(
    {"dog": ["dog", "puppy"], "cat": ["cat"], "food": ["hot dog"], "bus": ["bus", "coach"], "apple": ["apple"]},
    apart=["cat flap"],
)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("A DOG, two cats!", {"dog", "cat"}),
        ("puppies on buses with coaches", {"dog", "bus"}),
        ("a hot dog", {"food"}),
        ("hot dogs and a dog", {"food", "dog"}),
        ("a cat flap", set()),
        ("dogma, concatenate, busy", set()),
        ("", set()),
    ],
)
def test_the_longest_name_wins_and_plurals_count(text: str, kinds: set[str]) -> None:
    assert TABLE.mentioned(text) == kinds


def test_two_classes_do_not_share_a_name() -> None:
    with pytest.raises(DataError, match=r"class wolf.*'puppies', which is in dog too"):
        ObjectTable({"dog": ["puppy"], "wolf": ["puppies"]})


def test_the_built_in_photo_table_is_sound() -> None:
    table = object_table("photo")
    assert 75 <= len(table.classes) <= 95
    for kind in table.classes:
        assert table.mentioned(f"there is a {table.name(kind)} here") == {kind}, kind
        assert re.fullmatch("[a-z]+(_[a-z]+)*", kind)
    sentence = "Two men in helmets ride horses past a hot dog stand while children throw frisbees to puppies"
    assert table.mentioned(sentence) == {"person", "helmet", "horse", "frisbee", "dog"}
    assert table.mentioned("a teddy bear near the train station") == set()
    assert table.mentioned("a couple of geese, some oxen and a bunch of cherries") == {"duck", "cow"}


def test_the_scenes_table_names_what_scenes_count() -> None:
    table = object_table("scenes")
    assert {kind: table.name(kind) for kind in SYNONYMS} == {kind: kind for kind in SYNONYMS}
    for kind, words in SYNONYMS.items():
        for word in words:
            assert table.mentioned(f"the {word}") == mentioned_kinds(f"the {word}") == {kind}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "format = 1",
        "format = 2\n[classes]\ndog = ['dog']",
        "format = 1\n[classes]\ndog = 3",
        "format = 1\n[x]\n",
        "{",
    ],
)
def test_a_malformed_table_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "table.toml").write_text(content)
    with pytest.raises(DataError, match=r"table\.toml"):
        read_object_table(tmp_path / "table.toml")
    with pytest.raises(DataError, match=r"missing\.toml"):
        object_table(str(tmp_path / "missing.toml"))


def test_chair_by_hand_with_human_captions_for_the_truth() -> None:
    samples = [
        Sample(id="1", image="1.jpg", captions=("a dog", "a puppy beside a bus")),
        Sample(id="2", image="2.jpg", captions=("a cat",)),
        Sample(id="3", image="3.jpg", captions=("the sky",)),
    ]
    truths = true_kinds(samples, TABLE)
    assert truths == [{"dog", "bus"}, {"cat"}, set()]
    captions = ["a dog and a puppy with a cat", "a cat", "blue"]
    figures = hallucination_figures(captions, truths, bootstrap=Bootstrap(3, seed=0), mentioned=TABLE.mentioned)
    assert figures["hallucination"].value == pytest.approx(1 / 3)  # dog, cat, cat: the first cat is invented
    assert figures["hallucination_captions"].value == pytest.approx(1 / 3)
    assert figures["missed"].value == pytest.approx(1 / 3)  # of dog, bus, cat the bus
    counted = [Sample(id="1", image="1.jpg", captions=("a dog",), kinds=("bus",))]
    assert true_kinds(counted, TABLE) == [{"bus"}]
    strange = [Sample(id="1", image="1.jpg", captions=("a dog",), kinds=("starship",))]  # no class of this table
    assert true_kinds(strange, TABLE) == [{"dog"}]


TRUTHS = [
    frozenset({"dog", "cat"}),
    frozenset({"dog", "cat"}),
    frozenset({"dog"}),
    frozenset({"bus", "apple"}),
    frozenset({"bus"}),
    frozenset(),
]
IDS = [f"test/{row}" for row in range(6)]


def test_probes_ask_for_what_is_there_and_for_what_is_not() -> None:
    probes = draw_probes(TRUTHS, ids=IDS, seed=3)
    for probe in probes:
        assert probe.present in TRUTHS[probe.picture]
        assert probe.absent not in TRUTHS[probe.picture]
    assert {probe.picture for probe in probes} == {0, 1, 2, 3, 4}
    by_way = {way: [p for p in probes if p.way == way] for way in ("random", "popular", "adversarial")}
    # 2 shows a dog alone: cats stand beside dogs most often; the most frequent absent object is a tie of cat and bus
    assert [p.absent for p in by_way["adversarial"] if p.picture == 2] == ["cat"]
    assert [p.absent for p in by_way["adversarial"] if p.picture == 4] == ["apple"]
    assert [p.absent for p in by_way["popular"] if p.picture == 4] == ["dog"]
    assert draw_probes(TRUTHS, ids=IDS, seed=3) == probes
    others = [draw_probes(TRUTHS, ids=IDS, seed=seed) for seed in range(4, 8)]
    assert any(other != probes for other in others)


def test_probes_of_a_picture_do_not_depend_on_its_place() -> None:
    turned = draw_probes(TRUTHS[::-1], ids=IDS[::-1], seed=3)
    back = {(IDS[5 - probe.picture], probe.way, probe.present, probe.absent) for probe in turned}
    assert back == {(IDS[p.picture], p.way, p.present, p.absent) for p in draw_probes(TRUTHS, ids=IDS, seed=3)}


def test_probe_sentences_have_the_right_article() -> None:
    assert affirmed(TABLE, "dog") == "there is a dog"
    assert affirmed(TABLE, "apple") == "there is an apple"
    assert denied(TABLE, "food") == "there is no hot dog"
    probes = [Probe(1, "random", "dog", "apple"), Probe(1, "popular", "dog", "cat")]
    assert probe_texts(probes, TABLE, 2) == [
        (),
        (
            "there is a dog", "there is no dog", "there is an apple", "there is no apple",
            "there is a cat", "there is no cat",
        ),
    ]  # fmt: skip


def test_probe_figures_by_hand() -> None:
    probes = [Probe(0, "random", "dog", "cat"), Probe(1, "random", "bus", "dog"), Probe(1, "random", "cat", "apple")]
    scores = [
        # yes to the dog, no to the cat
        {"there is a dog": -1.0, "there is no dog": -2.0, "there is a cat": -3.0, "there is no cat": -2.0},
        {
            "there is a bus": -5.0, "there is no bus": -4.0,  # a miss
            "there is a dog": -1.0, "there is no dog": -2.0,  # a false alarm, and more probable than the bus
            "there is a cat": -1.0, "there is no cat": -2.0,  # a hit
            "there is an apple": np.nan, "there is no apple": -9.0,  # did not fit: wrong
        },
    ]  # fmt: skip
    found = probe_figures(probes, scores, TABLE, bootstrap=Bootstrap(2, seed=0))
    values = {name.removeprefix("probe_random_"): f.value for name, f in found.items() if "random" in name}
    # hits 2 of 3, false alarms 2 of 3
    assert values == pytest.approx(
        {"accuracy": 3 / 6, "precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "yes": 4 / 6, "pairs": 1 / 3}
    )
    assert found["probe_popular_accuracy"].samples == 0


def test_zero_shot_prompts_and_labels_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "classes.toml"
    head = 'format = 1\ntemplates = ["a {}.", "one {}"]\n[classes]\ndog = ["dog", "puppy"]\ncat = ["cat"]\n'
    path.write_text(head)
    classes = read_class_prompts(path)
    assert classes.prompts["dog"] == ("a dog.", "one dog", "a puppy.", "one puppy")
    samples = [
        Sample(id="a", image="test/cat/1.jpg"),
        Sample(id="b", image="test/x/1.jpg", kinds=("dog",)),
        Sample(id="c", image="test/dog/1.jpg", kinds=("cat", "dog")),
        Sample(id="d", image="1.jpg"),
    ]
    assert labels_of(samples, classes).tolist() == [1, 0, -1, -1]
    path.write_text(head + '[labels]\nd = "dog"\n')
    assert labels_of(samples, read_class_prompts(path)).tolist() == [-1, -1, -1, 0]


@pytest.mark.parametrize(
    "content",
    [
        "",
        'format = 1\ntemplates = ["a dog"]\n[classes]\na = ["a"]\nb = ["b"]',
        'format = 1\ntemplates = ["{}"]\n[classes]\na = ["a"]',
        'format = 1\ntemplates = ["{}"]\n[classes]\na = ["a"]\nb = []',
        'format = 1\ntemplates = ["{}"]\n[classes]\na = ["a"]\nb = ["b"]\n[labels]\nx = "c"',
    ],
)
def test_malformed_classes_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "classes.toml").write_text(content)
    with pytest.raises(DataError, match=r"classes\.toml"):
        read_class_prompts(tmp_path / "classes.toml")
