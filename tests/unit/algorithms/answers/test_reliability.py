import pytest
import torch
from torch import Tensor

from mlecs_lightning.algorithms.answers.reliability import confusion, one_coin


def drawn(truth: Tensor, matrices: Tensor, generator: torch.Generator) -> Tensor:
    """Return what clients with the given confusion matrices (J, K, K) say of the truth, (J, N)."""
    said = [
        torch.multinomial(matrix[truth], 1, generator=generator).squeeze(1) for matrix in matrices
    ]
    return torch.stack(said)


def coins(reliabilities: list[float], classes: int) -> Tensor:
    off = torch.tensor([(1 - r) / (classes - 1) for r in reliabilities]).view(-1, 1, 1)
    eye = torch.eye(classes)
    return off * (1 - eye) + torch.tensor(reliabilities).view(-1, 1, 1) * eye


def test_reliability_is_found_where_it_is_known() -> None:
    """Three clients of reliability 0.95, 0.6 and 0.6, ten classes, 3,000 samples.

    The spread of an estimate from n samples is sqrt(r (1 - r) / n), below 0.01 here.
    """
    generator = torch.Generator().manual_seed(3)
    truth = torch.randint(10, (3000,), generator=generator)
    known = torch.tensor([0.95, 0.6, 0.6])
    told = drawn(truth, coins(known.tolist(), 10), generator)
    posterior, reliability = one_coin(told, classes=10)
    torch.testing.assert_close(reliability.float(), known, atol=0.1, rtol=0)
    assert reliability[0] > reliability[1:].max()
    chosen = posterior.argmax(dim=1)
    majority = told.mode(dim=0).values
    assert (chosen == truth).sum() > (majority == truth).sum()
    torch.testing.assert_close(posterior.sum(dim=1), torch.ones(3000, dtype=torch.float64))


# Client 0 tells 0 from the rest alone, client 1 tells 1 from 2 and says 1 of a 0, client 2 guesses.
SKILLS = torch.tensor(
    [
        [[0.90, 0.05, 0.05], [0.10, 0.45, 0.45], [0.10, 0.45, 0.45]],
        [[0.05, 0.90, 0.05], [0.05, 0.90, 0.05], [0.05, 0.05, 0.90]],
        [[0.34, 0.33, 0.33], [0.33, 0.34, 0.33], [0.33, 0.33, 0.34]],
    ]
)


def test_confusion_matrices_are_found_where_they_are_known() -> None:
    """4,000 samples, 400 of them with a known class; the spread of an entry is below 0.02."""
    generator = torch.Generator().manual_seed(5)
    truth = torch.randint(3, (4000,), generator=generator)
    told = drawn(truth, SKILLS, generator)
    known = torch.where(torch.arange(4000) < 400, truth, -1)
    posterior, matrices = confusion(told, classes=3, known=known)
    torch.testing.assert_close(matrices.float(), SKILLS, atol=0.1, rtol=0)
    torch.testing.assert_close(matrices.sum(dim=2), torch.ones(3, 3, dtype=torch.float64))
    found = posterior[400:].argmax(dim=1)
    right = (found == truth[400:]).double().mean()
    # The best rule that knows the skills is right in 0.88 of the samples.
    score = SKILLS.log()[0][:, told[0]] + SKILLS.log()[1][:, told[1]]
    best = (score.argmax(dim=0) == truth).double().mean()
    assert abs(right - best) < 0.05
    coin = one_coin(told, classes=3, known=known)[0][400:].argmax(dim=1)
    assert right > (coin == truth[400:]).double().mean(), "one coin cannot say who knows what"


@pytest.mark.parametrize("model", [one_coin, confusion])
def test_known_classes_are_certain_and_nobody_speaking_is_a_guess(model: object) -> None:
    told = torch.tensor([[0, 1, -1, 1], [0, 0, -1, 1]])
    known = torch.tensor([-1, 0, -1, 2])
    posterior, _ = model(told, classes=3, known=known)  # type: ignore[operator]
    assert posterior[1].tolist() == [1.0, 0.0, 0.0]
    assert posterior[3].tolist() == [0.0, 0.0, 1.0]
    torch.testing.assert_close(posterior.sum(dim=1), torch.ones(4, dtype=torch.float64))


def test_reliability_counts_the_known_samples_by_hand() -> None:
    """Of four known samples one client is right in 3, the other in 1; (n + 1) / (4 + 2)."""
    told = torch.tensor([[0, 1, 2, 0], [0, 2, 1, 0]])
    found = one_coin(told, classes=3, known=torch.tensor([0, 1, 2, 1]))[1]
    torch.testing.assert_close(found, torch.tensor([4 / 6, 2 / 6], dtype=torch.float64))


def test_rare_classes_fall_back_on_one_coin() -> None:
    """Of one class there is no sample, so its row is that of the one-coin form."""
    told = torch.tensor([[0, 0, 1, 1, 0]])
    known = torch.tensor([0, 0, 1, 1, 1])
    (coin,) = one_coin(told, classes=3, known=known)[1]
    (matrix,) = confusion(told, classes=3, known=known)[1]
    torch.testing.assert_close(matrix[2], torch.stack([(1 - coin) / 2, (1 - coin) / 2, coin]))


def test_too_many_classes_are_refused_before_they_take_memory() -> None:
    with pytest.raises(ValueError, match="at most 200, got 100000"):
        confusion(torch.tensor([[0, 1, 2]]), classes=100_000)
