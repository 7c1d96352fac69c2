"""The small configuration on a manifest that a test has written."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture(scope="session")
def manifest_yaml(tiny_yaml: Path) -> Callable[..., Path]:
    """Write the lines of a manifest and a configuration that reads it; return the latter."""

    def write(
        folder: Path,
        lines: Iterable[Mapping[str, Any]],
        *,
        modalities: Mapping[str, Any],
        clients: Mapping[str, list[str]],
        model: str | None = None,
        max_new_tokens: int | None = None,
        steps: int | None = None,
        **data: Any,
    ) -> Path:
        file = folder / "samples.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        values = yaml.safe_load(tiny_yaml.read_text())
        read = {"file": str(file), "modalities": modalities, "cache_dir": str(folder / "cache")}
        values["data"] = {"class_path": "Manifest", "init_args": {**read, **data}}
        values["clients"] = {name: {"modalities": has} for name, has in clients.items()}
        if steps is not None:
            values["algorithm"]["init_args"]["steps"] = dict.fromkeys(
                ("warmup", "public", "private", "server"), steps
            )
        for party in ("server", "edge"):
            if model is not None:
                values[party]["backbone"]["model"] = model
            if max_new_tokens is not None:
                values[party]["max_new_tokens"] = max_new_tokens
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write
