"""The list of a job's incidents (steps left out after a loss spike, say) beside its checkpoints, signed like them."""

from __future__ import annotations

import json
from typing import Any

from model.checkpoint.manifest import CheckpointError, mac, parse_json, same_mac
from model.checkpoint.storage import Storage

INCIDENTS = "incidents.json"
_LIMIT = 64 * 1024 * 1024


def read(storage: Storage, folder: str, job: str, key: bytes) -> list[dict[str, Any]]:
    """Empty if there is no such file; CheckpointError if it is not as we wrote it."""
    name = f"{folder}/{INCIDENTS}"
    try:
        content = parse_json(storage.read(name, _LIMIT))
        body = {"job": content["job"], "incidents": content["incidents"]}
        genuine = same_mac(content["signature"], mac(key, body)) and body["job"] == job
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        genuine = False
    if not genuine:
        raise CheckpointError(
            f"{name} is damaged, of another job, or signed with another key: put the right one back from a backup, or "
            "move it away to go on without (checkpoints remember which data was left out before them)"
        )
    rows: list[dict[str, Any]] = body["incidents"]
    return rows


def write(storage: Storage, folder: str, job: str, key: bytes, rows: list[dict[str, Any]]) -> None:
    """Replace the list."""
    body = {"job": job, "incidents": rows}
    storage.write(f"{folder}/{INCIDENTS}", json.dumps(body | {"signature": mac(key, body)}, indent=1).encode())
