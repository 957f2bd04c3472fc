"""What is kept of objects, and what is news."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.kube.cache import Cache
from orchestrator.kube.resources import Json, key_of


def thing(name: str, version: str = "1", uid: str = "u", **more: Any) -> Json:  # noqa: ANN401
    return {"metadata": {"namespace": "ns", "name": name, "resourceVersion": version, "uid": uid} | more}


def test_the_same_again_is_no_news() -> None:
    cache = Cache()
    assert cache.put(thing("a")) == "ns/a"
    assert cache.put(thing("a")) is None
    assert cache.put(thing("a", "2")) == "ns/a"
    assert cache.put(thing("a", "2", "another")) == "ns/a"
    assert cache.remove(thing("a")) == "ns/a"
    assert cache.remove(thing("a")) is None
    assert len(cache) == 0


def test_a_list_tells_what_is_new_changed_or_gone() -> None:
    cache = Cache()
    cache.replace([thing("same"), thing("changed"), thing("gone"), thing("another")])
    changed = cache.replace([thing("same"), thing("changed", "2"), thing("new"), thing("another", uid="v")])
    assert sorted(changed) == ["ns/another", "ns/changed", "ns/gone", "ns/new"]
    assert cache.get("ns/gone") is None
    assert len(cache) == 4


def test_what_is_the_same_is_not_made_again() -> None:
    cache = Cache()
    cache.replace([thing("same"), thing("changed")])
    before = cache.get("ns/same")
    assert cache.replace([thing("same"), thing("changed", "2")]) == ["ns/changed"]
    assert cache.put(thing("same")) is None
    assert cache.get("ns/same") is before, "20,000 jobs are listed again every ten minutes"


def test_what_nobody_reads_is_not_kept() -> None:
    cache = Cache()
    cache.put(thing("a", managedFields=[{"manager": "x"}]))
    assert cache.get("ns/a") == thing("a")
    whole = Cache(trim=lambda found: found)
    whole.put(thing("a", managedFields=[]))
    assert whole.get("ns/a") == thing("a", managedFields=[])


def test_a_namespace_is_not_the_beginning_of_another() -> None:
    cache = Cache()
    other = {"metadata": {"namespace": "ns2", "name": "b", "resourceVersion": "1"}}
    everywhere = {"metadata": {"name": "c", "resourceVersion": "1"}}
    for one in (thing("a"), other, everywhere):
        cache.put(one)
    assert cache.all("ns") == [thing("a")]
    assert len(cache.all()) == 3
    assert cache.get("c") == everywhere


@pytest.mark.parametrize("bad", [{}, {"metadata": None}, {"metadata": {}}, {"metadata": {"name": 3}}])
def test_an_object_without_a_name(bad: Json) -> None:
    with pytest.raises(ValueError, match=r"without metadata\.name"):
        key_of(bad)
