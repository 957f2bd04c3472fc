from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.plan.hardware import accelerator, read_accelerators


@pytest.mark.parametrize(
    ("name", "bf16", "fp8", "gigabytes"),
    [
        ("A100", 312e12, None, 80),
        ("H100", 989.4e12, 1978.9e12, 80),
        ("H800", 989.4e12, 1978.9e12, 80),
        ("H200", 989.4e12, 1978.9e12, 141),
        ("B200", 2250e12, 4500e12, 180),
        ("GB200", 2500e12, 5000e12, 186),
    ],
)
def test_dense_peaks(name: str, bf16: float, fp8: float | None, gigabytes: int) -> None:
    found = accelerator(name)
    assert found.bf16_flops == pytest.approx(bf16)
    assert found.fp8_flops == (None if fp8 is None else pytest.approx(fp8))
    assert found.memory_bytes == gigabytes * 10**9
    assert found.source
    assert found.date.year >= 2026


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'cpu'; known: A100, H100, H800, H200, B200, GB200"):
        accelerator("cpu")


OWN = """\
- name: X
  bf16Teraflops: 1000
  fp8Teraflops: 2000
  memoryGigabytes: 100
  memoryTerabytesPerSecond: 4
  nvlinkGigabytesPerSecond: 400
  networkGigabytesPerSecond: 50
  tdpWatts: 700
  source: ours
  date: 2026-09-01
"""


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_links_and_power() -> None:
    h800, h100 = accelerator("H800"), accelerator("H100")
    assert (h800.nvlink_bytes_per_second, h800.network_bytes_per_second) == (160e9, 50e9)
    assert (h100.memory_bytes_per_second, h100.tdp_watts) == (3.35e12, 700)


def test_own_rows_come_first(tmp_path: Path) -> None:
    path = own(tmp_path, OWN + OWN.replace("name: X", "name: H100").replace("ytes: 100", "ytes: 96"))
    assert accelerator("X", path).bf16_flops == 1e15
    assert accelerator("H100", path).memory_bytes == 96 * 10**9
    assert accelerator("H200", path) == accelerator("H200")
    assert accelerator("H100").memory_bytes == 80 * 10**9
    with pytest.raises(UsageError, match="FATHOM_HARDWARE"):
        accelerator("Y", path)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("name: X", "name: ''", "name"),
        ("1000", "-1", "bf16Teraflops"),
        ("1000", ".nan", "bf16Teraflops"),
        ("1000", ".inf", "bf16Teraflops"),
        ("4\n", ".nan\n", "memoryTerabytesPerSecond"),
        ("tdpWatts: 700", "watts: 700", "tdpWatts"),
        ("source: ours", "source: ", "source"),
        ("2026-09-01", "soon", "date"),
    ],
)
def test_bad_rows_name_file_row_and_field(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in OWN
    path = own(tmp_path, OWN.replace("name: X", "name: W") + OWN.replace(old, new))
    with pytest.raises(UsageError) as caught:
        read_accelerators(path)
    message = str(caught.value)
    assert str(path) in message
    assert "row 2" in message
    assert says in message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name: X": "name: H100", "1000": "1978.9", "2000": "3957.8"}, "2.0 times the dense peak 989.4"),
        ({"2000": "4000"}, "4.0 times bf16Teraflops 1000"),
        (  # an H100 under a name of the user's own, both figures sparse
            {"1000": "1979", "2000": "3958", "ytes: 100": "ytes: 80", "Second: 4\n": "Second: 3.35\n"},
            "2.0 times the dense peak 989.4 of H100",
        ),
        (  # H100 PCIe
            {"1000": "1513", "2000": "3026", "ytes: 100": "ytes: 80", "Second: 4\n": "Second: 2.0\n"},
            "756 FLOP per byte",
        ),
        (  # B200
            {"1000": "4500", "2000": "9000", "ytes: 100": "ytes: 180", "Second: 4\n": "Second: 8\n"},
            "2.0 times the dense peak 2250 of B200",
        ),
        ({"name: X": "name: GB200", "1000": "5000", "2000": "10000"}, "2.0 times the dense peak 2500"),
    ],
)
def test_sparse_figures_are_refused_under_any_name(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    text = OWN
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(UsageError, match=says) as caught:
        read_accelerators(own(tmp_path, text))
    assert "row 1" in str(caught.value)
    assert "sparse" in str(caught.value)


@pytest.mark.parametrize(
    ("bf16", "fp8", "gigabytes", "bandwidth"),
    [(1307, 2615, 192, 5.3), (1835, 1835, 128, 3.7), (918, 918, 32, 1.64), (756, 1513, 80, 2.0), (362, 733, 48, 0.864)],
    ids=["MI300X", "Gaudi 3", "TPU v6e", "H100 PCIe", "L40S"],
)
def test_dense_figures_of_others_pass(
    tmp_path: Path, bf16: float, fp8: float, gigabytes: int, bandwidth: float
) -> None:
    text = OWN.replace("1000", str(bf16)).replace("2000", str(fp8)).replace("ytes: 100", f"ytes: {gigabytes}")
    text = text.replace("Second: 4\n", f"Second: {bandwidth}\n")
    assert read_accelerators(own(tmp_path, text))["X"].bf16_flops == bf16 * 1e12


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "list of rows"),
        ("a: 1\n", "list of rows"),
        ("- [1\n", "not valid YAML"),
        ("- 5\n", "row 1"),
        (OWN + OWN, "row 2: X: a second row"),
        ("#" * 1_000_001, "larger than 1000000 bytes"),
        ("[" * 5000, "not valid YAML"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_accelerators(own(tmp_path, text))


def test_missing_folder_and_binary_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError, match="FATHOM_HARDWARE"):
            read_accelerators(path)
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_accelerators(tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "says"), [("h100", "write H100"), ("cpu", "fathom calibrate"), ("'H200 '", "write H200")]
)
def test_a_name_that_would_never_be_found_is_refused(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(UsageError, match=f"row 1: .*{says}"):
        read_accelerators(own(tmp_path, OWN.replace("name: X", f"name: {name}")))
