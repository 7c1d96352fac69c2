"""The student that a device runs, exported into a folder of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlecs_lightning.algorithms import CDCCA
from mlecs_lightning.checkpoints.export import export_run
from mlecs_lightning.clients import ClientSettings
from mlecs_lightning.deploy import load_device_model
from mlecs_lightning.errors import ConfigurationError

ALL = ["pixels", "profile", "fourier"]
CUT = {"pixels": {"class_path": "ImageCNN", "init_args": {"tokens": 4, "width": 16}}}
ASK = """
import json, sys, torch
from mlecs_lightning import load_exported
model = load_exported(sys.argv[1])
samples = torch.load(sys.argv[2], weights_only=True)
print(json.dumps(model.ask_batch(samples)))
"""


@pytest.mark.slow  # a process of its own, and two exports
def test_a_student_answers_as_in_the_run_with_nothing_but_its_folder(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    """With several tokens a sensor, and trained beside alignment layers that stay in the cloud."""
    import torch

    algorithm = CDCCA(
        measure="features",
        answer_weight=1.0,
        feature_weight=1.0,
        train=["lora", "norms", "biases", "prompts"],
        steps=tiny.steps(warmup=30, public=0, private=1, server=2),
    )
    model, data = tiny.model(extractors=CUT), tiny.data()
    parties = tiny.parties({"phone": ClientSettings(ALL)}, server=model, edge=model)
    trainer = tiny.trainer(tmp_path, max_rounds=2, enable_checkpointing=True)
    trainer.fit(algorithm, data, parties)
    rows = trainer.predict(algorithm, data, parties, "last")
    table = data.held_out(
        "phone",
        trainer.open(algorithm, data, parties, "last", training=False).federation.parties.profiles[
            "phone"
        ],
    )
    said = {row["id"]: row["prediction"] for row in rows if row["party"] == "phone"}
    order = [i for i in table.ids if i in said]
    found = [table.ids.index(i) for i in order]
    samples = [{m: table.inputs[m][k] for m in ALL} for k in found]
    torch.save(samples, tmp_path / "samples.pt")

    run = rows.path.parent
    folder = export_run(run, tmp_path / "phone", client="phone")
    config = json.loads((folder / "mlecs_config.json").read_text())
    assert config["training"]["algorithm"] == "CDCCA"
    environment = {**os.environ, "MLECS_CACHE": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", ASK, str(folder), str(tmp_path / "samples.pt")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == [said[i] for i in order]
    assert len(set(said.values())) > 1

    programs = load_device_model(export_run(run, tmp_path / "pt2", client="phone", format="torch"))
    assert [programs.ask(**sample) for sample in samples] == [said[i] for i in order]
    with pytest.raises(ConfigurationError, match="CDCCA adds parts of its own"):
        export_run(run, tmp_path / "server", client="server")
