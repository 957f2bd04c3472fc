"""Files that wait are tested first, and stay whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from support.order import require_findable, waiting_first


@dataclass(frozen=True)
class Collected:
    nodeid: str
    markers: tuple[str, ...] = ()

    def get_closest_marker(self, name: str) -> object | None:
        return name if name in self.markers else None


def test_whole_files_by_what_they_wait_for() -> None:
    quick, other = Collected("a/test_q.py::one"), Collected("b/test_o.py::one[x::y]")
    started = Collected("c/test_p.py::one", ("processes",))
    before, asked, after = (
        Collected("d/test_k.py::one"), Collected("d/test_k.py::two", ("kube",)), Collected("d/test_k.py::three"),
    )  # fmt: skip
    trained = Collected("e/test_r.py::one", ("processes", "ray"))
    items = [quick, other, started, before, asked, after, trained]
    waiting_first(items)  # type: ignore[arg-type]
    assert items == [trained, before, asked, after, started, quick, other]


def test_a_slow_test_names_its_marker_where_make_looks_for_it(tmp_path: Path) -> None:
    named, bare = tmp_path / "test_named.py", tmp_path / "test_bare.py"
    named.write_text("pytestmark = pytest.mark.ray\n")
    bare.write_text("pytestmark = other.marks\n")
    slow, quick = Collected("a/test_x.py::one", ("ray",)), Collected("a/test_x.py::one", ("kube",))
    require_findable(slow, named)
    require_findable(quick, bare)
    with pytest.raises(ValueError, match=r"a/test_x\.py::one: name its marker in the file itself"):
        require_findable(slow, bare)
