"""Files that wait are tested first, and stay whole."""

from __future__ import annotations

from dataclasses import dataclass

from support.order import waiting_first


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
