"""The rows of each client pass that client's own weights."""

from types import SimpleNamespace

import pytest
import torch
from lightning.fabric import Fabric

from mlecs_lightning.cohorts.draws import Draws
from mlecs_lightning.cohorts.layers import Layers
from mlecs_lightning.cohorts.registry import MOST, cohort_size
from mlecs_lightning.cohorts.stack import NotTogetherError, Stack
from mlecs_lightning.modules import EdgeModule
from mlecs_lightning.rounds.learner import EdgeLearner, Learner
from mlecs_lightning.types import ModalitySpec

SPECS = {
    "image": ModalitySpec("image", (3, 9, 12)),
    "long": ModalitySpec("series", (2, 130)),
    "short": ModalitySpec("series", (2, 20)),
    "text": ModalitySpec("text", (12,)),
    "vector": ModalitySpec("vector", (5,)),
}
CLIENTS, ROWS = 3, 4


@pytest.fixture(scope="module")
def learner(tiny: SimpleNamespace) -> EdgeLearner:
    torch.manual_seed(0)
    settings = tiny.model(backbone={"model": tiny.pocket()})
    module, fabric = EdgeModule(settings, SPECS), Fabric(accelerator="cpu", devices=1)
    return Learner("c", module, fabric=fabric, gradient_clip_val=None, sync=False)


def inputs(name: str) -> torch.Tensor:
    spec = SPECS[name]
    if spec.kind == "text":
        return torch.randint(0, 128, (CLIENTS * ROWS, *spec.shape), dtype=torch.uint8)
    return torch.randn(CLIENTS * ROWS, *spec.shape)


@pytest.mark.parametrize("name", SPECS)
def test_extractors_of_all_kinds(learner: EdgeLearner, name: str) -> None:
    module, x = learner.module, inputs(name)
    stack = Stack(learner, CLIENTS)
    layers = Layers(module, stack)
    alone, slopes = [], []
    extractor = module.extractors[name]
    for client, rows in enumerate(x.chunk(CLIENTS)):
        for parameter in module.trainable_parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        stack.put(client)
        alone.append(extractor(rows))
        slopes.append(torch.autograd.grad(alone[-1].square().sum(), extractor.parameters()))
    lent = {client: learner.optimization.lend() for client in range(CLIENTS)}
    draws = [Draws(module.device) for _ in range(CLIENTS)]
    with layers.replaced(), stack.training(lent):
        stack.select(range(CLIENTS))
        with layers.step(draws, rows=ROWS):
            with pytest.raises(NotTogetherError, match="goes round the module"):
                extractor(x)  # not as a part of the cohort's own pass
            layers.reading = True
            together = extractor(x)
            layers.reading = False
        names = stack.parameter_names(extractor).values()
        own = [stack.weights[each] for each in names]
        slope = torch.autograd.grad(together.square().sum(), own)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)
    for each, one in zip(zip(*slopes, strict=True), slope, strict=True):
        torch.testing.assert_close(one, torch.stack(each), rtol=1e-4, atol=1e-5)
    assert torch.isfinite(extractor(x)).all()  # the module has its layers and weights again


def test_a_small_model_has_the_largest_cohort(learner: EdgeLearner) -> None:
    assert cohort_size(learner.module) == MOST
