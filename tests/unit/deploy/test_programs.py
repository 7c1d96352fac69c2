"""Programs for devices answer as the model does that they were traced from."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mlecs_lightning import DeviceModel, ExportedModel, load_device_model, load_exported
from mlecs_lightning.checkpoints.export import export_run
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.storage.files import DamagedFileError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("torch-kitchen", marks=pytest.mark.slow),
        pytest.param("onnx-kitchen", marks=pytest.mark.slow),
        pytest.param("onnx-server", marks=pytest.mark.slow),
        pytest.param("torch-hall", marks=pytest.mark.slow),  # has an adapter of its own as well
    ],
)
def folder(
    request: pytest.FixtureRequest,
    talking: SimpleNamespace,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Programs of a party, in a format."""
    kind, party = request.param.split("-")
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("programs") / request.param
    return export_run(talking.folder, out, client=party, format=kind)


@pytest.fixture(scope="module")
def device(folder: Path) -> DeviceModel:
    return load_device_model(folder)


@pytest.fixture(scope="module")
def model(device: DeviceModel, talking: SimpleNamespace) -> ExportedModel:
    party = device.config["training"]["client"]
    return talking.trainer.server if party == "server" else talking.trainer.client(party)


def logits_of(
    model: ExportedModel, sample: dict[str, object], tokens: list[int], asked: str
) -> Tensor:
    """Return the logits of the live model, token by token in one pass over the whole answer."""
    backbone = model.module.tower().backbone
    batch = model._batch([sample], [asked], first=0)
    coder = backbone.coder
    words = torch.tensor([[*coder.encode(asked), *tokens[:-1]]])
    with torch.no_grad():
        sequence = backbone._sequence(model.module.embed(batch).prompt, words)
        return backbone.lm(inputs_embeds=sequence).logits[0, -len(tokens) :]


@pytest.mark.parametrize("asked", [None, "zero", "describe the digit . describe it"])
@pytest.mark.parametrize("one_is_absent", [False, True])
def test_programs_answer_as_ask_does(
    device: DeviceModel,
    model: ExportedModel,
    talking: SimpleNamespace,
    asked: str | None,
    one_is_absent: bool,
) -> None:
    for row in range(2):
        sample: dict[str, object] = {m: talking.test.inputs[m][row] for m in model.modalities}
        if one_is_absent and len(sample) > 1:
            sample.popitem()
        tokens, logits = device.decode(instruction=asked, **sample)
        expected = logits_of(model, sample, tokens, asked or str(model.instruction))
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
        assert device.ask(instruction=asked, **sample) == model.ask(instruction=asked, **sample)


def test_the_input_is_read(device: DeviceModel, talking: SimpleNamespace) -> None:
    samples = [{m: talking.test.inputs[m][row] for m in device.modalities} for row in (0, 1)]
    (_, first), (_, second) = (device.decode(**sample) for sample in samples)
    assert (first[0] - second[0]).abs().max() > 1e-3


def test_wrong_inputs_are_named(device: DeviceModel) -> None:
    name = device.modalities[-1]
    for inputs, message in (
        ({}, rf"give at least one of .*'{name}'\]"),
        ({"smell": 1}, r"\['smell'\] are not among the model's inputs"),
        ({name: [1, 2]}, f"{name}: has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            device.ask(**inputs)
    zeros = {name: torch.zeros(device.preparations[name].declared.spec.shape)}
    with pytest.raises(ValueError, match="instruction: it is empty"):
        device.ask(instruction="", **zeros)
    with pytest.raises(ValueError, match=r"needs \d+ positions, .* has \d+: shorten it"):
        device.ask(instruction="digit " * 2000, **zeros)


def test_a_damaged_or_foreign_folder_is_refused(folder: Path, exported: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"holds no mlecs_device\.json"):
        load_device_model(exported)
    with pytest.raises(ConfigurationError, match="is not a folder that `export` wrote"):
        load_exported(folder)
    program = next(folder.glob("step.*"))
    whole = program.read_bytes()
    try:
        program.write_bytes(whole[:-1])
        with pytest.raises(DamagedFileError, match="step"):
            load_device_model(folder)
    finally:
        program.write_bytes(whole)
    said = json.loads((folder / "mlecs_device.json").read_text())["training"]
    assert folder.name.endswith(said["client"])


def test_another_precision_is_said(
    talking: SimpleNamespace,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlecs_lightning.checkpoints.models import CheckpointModels
    from mlecs_lightning.deploy import programs

    # Tracing is not what is tested.
    monkeypatch.setattr(programs, "_write", lambda *_: None)
    saved = CheckpointModels(talking.folder / "checkpoints" / "round=0000.ckpt")
    with caplog.at_level(logging.WARNING):
        programs.write_programs(
            saved.edge("hall"),
            tmp_path / "out",
            format="torch",
            preparations=saved.preparations,
            precision="bf16-mixed",
            instruction=None,
            training={},
        )
    assert "precision bf16-mixed" in caplog.text
