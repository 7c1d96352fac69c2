"""Wrong configurations and commands: each is refused in words that say what to change."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.cli.messages import missing

MODALITIES = "['pixels', 'profile', 'fourier']"
CLIENT_KEYS = (
    "'modalities', 'domains', 'backbone', 'lora', 'connector', 'extractors', 'optimizer', "
    "'lr_scheduler'"
)
DATA = "['Digits', 'HubDataset', 'Manifest', 'URFall']"
ALGORITHMS = (
    "'CDCCA', 'Centralized', 'CoPLMs', 'ECLM', 'FedAvg', 'FedMD', 'FedProx', 'FediLoRA', "
    "'LocalTraining', 'MLECS', 'MultiFedAvg', 'Standalone', 'StandalonePublic'"
)
URFALL = "--data URFall --clients '{hall: {modalities: [acc]}}' --data.root"

# What is typed behind a configuration that runs, and what must be in the message. TMP is a folder.
COMMANDS: dict[str, tuple[str, list[str]]] = {
    # The command itself ---------------------------------------------------------------------------
    "key without a value": ("--ckpt_path", ["ckpt_path", "expected one argument"]),
    "unknown key": ("--colour red", ["--colour", "'data', 'algorithm', 'server', 'edge'"]),
    "unknown key of a section": (
        "--trainer.max_epochs 3",
        ["--trainer.max_epochs", "'max_rounds', 'accelerator'"],
    ),
    "renamed key": (
        "--trainer.min_clients=2",
        ["trainer.min_clients is now trainer.participation.min_clients"],
    ),
    "fraction of the clients": (
        "--trainer.participation.fraction 2",
        ["trainer.participation.fraction", "(0, 1]", "got 2.0"],
    ),
    "unknown key of a group": (
        "--trainer.participation.share 2",
        ["--trainer.participation.share", "known: ['fraction', 'min_clients']"],
    ),
    "stray word": ("quickly", ["unrecognized arguments: quickly"]),
    "missing config": ("--config TMP/none.yaml", ["does not exist", "TMP/none.yaml"]),
    "folder as config": ("--config TMP", ["not a file", "TMP"]),
    "option that is no YAML": ("--clients.hall.modalities '[pixels'", ["hall.modalities: no YAML"]),
    # Classes and their arguments ------------------------------------------------------------------
    "unknown algorithm": ("--algorithm FedSprox", ['"algorithm"', "FedSprox", ALGORITHMS]),
    "algorithm of another kind": ("--algorithm torch.nn.Linear", ["torch.nn.Linear", ALGORITHMS]),
    "abstract algorithm": ("--algorithm Algorithm", ["Algorithm is abstract", ALGORITHMS]),
    "unknown data": (
        "--data MNIST",
        ['"data"', "MNIST", DATA],
    ),
    "abstract data": (
        "--data FederatedDataModule",
        ["is abstract", DATA],
    ),
    "unknown argument of the data": ("--data.colour red", ['"data"', "colour", "'batch_size'"]),
    "unknown argument of the algorithm": (
        "--algorithm.colour red",
        ['"algorithm"', "'colour'", "'temperature', 'contrast_weight'"],
    ),
    "unknown schedule": (
        "--data.schedule DomainStrem",
        ['"schedule"', "DomainStrem", "['DomainStream', 'Drift']"],
    ),
    "schedule of a domain that nobody has": (
        "--data.partition domain --data.schedule DomainStream --data.schedule.domains '[thin]'",
        [
            "clients.kitchen has no training samples of 'thin', only of ['light']",
            "clients.hall has",
        ],
    ),
    "unknown codec": ("--trainer.codec Zip", ['"trainer.codec"', "Zip", "['DWC']"]),
    "codec of three bits": (
        "--trainer.codec DWC --trainer.codec.bits 3",
        ["trainer.codec.init_args.bits must be one of [2, 4, 8, 16, 32], got 3"],
    ),
    "unknown kind of steps": (
        "--algorithm.steps '{publik: 1}'",
        ["steps", "publik", "['warmup', 'public', 'private', 'server']"],
    ),
    "unknown optimizer": ("--edge.optimizer AdamX", ['"edge.optimizer"', "AdamX", "'AdamW'"]),
    "unknown argument of the optimizer": (
        "--server.optimizer.init_args.speed 3",
        ['"server.optimizer"', "speed", "'lr', 'betas'"],
    ),
    "optimizer argument of another type": (
        "--edge.optimizer.init_args.lr fast",
        ['"edge.optimizer"', '"lr"', "'float'", "fast"],
    ),
    "learning rate below 0": (
        "--edge.optimizer.init_args.lr -1",
        ["edge.optimizer.init_args", "torch.optim.AdamW", "learning rate: -1", "'lr': -1"],
    ),
    "unknown scheduler": (
        "--edge.lr_scheduler '{class_path: CosineX}'",
        ['"edge.lr_scheduler"', "CosineX", "'CosineAnnealingLR'"],
    ),
    "argument that a scheduler needs": (
        "--server.lr_scheduler '{class_path: CosineAnnealingLR}'",
        ["server.lr_scheduler", "T_max"],
    ),
    "scheduler that waits for a loss": (
        "--clients.hall.lr_scheduler '{class_path: ReduceLROnPlateau}'",
        ["clients.hall.lr_scheduler.class_path", "'ReduceLROnPlateau'", "by rounds"],
    ),
    "unknown optimizer of a client": (
        "--clients.hall.optimizer '{class_path: AdamX}'",
        ["clients.hall.optimizer.class_path", "'AdamX'", "'AdamW'", "'SGD'"],
    ),
    "unknown argument of a client's optimizer": (
        "--clients.hall.optimizer.init_args.speed 3",
        ["clients.hall.optimizer.init_args", "'speed'", "['lr', 'betas'"],
    ),
    "optimizer that is none": (
        "--clients.hall.optimizer '{class_path: torch.nn.ParameterList}'",
        ["clients.hall.optimizer", "torch.nn.ParameterList"],
    ),
    "unknown extractor": (
        "--edge.extractors '{pixels: {class_path: SoundCNN}}'",
        ["edge.extractors.pixels.class_path", "'SoundCNN'", "'ImageCNN', ", "'VectorMLP'"],
    ),
    "unknown argument of an extractor": (
        "--clients.kitchen.extractors.pixels '{class_path: ImageCNN, init_args: {deep: 3}}'",
        [
            "clients.kitchen.extractors.pixels.init_args",
            "'deep'",
            "['channels', 'width', 'tokens']",
        ],
    ),
    "extractor without class_path": (
        "--clients.kitchen.extractors.pixels ImageCNN",
        ["clients.kitchen: extractors.pixels", "expected class_path and init_args", "'ImageCNN'"],
    ),
    "extractor of an unknown modality": (
        "--edge.extractors '{sound: {class_path: SeriesCNN}}'",
        ["edge.extractors: 'sound'", MODALITIES],
    ),
    # Types ----------------------------------------------------------------------------------------
    "words for a number": ("--trainer.max_rounds many", ['"trainer.max_rounds"', "'int'", "many"]),
    "yes for a number": ("--edge.lora.r true", ['"edge.lora.r"', "'int'", "True"]),
    "unknown precision": (
        "--trainer.precision 8-true",
        ['"trainer.precision"', "8-true", "'32-true', 'bf16-mixed', '16-mixed'"],
    ),
    "unknown dtype": (
        "--edge.backbone.dtype int8",
        ['"edge.backbone.dtype"', "int8", "'auto', 'float32', 'bfloat16', 'float16'"],
    ),
    "unknown component": (
        "--algorithm.components [ccl,mmm]",
        ['"components"', "mmm", "'ccl', 'amt', 'mma', 'se_ccl'"],
    ),
    "unknown aggregation": (
        "--algorithm.aggregation mode",
        ['"aggregation"', "mode", "'separate', 'stack', 'svd', 'freeze_a'"],
    ),
    "unknown partition": (
        "--data.partition random",
        ['"partition"', "random", "'domain', 'dirichlet'"],
    ),
    "clients in a list": ("--clients [hall]", ['"clients"', "'dict'", "['hall']"]),
    "modalities in a word": (
        "--clients.hall.modalities pixels",
        ["clients.hall.modalities", "a list of str", "'pixels'"],
    ),
    "number for keys": ("--clients.hall.lora 4", ["clients.hall.lora", "keys and their", "4"]),
    "word for a rank": ("--clients.hall.lora '{r: four}'", ["hall.lora.r", "int", "'four'"]),
    "yes for a rank": ("--clients.hall.lora.r true", ["hall.lora.r: expected int, got True"]),
    "half a rank": ("--clients.hall.lora.r 2.5", ["clients.hall.lora.r", "int", "2.5"]),
    "unknown dtype of a client": (
        "--clients.hall.backbone.dtype int8",
        ["clients.hall.backbone.dtype", "'int8'", "['auto', 'float32', 'bfloat16', 'float16']"],
    ),
    "word for a client": ("--clients.hall pixels", ["clients.hall", "'pixels'", CLIENT_KEYS]),
    # Ranges ---------------------------------------------------------------------------------------
    "no rounds": ("--trainer.max_rounds 0", ["trainer.max_rounds", "at least 1", "got 0"]),
    "negative limit": (
        "--trainer.limit_val_batches -1",
        ["trainer.limit_val_batches", "at least 0", "-1"],
    ),
    "no device": ("--trainer.devices 0", ["trainer: ", "devices=0"]),
    "devices in words": ("--trainer.devices two", ["trainer: ", "devices", "an int > 0"]),
    "unknown accelerator": ("--trainer.accelerator abacus", ["trainer: ", "'abacus'", "cpu"]),
    "unknown strategy": ("--trainer.strategy hope", ["trainer: ", "'hope'", "ddp"]),
    "file as folder": (
        "--trainer.default_root_dir TMP/rubbish.ckpt",
        ["trainer.default_root_dir", "TMP/rubbish.ckpt"],
    ),
    "negative seed": ("--seed_everything -1", ["seed_everything", "[0, 2**32)", "-1"]),
    "negative steps": ("--algorithm.steps.public -1", ["steps", "not be negative", "public=-1"]),
    "temperature of 0": ("--algorithm.temperature 0", ["temperature", "positive", "got 0.0"]),
    "negative weight": ("--algorithm.contrast_weight -1", ["weight", "not negative", "-1.0"]),
    "nothing received": ("--algorithm.adapter_mix 0", ["adapter_mix", "(0, 1]", "got 0.0"]),
    "alpha of 0": ("--data.alpha 0", ["data.init_args.alpha", "positive", "got 0.0"]),
    "sample rate over 1": ("--data.sample_rate 1.5", ["sample_rate", "(0, 1]", "1.5"]),
    "all for validation": ("--data.val_fraction 1", ["val_fraction", "[0, 1)", "1.0"]),
    "no private samples": ("--data.public_fraction 0.9", ["public_fraction", "leave", "0.9"]),
    "negative workers": ("--data.num_workers -1", ["data.init_args.num_workers", "at least 0"]),
    "rank of 0": ("--edge.lora.r 0", ["edge.lora", "r must be at least 1", "r=0"]),
    "dropout over 1": ("--server.lora.dropout 1.5", ["server.lora", "[0, 1)", "dropout=1.5"]),
    "no prompt": ("--edge.connector.prompt_length 0", ["edge.connector", "prompt_length=0"]),
    "no answer": ("--edge.max_new_tokens 0", ["edge: max_new_tokens", "at least 1", "got 0"]),
    # Clients --------------------------------------------------------------------------------------
    "no clients": ("--clients {}", ["clients: name at least one", "count and modality_rate"]),
    "no drawn clients": ("--clients '{count: 0}'", ["clients.count", "at least 1", "got 0"]),
    "rate over 1": (
        "--clients '{count: 2, modality_rate: 1.5}'",
        ["clients.modality_rate", "(0, 1]", "1.5"],
    ),
    "unknown key of drawn clients": (
        "--clients '{count: 2, rate: 0.5}'",
        ["clients: unknown keys ['rate']", "['count', 'modality_rate', 'seed']"],
    ),
    "unknown client in an override": (
        "--clients.attic.lora.r 4",
        ["--clients.attic.lora.r", "no client 'attic'", "['kitchen', 'hall']"],
    ),
    "unknown key of a client": (
        "--clients.hall.sensors [pixels]",
        ["clients.hall: unknown keys ['sensors']", CLIENT_KEYS],
    ),
    "unknown key of a client's part": (
        "--clients.hall.lora.rank 4",
        [
            "clients.hall.lora: unknown keys ['rank']",
            "['r', 'alpha', 'dropout', 'target_modules', 'private_r', 'scope']",
        ],
    ),
    "client without the key modalities": (
        "--clients.attic '{domains: [bold]}'",
        ["clients.attic: modalities is missing", CLIENT_KEYS],
    ),
    "client without modalities": (
        "--clients.hall.modalities []",
        ["clients.hall.modalities is empty", MODALITIES],
    ),
    "modality twice": (
        "--clients.hall.modalities [pixels,pixels]",
        ["clients.hall.modalities", "['pixels', 'pixels']", "twice"],
    ),
    "unknown modality": (
        "--clients.hall.modalities [smell]",
        ["clients.hall.modalities: 'smell'", MODALITIES],
    ),
    "unknown domain": (
        "--data.partition domain --clients.hall.domains [attic]",
        ["clients.hall.domains: 'attic'", "['bold', 'light']"],
    ),
    "domain that nobody reads": (
        "--clients.hall.domains [bold]",
        ["clients.hall.domains", "data.init_args.partition: domain", "'dirichlet'"],
    ),
    "empty private split": (
        "--data.partition domain --clients.hall.domains []",
        ["clients.hall has no private samples", "`domains`", "data.init_args.alpha"],
    ),
    "name of the server": ("--clients.server '{modalities: [pixels]}'", ["'server' is taken"]),
    "name that is a path": (
        "--clients '{../hall: {modalities: [pixels]}}'",
        ["clients: the name '../hall'", "a letter, a digit"],
    ),
    "batch of one under CCL": (
        "--data.batch_size 1",
        ["data.init_args.batch_size is 1", "['ccl', 'se_ccl']", "at least 2"],
    ),
    "other rank": (
        "--clients.hall.lora.r 4",
        ["clients.hall.lora has r=4", "clients.kitchen has r=2", "'separate'", "'stack'"],
    ),
    "other width": (
        "--clients.hall.connector.width 32",
        ["clients.hall: connector.width is 32", "server's is 16"],
    ),
    "unknown backbone of a client": (
        "--clients.hall.backbone.model TMP/model",
        ["clients.hall.backbone.model: there is no directory 'TMP/model'", "a hub id is"],
    ),
    "unknown pocket": (
        "--server.backbone.model pocket/xl",
        ["server.backbone.model 'pocket/xl'", "['pocket/llm', 'pocket/slm', 'pocket/xs']"],
    ),
    "unknown folder of a backbone": (
        "--edge.backbone.model TMP/model",
        [
            "edge.backbone.model",
            "no directory 'TMP/model'",
            "['pocket/llm', 'pocket/slm', 'pocket/xs']",
        ],
    ),
    # Files ----------------------------------------------------------------------------------------
    "data without root": ("--data URFall", ['"data"', "URFall", "required: root"]),
    "missing data root": (
        f"{URFALL} TMP/none",
        ["data.init_args.root: 'TMP/none' is not a folder"],
    ),
    "data root without files": (
        f"{URFALL} TMP --data.stride 2",
        ["data.init_args.root: 'TMP' lacks files", "accelerometer/: found 0 of 69", "adl-03-acc"],
    ),
    "missing checkpoint": ("--ckpt_path TMP/none.ckpt", ["ckpt_path", "no file 'TMP/none.ckpt'"]),
    "rubbish as checkpoint": ("--ckpt_path TMP/rubbish.ckpt", ["ckpt_path", "TMP/rubbish.ckpt"]),
    "best of nothing": ("--ckpt_path best", ["ckpt_path: 'best'", "no checkpoint", "runs/tiny"]),
}

# A second file, and what must be in the message.
FILES: dict[str, tuple[str, list[str]]] = {
    "no YAML": ("clients: {kitchen: [", ["--config TMP/second.yaml: no YAML", "while parsing"]),
    "list": ("[clients, trainer]", ["TMP/second.yaml: expected keys", "['clients', 'trainer']"]),
    "nothing": ("# later\n", ["TMP/second.yaml: expected keys and their values", "None"]),
    "no text": ("\udcff\udcfe", ["TMP/second.yaml: is no text in UTF-8 but in UTF-16"]),
    "unknown key": ("colour: red", ["'colour'", "'data', 'algorithm', 'server', 'edge'"]),
    "unknown key of a section": (
        "edge: {lora: {rank: 4}}",
        ["'edge.lora.rank'", "['r', 'alpha', 'dropout', 'target_modules', 'private_r', 'scope']"],
    ),
    "renamed keys": (
        "trainer: {client_fraction: 0.5, large_update: clip}",
        [
            "second.yaml: trainer.client_fraction is now trainer.participation.fraction",
            "second.yaml: trainer.large_update is now trainer.update_limits.on_excess",
        ],
    ),
    "client twice": (
        "clients:\n  attic: {modalities: [pixels]}\n  attic: {modalities: [fourier]}",
        ["TMP/second.yaml: written twice", "['clients.attic']"],
    ),
    "client without keys": ("clients: {attic: }", ["clients.attic", "None", CLIENT_KEYS]),
    "unknown class": (
        "data: {class_path: mlecs_lightning.MNIST}",
        ['"data"', "mlecs_lightning.MNIST", DATA],
    ),
}


@pytest.mark.usefixtures("before_any_model")
@pytest.mark.parametrize(("args", "words"), COMMANDS.values(), ids=COMMANDS.keys())
def test_a_wrong_command_is_refused(
    refused: Callable[..., str], tmp_path: Path, args: str, words: list[str]
) -> None:
    (tmp_path / "rubbish.ckpt").write_bytes(b"rubbish")
    message = refused(*shlex.split(args.replace("TMP", str(tmp_path))))
    assert missing(words, message, tmp_path) == [], message


@pytest.mark.usefixtures("before_any_model")
@pytest.mark.parametrize(("text", "words"), FILES.values(), ids=FILES.keys())
def test_a_wrong_file_is_refused(
    refused: Callable[..., str], tmp_path: Path, text: str, words: list[str]
) -> None:
    second = tmp_path / "second.yaml"
    second.write_text(text, errors="surrogateescape")
    message = refused("--config", second)
    assert missing(words, message, tmp_path) == [], message


# Several faults at once ---------------------------------------------------------------------------


@pytest.mark.usefixtures("before_any_model")
def test_all_faults_of_the_parts_come_in_one_message(refused: Callable[..., str]) -> None:
    """And of how the sound parts fit: the optimiser of the server, the modalities of a client."""
    title, *faults = refused(
        *("--seed_everything", -1),
        *("--trainer.max_rounds", 0),
        *("--data.alpha", 0, "--data.batch_size", 0, "--data.test_fraction", 0),
        *("--algorithm.temperature", 0, "--algorithm.adapter_mix", 2),
        *("--edge.lora.r", 0, "--edge.connector.width", 0, "--edge.max_new_tokens", 0),
        *("--server.optimizer.init_args.lr", -1, "--server.backbone.model", "pocket/xl"),
        *("--clients.hall.sensors", 1, "--clients.hall.lora", 4),
        *("--clients.attic", "{domains: bold}", "--clients.a/b", "{modalities: [pixels]}"),
    ).splitlines()
    assert title == "the configuration has faults:"
    found = [" ".join(fault.split()[:3]) for fault in faults]
    assert sorted(found) == sorted(
        [
            "seed_everything must lie",
            "trainer.max_rounds must be",
            "data.init_args.batch_size must be",
            "data.init_args.public_fraction and test_fraction",
            "algorithm.init_args.adapter_mix must lie",
            "algorithm.init_args: temperature must",
            "edge.connector: connector: width",
            "edge.lora: lora: r",
            "edge: max_new_tokens must",
            "server.optimizer.init_args: torch.optim.AdamW: Invalid",
            "server.backbone.model 'pocket/xl': the",
            "clients.hall: unknown keys",
            "clients.hall.lora: expected keys",
            "clients.attic: modalities is",
            "clients.attic.domains: expected a",
            "clients: the name",
        ]
    )
    assert "data.init_args.alpha must be positive, got 0.0" in "".join(faults)


@pytest.mark.usefixtures("before_any_model")
def test_a_fault_of_one_part_hides_no_fault_of_another_and_makes_none_up(
    refused: Callable[..., str],
) -> None:
    message = refused(
        *("--trainer.max_rounds", 0),
        *("--clients.kitchen.sensors", 1, "--clients.kitchen.lora.r", 4),
        *("--clients.hall.lora", "{r: 4, dropout: 0}", "--clients.hall.connector.width", 8),
        *("--clients.attic", "{modalities: [smell], extractors: {smell: {class_path: Nose}}}"),
        *("--clients.attic.lora.r", 4, "--clients.cellar", "{lora: {r: 4}}"),
    )
    assert message.splitlines() == [
        "the configuration has faults:",
        "trainer.max_rounds must be at least 1, got 0",
        f"clients.kitchen: unknown keys ['sensors'], known: [{CLIENT_KEYS}]",
        f"clients.cellar: modalities is missing; known: [{CLIENT_KEYS}]",
        "clients.hall: connector.width is 8, the server's is 16; all parties share one latent "
        "space",
        f"clients.attic.extractors: 'smell' is none of {MODALITIES}",
        f"clients.attic.modalities: 'smell' is not one of {MODALITIES}",
    ]
