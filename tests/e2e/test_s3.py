"""A run whose checkpoints and weights lie on S3, with a worker killed on the way."""

from __future__ import annotations

from collections.abc import Callable

import fsspec
import pytest
import s3fs
from support.faults import one
from support.home import STEPS, Done, Home, events, history, weights
from support.s3 import serving, use

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3600)]


def test_a_killed_worker_goes_on_from_s3(
    calm: tuple[Home, Done], make_home: Callable[[], Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as port:
        use(monkeypatch, port)
        s3fs.S3FileSystem.clear_instance_cache()
        s3 = fsspec.filesystem("s3")
        s3.mkdir("team")
        home = make_home()
        home.inject(one("kill", 120, 1))
        done = home.fathom("train", "job.yaml", "-o", "json", "--set", "checkpoint.uri=s3://team/tiny")
        assert done.code == 0, done.err
        assert home.happened() == 1
        resumed = [e.resumed_from for e in events(home.run_folder()) if e.kind == "started"]
        assert len(resumed) == 2
        assert str(resumed[1]).startswith("s3://team/tiny/checkpoints/step-")
        assert history(home.run_folder()) == history(calm[0].run_folder())
        assert f"team/tiny/checkpoints/step-{STEPS}/manifest.json" in s3.find("team/tiny/checkpoints")
        written = {path.rpartition("/")[2]: s3.cat_file(path) for path in s3.find("team/tiny/weights")}
        assert written == weights(calm[0].run_folder())
        listed = home.fathom("checkpoints", "verify", home.run_folder().root)
        assert listed.code == 0, listed.err
        assert f"step-{STEPS}" in listed.out or str(STEPS) in listed.out
