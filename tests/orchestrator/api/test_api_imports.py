"""The process of the API is small: nothing that trains, tracks or draws is ever imported by it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "mlflow", "matplotlib", "pandas", "deepspeed", "transformers", "tokenizers")
SERVES = f"""
import sys
from pathlib import Path
sys.path[:0] = {[str(TESTS.parent), str(TESTS)]!r}
from support.api import Service
service = Service(Path(sys.argv[1]))
service.create()
assert len(service.reader.get("/v1/jobs").json()["items"]) == 1
gpus = {{"accelerator": "H100", "gpus": 8}}
planned = service.reader.post("/v1/plans", json={{"job": service.document(compute=gpus)}})
assert planned.json()["plan"]["cost"], planned.text
assert service.runner.patch("/v1/jobs/default/mini", json={{"spec": {{"suspend": True}}}}).status_code == 200
assert service.reader.get("/openapi.json").status_code == 200
for path in ("events", "metrics", "logs", "cost"):
    service.reader.get(f"/v1/jobs/default/mini/{{path}}")
print(*sorted({{name.partition(".")[0] for name in sys.modules}} & set({HEAVY!r})))
"""


def test_serving_imports_nothing_heavy(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVES, str(tmp_path)], capture_output=True, text=True, check=False, timeout=240
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
