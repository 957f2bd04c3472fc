"""The program `helm` is found, or missed loudly."""

from pathlib import Path

from support.helm import NOT_RUN, find_helm, merged, not_run


def test_beside_the_server_or_on_the_path(tmp_path: Path) -> None:
    for name in ("assets", "bin", "empty"):
        (tmp_path / name).mkdir()
    for name in ("assets", "bin"):
        (tmp_path / name / "helm").touch(mode=0o755)
    path = {"PATH": str(tmp_path / "bin")}
    assert find_helm({"KUBEBUILDER_ASSETS": str(tmp_path / "assets"), **path}) == tmp_path / "assets" / "helm"
    assert find_helm({"KUBEBUILDER_ASSETS": str(tmp_path / "empty"), **path}) == tmp_path / "bin" / "helm"
    assert find_helm({"PATH": str(tmp_path / "empty")}) is None


def test_what_did_not_run_is_said_with_its_number() -> None:
    said = "2 tests of the chart did NOT run: they need helm, in KUBEBUILDER_ASSETS or on PATH"
    assert not_run([f"Skipped: {NOT_RUN}", f"Skipped: {NOT_RUN}", "Skipped: no browser"]) == said
    assert not_run(["Skipped: no browser"]) == ""


def test_values_are_merged_as_helm_does() -> None:
    assert merged({"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"c": [2]}, "d": None}) == {
        "a": {"b": 1, "c": [2]},
        "d": None,
    }
