"""What attempts look like as objects of a cluster, word for word: the files under tests/golden are what is meant.

But for the job and the resolved configuration, whose form is not this package's, and the hash, which is of those, too.

After an intended change, look at the difference and write the files anew:
`PYTHONPATH=.:tests python tests/orchestrator/launch/rayjob/test_render_golden.py`.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.rendered_cases import CASES
from support.rendering import Object

from orchestrator.launch.rayjob.agreed import CONTENT_HASH, JOB_DOCUMENT, RESOLVED

GOLDEN = Path(__file__).parents[3] / "golden"
AGAIN = f"PYTHONPATH=.:tests python {Path(__file__).relative_to(Path(__file__).parents[4])}"


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a block, and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def objects(name: str) -> list[Object]:
    made = CASES[name]()
    found = copy.deepcopy(list(made.objects))
    for one in found:
        one["metadata"]["labels"][CONTENT_HASH] = "0" * len(made.content_hash)
        if one["kind"] == "ConfigMap":
            one["data"] |= {JOB_DOCUMENT: "(the job)", RESOLVED: "(the resolved configuration)"}
    return found


def golden(name: str) -> str:
    return yaml.dump_all(objects(name), Dumper=_Dumper, sort_keys=False, width=120, explicit_start=True)


def path(name: str) -> Path:
    return GOLDEN / f"rayjob-{name}.yaml"


@pytest.mark.parametrize("name", CASES)
def test_objects_are_as_meant(name: str) -> None:
    kept = path(name)
    assert kept.exists(), f"{kept} is missing; write it with: {AGAIN}"
    text = golden(name)
    assert list(yaml.safe_load_all(text)) == objects(name), "the file says what the objects say"
    assert text == kept.read_text(), f"{kept.name} differs; if that is intended: {AGAIN}"


def test_no_file_of_a_case_that_is_gone_is_left_over() -> None:
    assert sorted(GOLDEN.glob("rayjob-*.yaml")) == sorted(path(name) for name in CASES)


if __name__ == "__main__":
    for case in CASES:
        path(case).write_text(golden(case))
