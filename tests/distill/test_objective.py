"""The parts of a batch add up to the batch."""

import pytest
import torch

from pocketlens.distill.batches import Batch
from pocketlens.distill.objective import Objective
from pocketlens.distill.recipe import LossWeights, TrainRecipe
from pocketlens.distill.students.student import Student
from tests.distill.tiny import CONFIG

PAD = 0


@pytest.fixture(scope="module")
def objective() -> Objective:
    torch.manual_seed(0)
    # eval: a batch norm that sees half a batch would otherwise answer differently, as it should
    return Objective(Student(CONFIG), teacher_dim=20, concepts=torch.tensor([0.5, 1.0, 1.5])).eval()


@pytest.fixture(scope="module")
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, CONFIG.vocab_size, (6, CONFIG.text_length), generator=generator, dtype=torch.int32)
    for row, length in enumerate((5, 12, 7, 16, 4, 9)):  # captions of different lengths: a mean of means is wrong
        ids[row, length:] = PAD
    unit = torch.nn.functional.normalize(torch.randn(12, 20, generator=generator), dim=1)
    return Batch(
        torch.randint(0, 256, (6, 32, 32, 3), generator=generator, dtype=torch.uint8),
        ids,
        unit[:6],
        unit[6:],
        torch.rand(6, 3, generator=generator) < 0.4,
        torch.randint(4, CONFIG.vocab_size, (6, 8, 3), generator=generator, dtype=torch.int32),
        torch.log(torch.rand(6, 8, 3, generator=generator) / 3 + 0.01).sort(dim=2, descending=True).values,
    )


@pytest.mark.parametrize("parts", [2, 3])
def test_terms_and_gradients_of_the_parts_add_up_to_those_of_the_batch(
    objective: Objective, batch: Batch, parts: int
) -> None:
    settings = TrainRecipe(
        steps=1, losses=LossWeights(concepts=0.7, feature=2.0, caption=0.4, token=0.3, interactive=0.5)
    )

    def gradients(count: int) -> tuple[dict[str, float], list[torch.Tensor]]:
        objective.zero_grad(set_to_none=True)
        looks = [objective.look(part, batch, settings, PAD) for part in batch.split(count)]
        images, texts = (torch.cat(vectors) for vectors in zip(*((x.images, x.texts) for x in looks), strict=True))
        shared = objective.compare(images, texts, batch, settings)
        terms = {name: sum(look.terms[name] for look in looks) for name in looks[0].terms} | shared
        torch.stack([torch.as_tensor(term) for term in terms.values()]).sum().backward()
        return (
            {name: float(torch.as_tensor(term).detach()) for name, term in terms.items()},
            [parameter.grad.clone() for parameter in objective.parameters() if parameter.grad is not None],
        )

    whole_terms, whole = gradients(1)
    part_terms, summed = gradients(parts)
    assert set(whole_terms) == {"contrastive", "affinity", "feature", "caption", "concepts", "token", "interactive"}
    assert part_terms == pytest.approx(whole_terms, rel=1e-5)
    for expected, found in zip(whole, summed, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)


def test_a_term_of_weight_0_is_left_out(objective: Objective, batch: Batch) -> None:
    only_captions = LossWeights(contrastive=0.0, affinity=0.0, feature=0.0)
    settings = TrainRecipe(steps=1, losses=only_captions)
    look = objective.look(batch, batch, settings, PAD)
    assert set(look.terms) == {"caption"}
    assert objective.compare(look.images, look.texts, batch, settings) == {}


def test_no_part_of_a_batch_has_a_single_row(batch: Batch) -> None:
    assert [len(part.ids) for part in batch.split(4)] == [2, 2, 2]
    assert [len(part.ids) for part in batch.split(1)] == [6]
