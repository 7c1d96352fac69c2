"""configs/paper/: the reference models and values, built on meta tensors, which hold no numbers."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
import yaml

from mlecs_lightning.modules import EdgeModule, ServerModule
from mlecs_lightning.nn import loading, tower
from mlecs_lightning.nn.words import WordReader
from mlecs_lightning.types import Batch
from mlecs_lightning.wire import Schema
from tests.integration.parsed import Parsed

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "configs" / "paper"
# pocket.yaml is no run of its own: it comes on top of vast.yaml.
PAPER = sorted(path for path in FOLDER.glob("*.yaml") if path.stem != "pocket")
# The sizes that the hub has under these names.
CONFIGS = {
    "MiniLLM/MiniLLM-gpt2-720M": transformers.GPT2Config(n_layer=36, n_embd=1280, n_head=20),
    "EleutherAI/gpt-j-6b": transformers.GPTJConfig(),
}


@pytest.fixture(scope="module")
def asked(tiny: SimpleNamespace) -> Iterator[list[str]]:
    """Serve the configurations of the reference models in place of their 25 GB of weights.

    Yields:
        The names that were asked for.
    """
    names: list[str] = []
    # Any tokenizer whose tokens the models embed.
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny.pocket())

    def build(name: str, **options: Any) -> tuple[transformers.PreTrainedModel, dict[str, Any]]:
        names.append(name)
        # Eager: the others look into the mask, and a meta tensor has nothing to see.
        model = transformers.AutoModelForCausalLM.from_config(
            CONFIGS[name], dtype=getattr(torch, options["dtype"]), attn_implementation="eager"
        )
        return model, {"missing_keys": []}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", build)
        patch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
        yield names
    loading._load.cache_clear()


@pytest.fixture(
    scope="module",
    params=[pytest.param(p, marks=[pytest.mark.slow] if p.stem == "urfall" else []) for p in PAPER],
    ids=lambda path: path.stem,
)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def cli(path: Path) -> Parsed:
    return Parsed(["fit", "--config", str(path)])


@pytest.fixture(scope="module")
def server(cli: Parsed, asked: list[str]) -> ServerModule:
    settings = cli.federation
    with torch.device("meta"):
        return ServerModule(settings.server, settings.edge, cli.datamodule.modalities).train()


@pytest.fixture(scope="module")
def edge(cli: Parsed, asked: list[str]) -> EdgeModule:
    with torch.device("meta"):
        return EdgeModule(cli.federation.edge, cli.datamodule.modalities)


def trained(module: EdgeModule | ServerModule, tower: str) -> int:
    """Count the weights of an adapter."""
    return sum(p.numel() for p in module.tower(tower).backbone.parameters() if p.requires_grad)


def test_both_data_sets_are_there() -> None:
    assert [path.stem for path in PAPER] == ["urfall", "vast"]


def test_values_are_those_of_the_reference_configuration(cli: Parsed, path: Path) -> None:
    for party in (cli.federation.server, cli.federation.edge):
        assert (party.lora.r, party.lora.alpha, party.lora.dropout) == (8, 16, 0.05)
        assert (party.connector.width, party.connector.prompt_length) == (256, 16)
        assert party.optimizer["class_path"] == "torch.optim.AdamW"
        assert party.optimizer["init_args"]["lr"] == 2e-4
    assert cli.federation.server.backbone.model == "EleutherAI/gpt-j-6b"
    assert cli.federation.edge.backbone.model == "MiniLLM/MiniLLM-gpt2-720M"
    assert cli.datamodule.batch_size == 4
    steps = cli.algorithm.steps  # type: ignore[attr-defined]
    assert (steps.public, steps.private, steps.server) == (10, 10, 10)
    assert cli.algorithm.order == "public_first"  # type: ignore[attr-defined]
    assert cli.federation.clients.modality_rate == 0.7  # type: ignore[union-attr]
    written = yaml.safe_load(path.read_text())
    assert written["trainer"]["max_rounds"] == 5
    assert not any("lr_scheduler" in written[party] for party in ("server", "edge"))
    assert written["trainer"]["gradient_clip_val"] == 1.0
    assert written["seed_everything"] in (27, 34, 46, 52, 93)


def test_models_of_the_paper_are_built(
    server: ServerModule, edge: EdgeModule, asked: list[str], path: Path
) -> None:
    assert sorted(asked) == sorted(CONFIGS), "each is loaded once, for all who name it"
    slm = 774_030_080
    llm = 6_050_882_784
    # 36 layers, rank 8: c_attn 1280 -> 3840; c_proj 1280 -> 1280 and 5120 -> 1280.
    lora, further = 36 * 8 * (1280 + 3840), 36 * 8 * (1280 + 1280 + 5120 + 1280)
    assert trained(edge, "slm") == trained(server, "slm") == lora
    both = [lora / slm, (lora + further) / slm]
    assert both == pytest.approx([0.0019, 0.0052], abs=5e-5), "as docs/method.md infers"
    # What is left of 0.65 % of 774 M or 720 M weights, in representations of 256 values.
    left = [[(0.0065 * n - each) / 256 for n in (720e6, slm)] for each in (lora, lora + further)]
    assert left[0] == pytest.approx([12500, 13900], rel=0.01)
    assert left[1] == pytest.approx([2400, 3900], rel=0.03)
    assert trained(server, "llm") == 28 * 2 * 8 * (4096 + 4096)  # q_proj and v_proj
    frozen = [
        p for n, p in server.named_parameters() if not p.requires_grad and n.startswith("towers.")
    ]
    assert sum(p.numel() for p in frozen) == slm + llm
    assert sum(p.numel() * p.element_size() for p in frozen) == 2 * (slm + llm), "bfloat16"
    head = re.sub(r"\s*#", "", path.read_text().split("\n\n")[0])
    assert f"{2 * (slm + llm) / 1e9:.1f} GB" in re.sub(r"\s+", " ", head)
    # The states that clients keep hold no frozen weight.
    kept = sum(v.numel() * v.element_size() for v in edge.trainable_state().values())
    assert kept < 0.1 * slm


def test_texts_are_tokens_of_each_tower(server: ServerModule, edge: EdgeModule, path: Path) -> None:
    texts = ["vision", "audio", "subtitle"] if path.stem == "vast" else []
    for module in (server, edge):
        for each in module.towers.values():
            assert each.reader.limits == dict.fromkeys(texts, 64)  # type: ignore[union-attr]


def test_pocket_models_take_the_place_of_the_large_ones() -> None:
    both = [word for name in ("vast", "pocket") for word in ("--config", f"{FOLDER / name}.yaml")]
    federation = Parsed(["fit", *both]).federation
    assert federation.server.backbone.model == "pocket/llm"
    assert federation.edge.backbone.model == "pocket/slm"
    attention, mlp = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
    for party in (federation.server, federation.edge):
        assert party.lora.target_modules == [*attention, *mlp]
        assert (party.lora.r, party.lora.alpha) == (8, 16)


def test_a_batch_passes_through_them(server: ServerModule, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = server.specs

    def words(reader: WordReader, *_: object) -> tuple[Any, Any]:
        """Read a text, since a meta tensor has none."""
        said = reader.coder.encode("a light two")
        return (said,) * 4, {m: [said] * 4 for m in reader.limits}

    monkeypatch.setattr(WordReader, "__call__", words)
    monkeypatch.setattr(tower, "word_means", lambda rows, e: e.weight.new_zeros(4, e.embedding_dim))
    batch = Batch(
        ids=("a", "b", "c", "d"),
        modalities=tuple(specs),
        inputs={m: torch.zeros(4, *spec.shape, device="meta") for m, spec in specs.items()},
        present=torch.ones(4, len(specs), dtype=torch.bool, device="meta"),
        instructions=("describe the digit .",) * 4,
        targets=("a bold seven with more ink above .",) * 4,
    )
    with torch.device("meta"):
        outputs = {name: server.read(batch, tower=name) for name in server.towers}
    for name, width, vocabulary in (("llm", 4096, 50400), ("slm", 1280, 50257)):
        out = outputs[name]
        assert out.embeddings.prompt.shape == (4, 16, width)
        assert out.view.shape == out.embeddings.fused.shape == (4, 256)
        assert out.logits.shape == (*out.labels.shape, vocabulary)
    (outputs["llm"].loss + outputs["slm"].loss).backward()
    learned = {n for n, p in server.named_parameters() if p.grad is not None}
    idle = {n for n, p in server.named_parameters() if p.requires_grad} - learned
    assert idle == {n for n in idle if ".readout." in n}
    assert all(".lora_" in n for n in learned if ".backbone." in n)
    checkpointed = {
        name: any(getattr(m, "gradient_checkpointing", False) for m in tower.modules())
        for name, tower in server.towers.items()
    }
    assert checkpointed == {"llm": True, "slm": False}


def test_every_key_says_what_it_is_for(path: Path) -> None:
    keys = [line for line in path.read_text().splitlines() if ":" in line.split("#")[0]]
    # But those that only open what the next lines fill.
    opening = re.compile(r"\s*(init_args:|backbone:|class_path: \w+)$")
    assert [line for line in keys if "#" not in line and not opening.match(line)] == []


def test_a_client_s_round_is_at_most_0_65_percent_of_the_parameters(
    cli: Parsed, server: ServerModule, edge: EdgeModule
) -> None:
    """Counted in numbers that cross the channel, as its schemas declare them (arXiv 2602.14107)."""
    algorithm, steps = cli.algorithm, cli.algorithm.steps  # type: ignore[attr-defined]
    samples = steps.public * cli.datamodule.batch_size

    def numbers(schema: Schema, rows: int) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for name, tensor in schema.tensors.items():
            component = name.partition("/")[0]
            size = math.prod(rows if n is None else n for n in tensor.shape)
            sizes[component] = sizes.get(component, 0) + size
        return sizes

    slm = edge.tower().backbone
    own = sum(p.numel() for p in slm.parameters())
    pair = own + sum(p.numel() for p in server.tower("llm").backbone.parameters())
    up = numbers(algorithm.uplink(edge), samples)
    down = numbers(algorithm.downlink(edge), samples)  # type: ignore[arg-type]
    assert up == {"adapter": trained(edge, "slm")}
    assert down == {"adapter": trained(edge, "slm"), "fused": samples * 256}
    assert sum(up.values()) / own == pytest.approx(0.0019, abs=5e-5)
    assert sum(down.values()) / own <= 0.0065
    # Were the representations of 13,900 public samples to travel, it would be the paper's figure.
    everything = sum(numbers(algorithm.downlink(edge), 13_900).values())  # type: ignore[arg-type]
    assert everything / own == pytest.approx(0.0065, abs=5e-5)
    assert (sum(up.values()) + everything) / pair < 0.0014
