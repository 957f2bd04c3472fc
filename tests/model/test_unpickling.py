"""Where something is unpickled, which runs whatever it says: in few places, and none of them reads what others made."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.headers import read_headers

ROOT = Path(__file__).parents[2]
PLACES = {
    ("model/collective.py", "pickle.loads"),  # of what this very process has pickled
    ("model/engine/host.py", "torch.load"),  # files of a checkpoint that was verified
    ("model/engine/masters.py", "torch.load"),
    ("model/engine/zero.py", "torch.load"),
}
LOADERS = {"load", "loads", "Unpickler", "read_pickle", "open"}
OWNERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch", "numpy", "np", "pd", "pandas"}


def called(path: Path) -> list[str]:
    """Calls by which code may come out of data."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            owner, _, function = name.rpartition(".")
            if name in ("eval", "exec") or (function in LOADERS and owner in OWNERS):
                found.append((name, node))
    return [name for name, node in found if not _is_plain_numpy(name, node)]


def _is_plain_numpy(name: str, node: ast.Call) -> bool:
    """numpy refuses pickles unless it is told otherwise."""
    return name.startswith("np.") and not any(word.arg == "allow_pickle" for word in node.keywords)


def test_where_pickles_are_read() -> None:
    files = [*(ROOT / "model").rglob("*.py"), *(ROOT / "orchestrator").rglob("*.py")]
    assert {(str(path.relative_to(ROOT)), name) for path in files for name in called(path)} == PLACES


def test_weights_of_others_are_safetensors_or_nothing(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert set(read_headers(str(tmp_path)).tensors) == {"a"}
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    assert read_headers(str(tmp_path)).problems
