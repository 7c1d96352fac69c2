"""Push to and load from the hub: real clients against a small server of our own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard, constants

from mlecs_lightning import load_exported
from mlecs_lightning.checkpoints.push import push_run
from mlecs_lightning.deploy.hub import upload
from mlecs_lightning.errors import ConfigurationError
from tests.unit.deploy.hub import running_hub

# In one process: to import torch takes most of the time.
PROGRAM = """
import json, sys
from mlecs_lightning import load_exported
from mlecs_lightning.__main__ import main
from mlecs_lightning.errors import ConfigurationError
run, samples = sys.argv[1], json.loads(sys.argv[2])
said = []
for words in (["me/hall"], ["me/hall", "--revision", "second", "--private"], ["me/hall me"]):
    said.append(main(["push", run, "--client", "hall", *words]))
said.append(load_exported("me/hall").ask_batch(samples))
said.append(load_exported("me/hall", revision="second").config["training"]["client"])
for name, revision in (("me/attic", None), ("me/hall", "third")):
    try:
        load_exported(name, revision=revision)
    except ConfigurationError as error:
        said.append(str(error))
import os
del os.environ["HF_TOKEN"]
said.append(main(["push", run, "--client", "hall", "me/other"]))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[SimpleNamespace]:
    with running_hub() as server:
        yield server


@pytest.fixture(scope="module")
def done(
    hub: SimpleNamespace, talking: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """What the program prints; HF_HUB_OFFLINE and HF_ENDPOINT are read at import."""
    home = tmp_path_factory.mktemp("hub")
    place = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_TOKEN": "hf_x"}
    there = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    test = talking.test
    samples = [{"fourier": test.inputs["fourier"][row].tolist()} for row in range(2)]
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(talking.folder), json.dumps(samples)],
        env={**there, **place, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    *printed, said = ran.stdout.splitlines()
    return SimpleNamespace(printed=printed, said=json.loads(said), err=ran.stderr, samples=samples)


@pytest.mark.slow
def test_what_is_pushed_answers_as_the_run(
    hub: SimpleNamespace, done: SimpleNamespace, talking: SimpleNamespace
) -> None:
    first, second, misspelt, answers, client, *_ = done.said
    assert (first, second, misspelt) == (0, 0, 1)
    assert answers == talking.trainer.client("hall").ask_batch(done.samples)
    assert client == "hall"
    repo = hub.repos["me/hall"]
    assert set(repo["branches"]) == {"main", "second"}
    assert done.printed[0] == f"{hub.address}/me/hall/commit/{repo['branches']['main']}"
    assert "me/hall me' is no name on the hub: expected user/name" in done.err
    assert set(hub.tokens) == {"Bearer hf_x", None}


@pytest.mark.slow
def test_the_card_has_the_scores_and_the_name(
    hub: SimpleNamespace, done: SimpleNamespace, talking: SimpleNamespace
) -> None:
    repo = hub.repos["me/hall"]
    files = repo["commits"][repo["branches"]["main"]]
    card = ModelCard(files["README.md"].decode())
    assert 'load_exported("me/hall")' in card.text
    assert card.data.model_name == "me/hall"
    scores = talking.trainer.summary["clients"]["hall"]["all"]
    listed = {(e.dataset_name, e.metric_type): e.metric_value for e in card.data.eval_results}
    expected = round(scores["rouge_lsum"], 4)
    assert listed["Digits, all domains", "rouge_lsum"] == pytest.approx(expected)
    assert {"adapter_model.safetensors", "mlecs_config.json", "SHA256SUMS"} <= files.keys()


@pytest.mark.slow
def test_what_the_hub_refuses_is_said(done: SimpleNamespace) -> None:
    *_, unknown, revision, code = done.said
    assert "there is no folder 'me/attic', and the hub says: " in unknown
    assert "there is no folder 'me/hall', and the hub says: " in revision
    assert code == 1
    assert "push me/other: " in done.err
    assert "`hf auth login` or HF_TOKEN" in done.err


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_that_cannot_be_reached_is_no_lack_of_permission(
    offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Read from the environment at import; nothing listens at port 1.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="push me/hall: the hub cannot be re") as caught:
        upload(tmp_path, "me/hall", private=False, revision=None)
    assert "hf auth login" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: load_exported(p, revision="main"), "is a folder: leave it out"),
        (lambda p: load_exported(p / "x" / "y"), "is not a folder that `export` wrote"),
        (lambda p: load_exported("./x/y"), "is not a folder that `export` wrote"),
        (lambda p: push_run(p, "hall", client="hall"), "'hall' is no name on the hub"),
    ],
)
def test_a_path_is_never_looked_up_on_the_hub(
    call: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        call(tmp_path)
