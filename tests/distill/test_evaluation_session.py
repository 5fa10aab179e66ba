"""The harness from the command line to the page: real systems on scenes, and an oracle whose figures are known."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from typer.main import get_command

from pocketlens.commands import evaluating
from pocketlens.core.errors import BundleIncomplete, DataError
from pocketlens.core.preprocess import preprocess
from pocketlens.core.tokenizer import Tokenizer
from pocketlens.distill.bpe import train_bpe
from pocketlens.distill.data.sample import PictureFile, Sample
from pocketlens.distill.evaluation.answers import ask, load_answers
from pocketlens.distill.evaluation.judged import JudgedCaption, JudgedLens, JudgedStudent, JudgedTeachers, Scores
from pocketlens.distill.evaluation.metrics import Bootstrap
from pocketlens.distill.evaluation.questions import Questions, prepare_judge, prepare_questions
from pocketlens.distill.evaluation.report import failures, write_report
from pocketlens.distill.evaluation.scorecard import differences, right_captions, scorecard
from pocketlens.distill.evaluation.session import evaluate_subjects, file_name, read_split
from pocketlens.distill.evaluation.subjects import Opened, Subject, subjects_of
from pocketlens.distill.scenes import write_dataset
from pocketlens.distill.students.student import Student, preprocess_spec, save_student
from pocketlens.distill.teachers.hf_captioner import HfCaptioner
from pocketlens.runtime import load
from pocketlens.runtime.decoding import Decoding
from tests.distill import tiny

SENTENCES = (
    ("a dog on the grass", "one dog"),
    ("a cat on a sofa", "the cat"),
    ("two buses", "a bus and a bus"),
    ("a red car", "car"),
)


class Oracle:
    """Knows each picture by its name: right about all but what `lies` says."""

    captions_pictures = embeds = scores_texts = True

    def __init__(self, name: str, lies: dict[int, str] | None = None) -> None:
        self.name, self._lies, self.calls = name, lies or {}, 0

    def embed_images(self, paths: Sequence[PictureFile]) -> NDArray[np.float32]:
        self.calls += 1
        return np.eye(4, dtype=np.float32)[[_row(path) for path in paths]]

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = [next((row for row, own in enumerate(SENTENCES) if text in own), 0) for text in texts]
        return np.eye(4, dtype=np.float32)[rows]

    def captions(self, paths: Sequence[PictureFile]) -> list[JudgedCaption]:
        rows = [_row(path) for path in paths]
        return [
            JudgedCaption(self._lies.get(row, SENTENCES[row][0]), (), 0.1 if row in self._lies else 0.9) for row in rows
        ]

    def text_logprobs(self, paths: Sequence[PictureFile], texts: Sequence[Sequence[str]]) -> list[Scores]:
        answers = []
        for path, group in zip(paths, texts, strict=True):
            said = SENTENCES[_row(path)][0]
            answers.append(
                {text: -1.0 if (text.split()[-1] in said) == (" no " not in text) else -2.0 for text in group}
            )
        return answers


class Embedding(Oracle):
    captions_pictures = scores_texts = False


def _row(path: PictureFile) -> int:
    assert isinstance(path, Path)
    return int(path.stem)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for row in range(4):
        Image.fromarray(tiny.noise(1, 32, seed=row)[0]).save(root / f"{row}.png")
    samples = [Sample(id=f"test/{row}", image=f"{row}.png", captions=own) for row, own in enumerate(SENTENCES)]
    (root / "test.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, samples)) + b"\n")
    return root


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Sample]:
    return read_split(folder, "test")[0]


def _subject(system: Any, identity: str) -> Subject:
    return Subject(system.name, lambda: Opened(system, (identity,), system.name))


def _questions(samples: Sequence[Sample], **options: Any) -> Questions:
    return prepare_questions(samples, **options)


def test_a_perfect_system_has_perfect_figures(folder: Path, samples: list[Sample]) -> None:
    questions = _questions(samples)
    outcome = evaluate_subjects([_subject(Oracle("oracle"), "o")], samples, folder, questions)
    figures = outcome.cards[0].figures
    values = {name: figure.value for name, figure in figures.items()}
    for name in ("r1_i2t", "r1_t2i", "right", "probe_random_accuracy", "probe_popular_f1", "probe_adversarial_pairs"):
        assert values[name] == 1.0, name
    assert values["bleu4"] == pytest.approx(100.0, abs=0.01)
    assert values["rouge_l"] == pytest.approx(100.0)
    assert (values["hallucination"], values["missed"], values["aurc"]) == (0.0, 0.0, 0.0)
    assert values["ece"] == pytest.approx(0.1)  # always 0.9 sure, always right
    assert all(figure.low <= figure.high for figure in figures.values())
    assert outcome.cards[0].notes == (
        "Hallucination: the truth is what the human captions name, so that the figures are upper bounds.",
    )


def test_differences_are_paired_and_signed(folder: Path, samples: list[Sample]) -> None:
    liar = Oracle("liar", {1: "a dog and a zebra"})
    outcome = evaluate_subjects(
        [_subject(Oracle("oracle"), "o"), _subject(liar, "l")], samples, folder, _questions(samples)
    )
    [(name, found)] = outcome.differences.items()
    assert name == "liar - oracle"
    assert found["right"].value == -0.25
    assert found["hallucination_captions"].value == 0.25
    assert found["r1_i2t"].value == found["r1_i2t"].low == found["r1_i2t"].high == 0.0
    card = outcome.cards[1]
    assert card.figures["hallucination"].value == pytest.approx(2 / 5)  # dog, dog, zebra, bus, car
    assert (card.risk_coverage[0].risk, card.risk_coverage[-1].risk) == (0.0, 0.25)
    tags = failures(outcome.answers[1], _questions(samples))
    assert tags == [(), ("invented", "overlooked"), (), ()]


def test_figures_of_different_questions_do_not_compare(folder: Path, samples: list[Sample]) -> None:
    bootstrap = Bootstrap(4, seed=0)
    cards = []
    for seed in (0, 1):
        questions = _questions(samples, seed=seed)
        answers = ask(Oracle("oracle"), ("o",), samples, folder, questions)
        cards.append(scorecard(answers, samples, questions, bootstrap=bootstrap))
    with pytest.raises(DataError, match="different ones"):
        differences(cards[0], cards[1], bootstrap=bootstrap)


def test_a_system_that_cannot_caption_or_embed_has_the_figures_that_it_can(folder: Path, samples: list[Sample]) -> None:
    blind = Oracle("blind")
    blind.embeds = False
    outcome = evaluate_subjects(
        [_subject(Embedding("eye"), "e"), _subject(blind, "b")], samples, folder, _questions(samples)
    )
    assert set(outcome.cards[0].figures) == {f"r{k}_{way}" for k in (1, 5, 10) for way in ("i2t", "t2i")}
    assert "r1_i2t" not in outcome.cards[1].figures
    assert outcome.cards[1].figures["probe_random_accuracy"].value == 1.0
    assert outcome.differences == {"blind - eye": {}}


def test_finished_subjects_are_not_asked_again(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    class Broken(Oracle):
        def captions(self, paths: Sequence[PictureFile]) -> list[JudgedCaption]:
            raise DataError("broken", expected="x", found="y", remedy="z.")

    first, questions = Oracle("a/b"), _questions(samples)
    with pytest.raises(DataError, match="broken"):
        evaluate_subjects([_subject(first, "1"), _subject(Broken("c"), "2")], samples, folder, questions, out=tmp_path)
    assert (tmp_path / f"{file_name('a/b')}.json").exists()
    asked = first.calls
    again = evaluate_subjects(
        [_subject(first, "1"), _subject(Oracle("c"), "3")], samples, folder, questions, out=tmp_path
    )
    assert first.calls == asked
    assert again.answers[0] == load_answers(tmp_path / "answers" / f"{file_name('a/b')}.json")
    saved = json.loads((tmp_path / "differences.json").read_text())
    assert saved["c - a/b"]["r1_i2t"]["value"] == 0.0
    # another model under the same name, or other questions, are asked
    evaluate_subjects([_subject(first, "new")], samples, folder, questions, out=tmp_path)
    evaluate_subjects([_subject(first, "new")], samples, folder, _questions(samples, seed=1), out=tmp_path)
    assert first.calls == 3 * asked
    # and so are probes in other words
    for words in ('["dog", "puppy"]', '["puppy", "dog"]'):
        table = tmp_path / f"{len(words) + first.calls}.toml"
        table.write_text(f'format = 1\n[classes]\ndog = {words}\ncat = ["cat"]\nbus = ["bus"]\ncar = ["car"]\n')
        evaluate_subjects(
            [_subject(first, "new")], samples, folder, _questions(samples, objects=str(table)), out=tmp_path
        )
    assert first.calls == 5 * asked
    (tmp_path / "answers" / "c.json").write_text("{}")
    with pytest.raises(DataError, match="answers as JSON"):
        evaluate_subjects([_subject(Oracle("c"), "3")], samples, folder, questions, out=tmp_path)


def test_pictures_made_worse_are_looked_at_and_their_loss_is_relative(folder: Path, samples: list[Sample]) -> None:
    class Squinting(Oracle):
        """Confuses two pictures whenever they are not named as in the data set."""

        def embed_images(self, paths: Sequence[PictureFile]) -> NDArray[np.float32]:
            known = {path.read_bytes() for path in folder.glob("*.png")}
            for path in paths:
                assert isinstance(path, Path)
                if path.read_bytes() not in known:
                    with Image.open(path) as picture:
                        assert picture.size == (32, 32)
                    return super().embed_images(paths)[[1, 0, 2, 3]]
            return super().embed_images(paths)

    questions = _questions(samples, robustness=("noise",), severities=(2,))
    done: list[tuple[str, int, int]] = []
    outcome = evaluate_subjects(
        [_subject(Squinting("s"), "s")], samples, folder, questions, progress=lambda *told: done.append(told)
    )
    figures = outcome.cards[0].figures
    assert (figures["r1_i2t"].value, figures["noise-2_r1_i2t"].value, figures["noise-2_loss_r1_i2t"].value) == (
        1,
        0.5,
        0.5,
    )
    assert figures["noise-2_loss_cider"].value == 0.0
    assert done == [("s", 0, 12), ("s", 4, 12), ("s", 8, 12), ("s", 12, 12)]
    with pytest.raises(DataError, match="found 7, fog"):
        _questions(samples, robustness=("fog",), severities=(7,))


def test_the_judge_is_another_model(folder: Path, samples: list[Sample]) -> None:
    judge = prepare_judge(Opened(Oracle("judge"), ("j",), "judge"), samples, folder)
    questions = _questions(samples, judge=("j",))
    trained = Subject("s", lambda: Opened(Oracle("s"), ("s",), "s", ("judge",)))
    outcome = evaluate_subjects([trained], samples, folder, questions, judge=judge)
    assert "was a teacher of this student" in outcome.cards[0].notes[0]
    # The prompt makes every text unknown to the oracle, which then takes it for the first picture's.
    assert outcome.cards[0].figures["clipscore"].value == pytest.approx(2.5 / 4)
    with pytest.raises(DataError, match="the same model"):
        evaluate_subjects([_subject(Oracle("x"), "j")], samples, folder, questions, judge=judge)
    captioner = Oracle("c")
    captioner.embeds = False
    with pytest.raises(DataError, match="one that does not"):
        prepare_judge(Opened(captioner, ("c",), "c"), samples, folder)


def test_the_same_subject_twice_and_no_subject_are_refused(folder: Path, samples: list[Sample]) -> None:
    for subjects in ([], [_subject(Oracle("a"), "1"), _subject(Oracle("a"), "2")]):
        with pytest.raises(DataError, match="each named once"):
            evaluate_subjects(subjects, samples, folder, _questions(samples))


def test_the_page_holds_everything_and_asks_nobody(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    questions = _questions(samples)
    subjects = [_subject(Oracle("<o>"), "o"), _subject(Oracle("liar", {1: "a <zebra>"}), "l")]
    outcome = evaluate_subjects(subjects, samples, folder, questions)
    write_report(tmp_path / "r.html", outcome.cards, outcome.answers, outcome.differences, samples, folder, questions)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    for text in (
        "a &lt;zebra&gt;",
        "&lt;o&gt;",
        "Failure: invented",
        "Worst by CIDEr",
        "liar - &lt;o&gt;",
        "<html lang",
    ):
        assert text in page
    assert "<zebra>" not in page
    assert page.count("data:image/jpeg;base64,") >= 16
    assert not {"http://", "https://", "<script", "@import"} & {
        word for word in ("http://", "https://", "<script", "@import") if word in page
    }
    assert page.count("<img") == page.count('alt="')


def test_right_captions_of_photos_and_of_counted_pictures(samples: list[Sample]) -> None:
    questions = _questions(samples)
    said = ["a dog", "a cat and a dog", "nothing", "a car"]
    assert right_captions(said, questions).tolist() == [True, False, False, True]
    counted = msgspec.structs.replace(questions, counted=True, truths=(frozenset({"dog", "cat"}),) * 4)
    assert right_captions(said, counted).tolist() == [False, True, False, False]


# ------------------------------------------------------------ real systems


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("work")
    write_dataset(root / "data", split_sizes={"test": 6}, size_px={"test": 32}, seed=7, workers=1)
    return root


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "student"
    backend = train_bpe(["there is a dog", "there is no dog", *tiny.TEXTS], vocab_size=tiny.CONFIG.vocab_size)
    tokenizer = Tokenizer(backend, text_length=tiny.CONFIG.text_length)
    config = msgspec.structs.replace(tiny.CONFIG, vocab_size=tokenizer.vocab_size)
    save_student(folder, Student(config))
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The runtime's tests own the tiny bundle of real ONNX graphs.
    source = Path(__file__).parents[1] / "runtime" / "conftest.py"
    spec = importlib.util.spec_from_file_location("tiny_bundle", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    built: Path = module.build_bundle(tmp_path_factory.mktemp("bundles") / "tiny")
    return built


def test_a_student_scores_a_text_as_it_decodes_it(student: Path, folder: Path) -> None:
    opened = subjects_of(str(student))[0].open()
    system = opened.system
    assert isinstance(system, JudgedStudent)
    model, tokenizer = system._student, system._tokenizer
    [scores] = system.text_logprobs([folder / "0.png"], [["there is a dog", "a dog " * 20]])
    assert np.isnan(scores["a dog " * 20])
    with torch.inference_mode():
        pixels = torch.from_numpy(preprocess(folder / "0.png", preprocess_spec(model.config))[None])
        cache = model.caption_prefill()(model.image_encoder(pixels)[1])
        total, token = 0.0, tokenizer.bos_id
        for offset, following in enumerate(tokenizer.encode("there is a dog")):
            position = torch.tensor([model.caption_decoder.visual_tokens + offset], dtype=torch.int32)
            logits, cache = model.caption_decode()(torch.tensor([token], dtype=torch.int32), position, cache)
            total += float(torch.log_softmax(logits[0], dim=-1)[following])
            token = following
    assert scores["there is a dog"] == pytest.approx(total, abs=1e-4)


def test_a_bundle_scores_a_text_as_it_decodes_it(bundle: Path, folder: Path) -> None:
    lens = load(bundle, precision="fp32", threads=1)
    picture = folder / "1.png"
    caption = lens.caption(picture, decoding=Decoding(max_tokens=4))
    assert len(caption.text) == 4  # one letter a token
    system = JudgedLens(lens, name="x")
    [scores, none] = system.text_logprobs([picture, folder / "2.png"], [[caption.text, "there is no dog"], []])
    assert scores[caption.text] == pytest.approx(sum(caption.token_logprobs), abs=1e-4)
    assert np.isnan(scores["there is no dog"])
    assert none == {}


def test_a_captioner_scores_a_text_as_its_own_forward_pass_does(tmp_path: Path, folder: Path) -> None:
    captioner = HfCaptioner(str(tiny.write_captioner(tmp_path / "captioner")))
    system = JudgedTeachers(None, captioner)
    assert system.scores_texts
    texts = [["a red ball", "two blue cars at night"], ["a pink duck"]]
    scores = system.text_logprobs([folder / "0.png", folder / "1.png"], texts)
    for path, group, found in zip(("0.png", "1.png"), texts, scores, strict=True):
        pixels = captioner._pixels.tensor(preprocess(folder / path, captioner.preprocess)[None])
        for text in group:
            ids = torch.tensor([captioner._tokenizer(text, add_special_tokens=False).input_ids])
            read = torch.cat([torch.tensor([[1]]), ids[:, :-1]], dim=1)  # 1 starts its captions
            with torch.inference_mode():
                logits = captioner.model(pixel_values=pixels, decoder_input_ids=read).logits
            own = torch.log_softmax(logits, dim=-1).gather(2, ids[..., None]).sum()
            assert found[text] == pytest.approx(float(own), abs=1e-3)


def test_a_system_without_a_part_says_so() -> None:
    neither = JudgedTeachers(None)
    assert not neither.embeds
    assert not neither.captions_pictures
    assert not neither.scores_texts
    for call in (neither.embed_images, neither.captions, lambda _: neither.text_logprobs([], [])):
        with pytest.raises(ValueError, match="ask `"):
            call([])


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[list[str], str]:
    app = typer.Typer()
    app.command("evaluate")(evaluating.evaluate)
    app.add_typer(evaluating.app, name="ratings")
    capsys.readouterr()
    command = get_command(app)
    with command.make_context("pocketlens", [str(one) for one in arguments]) as context:
        assert command.invoke(context) == 0
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err


def test_the_command_judges_a_student_and_a_bundle_and_leads_to_a_sheet(
    scenes: Path, student: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [subject.name for subject in subjects_of(str(bundle))]
    assert all(name.startswith("tiny#onnx-") for name in names)
    out, page = tmp_path / "out", tmp_path / "page.html"
    shared: list[object] = ["--data", scenes, "--probes", 2, "--out", out]
    lines, said = _run(
        capsys, "evaluate", student, f"{bundle}#onnx-fp32", *shared, "--page", page, "--judge", "builtin"
    )
    rows = [line.split("\t") for line in lines]
    assert {row[0] for row in rows} == {"student", "tiny#onnx-fp32", "tiny#onnx-fp32 - student"}
    by_name = {(row[0], row[1]) for row in rows}
    for name in (
        "r1_i2t",
        "cider",
        "rouge_l",
        "clipscore",
        "zero_shot",
        "hallucination",
        "vocabulary",
        "probe_random_f1",
    ):
        assert {("student", name), ("tiny#onnx-fp32", name), ("tiny#onnx-fp32 - student", name)} <= by_name, name
    assert ("tiny#onnx-fp32", "ece") in by_name
    assert ("student", "ece") not in by_name
    assert "probe sentences were longer" in said
    assert page.exists()
    again, _ = _run(capsys, "evaluate", student, f"{bundle}#onnx-fp32", *shared, "--judge", "builtin", "--json")
    cards = [json.loads(line) for line in again]
    assert [card.get("subject") for card in cards] == ["student", "tiny#onnx-fp32", None]
    wanted = ["--system", "student", "--system", "tiny#onnx-fp32", "--data", scenes]
    [path], _ = _run(capsys, "ratings", "sheet", out, *wanted, "--out", tmp_path / "sheet")
    assert Path(path).exists()
    key = json.loads((tmp_path / "sheet" / "key.json").read_text())
    assert sorted(key["systems"]) == ["student", "tiny#onnx-fp32"]
    with pytest.raises(DataError, match="captions of student and other"):
        _run(capsys, "ratings", "sheet", out, *wanted[:3], "other", *wanted[4:], "--out", tmp_path / "s2")


def test_a_subject_that_cannot_be_opened_takes_nothing_from_those_before_it(
    scenes: Path, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken").mkdir()
    for file in student.iterdir():
        (tmp_path / "broken" / file.name).write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="broken"):
        _run(capsys, "evaluate", student, tmp_path / "broken", "--data", scenes, "--probes", 0)
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {row[0] for row in rows} == {"student"}
    assert {"r1_i2t", "cider"} <= {row[1] for row in rows}


def test_the_ratings_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pocketlens.distill.evaluation.rating_sheet import RatingKey
    from pocketlens.distill.evaluation.ratings import Rating, Ratings, Verdict

    key = RatingKey(("small", "big"), "00" * 32, (("p0", 0), ("p1", 1)))
    (tmp_path / "key.json").write_bytes(msgspec.json.encode(key))
    for name, wins in (("one", "right"), ("two", "left")):
        rows = (Rating(0, Verdict(5), Verdict(1), "left"), Rating(1, Verdict(2), Verdict(4), wins))  # type: ignore[arg-type]
        (tmp_path / f"{name}.json").write_bytes(msgspec.json.encode(Ratings(1, key.seal, name, rows)))
    lines, _ = _run(
        capsys, "ratings", "read", tmp_path / "one.json", tmp_path / "two.json", "--key", tmp_path / "key.json"
    )
    assert lines[:4] == ["A\tsmall", "B\tbig", "raters\t2", "pairs\t2"]
    assert lines[4].startswith("A over B\twin_rate\t0.7500\t[")
    assert "agreement\tcorrect\talpha 1.0000" in lines
    found, _ = _run(capsys, "ratings", "read", tmp_path / "one.json", "--key", tmp_path / "key.json", "--json")
    assert json.loads(found[0])["win_rate"]["value"] == 1.0


def test_what_is_no_subject_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleIncomplete, match="onnx-fp32"):
        subjects_of(f"{bundle}#coreml-fp16")
    with pytest.raises(DataError, match="a teacher, a student's folder or a bundle"):
        subjects_of("")


def test_the_judge_is_one_model(bundle: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = len(subjects_of(str(bundle))) > 1
    assert several
    with pytest.raises(DataError, match="expected one model"):
        _run(capsys, "evaluate", "builtin", "--data", scenes, "--judge", bundle)
