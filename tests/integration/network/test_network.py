"""The same run in processes of their own, over TLS: equal to the simulation, bit by bit."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.network.processes import Network, configuration, simulated


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return simulated(tmp_path_factory.mktemp("simulated"), configuration())


def test_two_devices_over_tls_end_in_the_bits_of_the_simulation(
    flower: Path, tmp_path: Path
) -> None:
    config = configuration()
    config["trainer"]["max_rounds"] = 2  # a round costs five seconds of Flower's polls
    network = Network(tmp_path / "there", config, flower)
    assert network.run() == {"server": [0], "kitchen": [0], "hall": [0]}, network.log("server")
    assert network.state() == simulated(tmp_path / "here", config)


EVERYTHING = {"phone": {"modalities": ["pixels", "profile", "fourier"]}}
MLPS = {"lora": {"r": 2, "alpha": 4, "target_modules": ["c_fc", "mlp.c_proj"]}}
CODEC = {"codec": {"class_path": "DWC"}}
METHODS: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedProx": {"trainer": CODEC},
    "CoPLMs": {},
    "MultiFedAvg": {},
    "MLECS": {"trainer": CODEC},
    "ECLM": {"server": MLPS, "edge": MLPS},
    "CDCCA": {"clients": EVERYTHING},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_ends_in_the_bits_of_the_simulation(
    flower: Path, tmp_path: Path, method: str
) -> None:
    config = configuration(method)
    for part, values in METHODS[method].items():
        config[part] = values if part == "clients" else {**config[part], **values}
    network = Network(tmp_path / "there", config, flower)
    codes = network.run()
    assert set(map(tuple, codes.values())) == {(0,)}, network.log("server")
    assert network.state() == simulated(tmp_path / "here", config)


@pytest.mark.slow
def test_scores_come_from_the_devices_that_allow_it_by_ipv6_as_well(
    flower: Path, tmp_path: Path
) -> None:
    config = configuration("FedAvg")
    network = Network(tmp_path / "there", config, flower)
    network.host = "::1"
    network.options["server"] = ["--scores", "true"]
    network.options["kitchen"] = ["--allow", "[adapter, modalities, samples, report, scores]"]
    assert network.run() == {"server": [0], "kitchen": [0], "hall": [0]}, network.log("server")
    expected = simulated(tmp_path / "here", config)
    assert network.state() == expected

    at_server = tmp_path / "there" / "server" / "net" / "version_0" / "summary.json"
    at_device = tmp_path / "there" / "kitchen" / "net" / "kitchen" / "summary.json"
    seen, own = (json.loads(path.read_text())["clients"] for path in (at_server, at_device))
    assert seen["kitchen"]["own"] == own["kitchen"]["own"] != {}
    assert seen["hall"]["own"] == {}


STAGES = ["before the offer", "in training", "after the reply", "in the checkpoint"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("killed", [("server",), ("kitchen",), ("server", "kitchen")], ids="+".join)
def test_a_killed_party_goes_on_to_the_same_bits(
    flower: Path,
    unbroken: dict[str, object],
    tmp_path: Path,
    killed: tuple[str, ...],
    stage: str,
) -> None:
    network = Network(tmp_path, configuration("dying.Dying"), flower)
    for party in killed:
        kind = "server" if party == "server" else "device"
        mark = str(tmp_path / f"{party}.killed")
        network.environ[party] = {"MLECS_DIE": f"{kind}/{stage}", "MLECS_MARK": mark}
    codes = network.run()
    for party in ("server", "kitchen", "hall"):
        assert codes[party] == ([-9, 0] if party in killed else [0]), network.log(party)
    assert network.state() == unbroken
