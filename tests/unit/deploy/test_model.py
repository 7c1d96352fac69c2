import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mlecs_lightning import ExportedModel, load_exported
from mlecs_lightning.checkpoints.export import export_run
from mlecs_lightning.checkpoints.models import CheckpointModels
from mlecs_lightning.errors import ConfigurationError


@pytest.fixture(scope="module")
def model(exported: Path) -> ExportedModel:
    return load_exported(exported)


@pytest.mark.parametrize("party", ["kitchen", "hall", "server"])
def test_it_says_what_predict_says(party: str, talking: SimpleNamespace, tmp_path: Path) -> None:
    model = load_exported(export_run(talking.folder, tmp_path / "o", client=party))
    test, said = talking.test, talking.said[party]
    rows = [test.ids.index(sample) for sample in said]
    samples = [{m: test.inputs[m][row] for m in model.modalities} for row in rows]
    # What the language model reads depends on the sample, and is that of the model in the run.
    saved = CheckpointModels(talking.folder / "checkpoints" / "round=0000.ckpt")
    trained = (saved.server() if party == "server" else saved.edge(party)).eval()
    batch = test.restrict(model.modalities).__getitems__(rows)
    with torch.no_grad():
        prompts, expected = (m.embed(batch).prompt for m in (model.module, trained))
    torch.testing.assert_close(prompts, expected)
    assert not torch.allclose(prompts[0], prompts[1])
    answers = list(said.values())
    assert len(answers) == 8
    assert model.ask_batch(samples) == answers
    assert model.ask_batch(samples, batch_size=3) == answers
    assert model.ask(**samples[0], instruction="describe the digit .") == answers[0]


def test_files_and_arrays_are_alike(
    model: ExportedModel, mlecs_run: SimpleNamespace, tmp_path: Path
) -> None:
    value = mlecs_run.data.pools.test.inputs["fourier"][3].numpy()
    np.save(tmp_path / "x.npy", value)
    assert model.ask(fourier=tmp_path / "x.npy") == model.ask(fourier=value)


def test_what_is_left_out_is_absent(mlecs_run: SimpleNamespace, tmp_path: Path) -> None:
    model = load_exported(export_run(mlecs_run.folder, tmp_path / "o", client="kitchen"))
    test = mlecs_run.data.pools.test
    keep = torch.ones(len(test), 2, dtype=torch.bool)
    keep[:, 1] = False
    batch = test.restrict(model.modalities).mask(keep).__getitems__([0, 1, 2])
    expected = [row["prediction"] for row in model.module.predict_step(batch)]
    given = [{"pixels": test.inputs["pixels"][i], "profile": None} for i in range(3)]
    assert model._batch(given, [""] * 3, first=0).present.tolist() == [[True, False]] * 3
    assert model.ask_batch(given) == expected
    assert model.ask(pixels=test.inputs["pixels"][0]) == expected[0]


def test_wrong_inputs_are_named(model: ExportedModel) -> None:
    for samples, messages in (
        ([{}], ["sample 0: give at least one of ['fourier']"]),
        (
            [{"smell": 1}, {"fourier": None}],
            ["sample 0: ['smell'] are not among the model's inputs", "sample 1: give at least"],
        ),
        (
            [{"fourier": [1, 2]}, {"fourier": np.zeros(40)}, {"fourier": "x" * 3}],
            ["sample 0, fourier: has shape (2,)"],
        ),
    ):
        with pytest.raises((ValueError, OSError)) as caught:
            model.ask_batch(samples)
        if isinstance(caught.value, ValueError):
            assert all(message in str(caught.value) for message in messages)
    with pytest.raises(ValueError, match="instruction: expected one or 2, got 1"):
        model.ask_batch([{"fourier": np.zeros(40)}] * 2, instruction=["a"])
    with pytest.raises(ValueError, match="batch_size"):
        model.ask_batch([], batch_size=0)
    assert model.ask_batch([]) == []


def test_the_backbone_may_lie_elsewhere(
    mlecs_run: SimpleNamespace, tiny: SimpleNamespace, model: ExportedModel, tmp_path: Path
) -> None:
    out = export_run(mlecs_run.folder, tmp_path / "o", client="hall", include_backbone=False)
    config = json.loads((out / "mlecs_config.json").read_text())
    config["settings"]["backbone"]["model"] = "no/such-model"
    (out / "SHA256SUMS").unlink()
    (out / "mlecs_config.json").write_text(json.dumps(config))
    value = mlecs_run.data.pools.test.inputs["fourier"][0]
    with pytest.raises(ConfigurationError, match="no/such-model"):
        load_exported(out)
    again = load_exported(out, backbone=tiny.pocket())
    assert again.ask(fourier=value) == model.ask(fourier=value)


@pytest.mark.parametrize(
    ("precision", "kind"),
    [("32-true", None), ("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)],
)
def test_it_computes_as_its_training_did(
    copied: Path, mlecs_run: SimpleNamespace, precision: str, kind: torch.dtype | None
) -> None:
    config = json.loads((copied / "mlecs_config.json").read_text())
    assert config["precision"] == "32-true"
    (copied / "mlecs_config.json").write_text(json.dumps({**config, "precision": precision}))
    model, seen = load_exported(copied), []
    model.module.extractors["fourier"].register_forward_hook(
        lambda *_: seen.append(
            torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        )
    )
    model.ask(fourier=mlecs_run.data.pools.test.inputs["fourier"][0])
    assert seen == [kind]


# Folders that are none ----------------------------------------------------------------------------


def test_a_folder_that_does_not_fit_is_refused(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not a folder that `export` wrote"):
        load_exported(tmp_path / "nowhere")
    own = load_file(copied / "mlecs_model.safetensors")
    del own["readout.bias"]
    save_file(own, copied / "mlecs_model.safetensors")
    with pytest.raises(ConfigurationError, match=r"do not fit: .*readout\.bias"):
        load_exported(copied)
    (copied / "mlecs_model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="do not fit"):
        load_exported(copied)
    config = json.loads((copied / "mlecs_config.json").read_text())
    (copied / "mlecs_config.json").write_text(json.dumps({**config, "format_version": 99}))
    with pytest.raises(
        ConfigurationError,
        match="format_version 99, but this version of mlecs_lightning reads only 1",
    ):
        load_exported(copied)


@pytest.mark.parametrize(
    "path",
    [
        *("subprocess.Popen", "os.system", "mlecs_lightning.nn.backbone.load_frozen", "Path"),
        # All of them can be had from a module of this package.
        *(
            "mlecs_lightning.nn.extractors.build_class",
            "mlecs_lightning.nn.extractors.nn.Module",
        ),
        *("mlecs_lightning.nn.connector.Connector", "mlecs_lightning.nn.features.cached_features"),
        *(
            "build_extractor",
            "mlecs_lightning.nn.extractors.pretrained.load_encoder",
            "nn.Identity",
        ),
        *(
            "mlecs_lightning.nn.extractors.readers.ImageReader",
            "mlecs_lightning.nn.vectormlp.VectorMLP",
        ),
    ],
)
def test_a_folder_cannot_have_any_class_called(copied: Path, path: str) -> None:
    change_settings(copied, extractors={"fourier": {"class_path": path, "init_args": {}}})
    with pytest.raises(ConfigurationError, match="is not one of this package's") as caught:
        load_exported(copied)
    assert repr(path) in str(caught.value)


@pytest.mark.parametrize("path", ["VectorMLP", "mlecs_lightning.nn.extractors.VectorMLP"])
def test_an_encoder_of_this_package_takes_its_own_arguments_alone(copied: Path, path: str) -> None:
    for unknown in ("out_features", "trust_remote_code", "spec"):
        setting = {"class_path": path, "init_args": {"width": 64, unknown: 1}}
        change_settings(copied, extractors={"fourier": setting})
        with pytest.raises(
            ConfigurationError, match=rf"no arguments \['{unknown}'\]; its arguments are .*width"
        ):
            load_exported(copied)


def test_a_class_that_would_train_is_not_even_imported(copied: Path) -> None:
    change_settings(
        copied,
        optimizer={"class_path": "no.such.module.Optimizer", "init_args": {}},
        lr_scheduler={"class_path": "os.system", "init_args": {"command": "false"}},
    )
    model = load_exported(copied)
    assert model.module.settings.optimizer["class_path"] == "torch.optim.AdamW"
    assert model.module.settings.lr_scheduler is None
    assert model.ask(fourier=[0] * 40)


@pytest.mark.parametrize("more", [{"auto_map": {}}, {"trust_remote_code": True}, {"x": 1}])
def test_a_configuration_has_its_keys_and_no_others(copied: Path, more: dict[str, object]) -> None:
    config = json.loads((copied / "mlecs_config.json").read_text())
    (copied / "mlecs_config.json").write_text(json.dumps(config | more))
    with pytest.raises(ConfigurationError, match=f"unknown keys {re.escape(str([*more]))}"):
        load_exported(copied)
    change_settings(copied, **more)
    with pytest.raises(ConfigurationError, match="unknown keys"):
        load_exported(copied)


def change_settings(folder: Path, **values: object) -> None:
    config = json.loads((folder / "mlecs_config.json").read_text())
    config["settings"] |= values
    (folder / "mlecs_config.json").write_text(json.dumps(config))


def test_an_encoder_of_another_package_is_loaded_if_it_is_trusted(
    copied: Path, exported: Path
) -> None:
    config = json.loads((copied / "mlecs_config.json").read_text())
    config["settings"]["extractors"] = {
        "fourier": {"class_path": "mlecs_lightning.nn.extractors.VectorMLP"}
    }
    (copied / "mlecs_config.json").write_text(json.dumps(config))
    assert load_exported(copied).ask(fourier=[0] * 40) == load_exported(exported).ask(
        fourier=[0] * 40
    )
    config["settings"]["extractors"]["fourier"] = {"class_path": "torch.nn.Identity"}
    (copied / "mlecs_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="trust_extractors=True"):
        load_exported(copied)
    with pytest.raises(ConfigurationError, match="out_features"):
        load_exported(copied, trust_extractors=True)


def test_a_model_that_goes_elsewhere_leaves_the_weights_of_others_where_they_are(
    exported: Path, model: ExportedModel
) -> None:
    moved = load_exported(exported, device="meta")
    assert {p.device.type for p in moved.module.parameters()} == {"meta"}
    assert {p.device.type for p in model.module.parameters()} == {"cpu"}
