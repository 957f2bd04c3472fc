"""`fathom cost`: sums by every dimension, files that programs read, several runs, and what is refused."""

import csv
import datetime
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.base import BASE
from support.cli import Cli, command
from support.pages import alone, image
from support.runs import RATE, event, resolved, tiny_job

from orchestrator.controller.history import History
from orchestrator.controller.record import Record
from orchestrator.controller.report import training_flops
from orchestrator.cost.focus import COLUMNS, UNKNOWN, as_text
from orchestrator.cost.ledger import Ledger
from orchestrator.cost.timeline import Held
from orchestrator.launch.events import EventLog

ROOT = Path(__file__).parents[3]
OLD = ROOT / "tests/orchestrator/cost/data/ledger-v1.json"
T = datetime.datetime(2026, 6, 1, 23, 59, 40, tzinfo=datetime.UTC).timestamp()
"""Twenty seconds before the price changes."""
DEARER = RATE.model_copy(update={"per_hour": Decimal(7200), "date": datetime.date(2026, 6, 2), "source": "another"})


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs `fathom cost ...`: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "100")
    return command("cost", monkeypatch, capsys)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "tiny", team: str = "default", **changes: object) -> Path:
        """Two attempts: a dollar a second, two from midnight on; the first stalls and loses two steps."""
        record = Record.create(tmp_path / f"runs-{name}", tiny_job(name=name, namespace=team))
        job = resolved().job.model_copy(update={"name": name, "namespace": team, "uid": record.uid})
        for attempt in (1, 2):
            found = resolved(attempt=attempt, job=job, **({"later_rates": (DEARER,)} | changes))
            record.folder.resolved(attempt).write_text(found.model_dump_json())
        record.save_held([Held(1, T, T + 15), Held(2, T + 16, T + 30)])
        log = EventLog(record.folder.events)
        story = [
            event("started", T + 2, step=0, tokens=0, world_size=2),
            *(event("progress", T + 2 + n, step=n, tokens=100 * n) for n in range(1, 5)),
            event("ended", T + 14, outcome="failed", failure_class="stalled", seq=99),
            event("started", T + 18, attempt=2, step=2, tokens=200, world_size=2),
            *(event("progress", T + 18 + 2 * n, attempt=2, step=2 + n, tokens=200 + 100 * n) for n in range(1, 5)),
            event("ended", T + 28, attempt=2, outcome="succeeded", seq=99),
        ]
        for one in story:
            log.append(**one.model_dump(exclude={"seq", "version"}))
        return record.folder.root

    return make


def sums(cli: Cli, dimension: str, *runs: Path) -> dict[str, str]:
    code, out, _ = cli(*runs, "-o", "json")
    assert code == 0
    return {group["name"]: group["cost"] for group in json.loads(out)["by"][dimension]}


def test_each_dimension_adds_up(made: Callable[..., Path], cli: Cli) -> None:
    run = made()
    expected = {
        "class": {"starting": 3, "productive": 13, "recovering": 13, "lost": 2, "idle": 8},
        "attempt": {"attempt 1": 15, "attempt 2": 24},
        "cause": {"stalled": 15, "finished": 8},
        "team": {"default": 39},
        "price": {
            "1800 USD per cpu-hour, from 2026-06-01": 19,
            "3600 USD per cpu-hour, from 2026-06-02": 20,
        },
    }
    for dimension, costs in expected.items():
        assert {name: float(cost) for name, cost in sums(cli, dimension, run).items()} == costs
        code, out, _ = cli(run, "--by", dimension)
        assert code == 0
        for name, cost in costs.items():
            [line] = [line for line in out.split("\n\n")[0].splitlines() if line.startswith(name)]
            assert f"${cost}.00" in line


def test_what_a_person_reads(made: Callable[..., Path], cli: Cli) -> None:
    code, out, err = cli(made())
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["CLASS", "TIME", "CPU-HOURS", "COST", "SHARE"]
    [together] = [line.split() for line in out.splitlines() if line.startswith("together")]
    assert together == ["together", "29", "s", "0.016", "$39.00", "100.0%"]
    assert "tiny of team default: $39.00, 2 attempts" in out
    assert "wasted  $23.00 (59.0%): stalled $15.00, finished $8.00" in out
    assert "600 tokens, $65,000,000.00 per billion" in out
    assert "per useful exaFLOP (model FLOPs of tokens that count, forward and backward, causal attention" in out
    assert "1800 USD per cpu-hour from 2026-06-01: a list" in out
    assert "3600 USD per cpu-hour from 2026-06-02: another" in out


def test_runs_of_two_teams(made: Callable[..., Path], cli: Cli) -> None:
    one, two = made("one", "a"), made("two", "b")
    code, out, _ = cli(one, two, one, "--by", "team")
    assert code == 0
    assert [line.split()[0] for line in out.split("\n\n")[0].splitlines()] == ["TEAM", "a", "b", "together"]
    assert "$78.00" in out
    uids = [Record.open(run).uid[:8] for run in (one, two)]
    assert f"one ({uids[0]}) of team a: $39.00, 2 attempts" in out
    assert f"two ({uids[1]}) of team b: $39.00, 2 attempts" in out
    names = sums(cli, "attempt", one, two)
    assert len(names) == 4, "attempts of two jobs are not mixed"


def test_useful_work_is_that_of_the_tokens_that_count(made: Callable[..., Path], cli: Cli) -> None:
    _, out, _ = cli(made(), "-o", "json")
    [job] = json.loads(out)["jobs"]
    flops = 600 * training_flops(resolved().recipe)
    assert float(job["totals"]["usefulExaflops"]) == pytest.approx(flops / 1e18)
    assert float(job["totals"]["costPerExaflop"]) == pytest.approx(39 / (flops / 1e18))


def test_the_columns_of_focus(made: Callable[..., Path], cli: Cli) -> None:
    code, out, _ = cli(made(), "-o", "csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert tuple(rows[0]) == COLUMNS
    assert sum(Decimal(row["BilledCost"]) for row in rows) == 39
    first, later = rows[0], rows[-1]
    assert (first["ChargePeriodStart"], first["ConsumedQuantity"]) == ("2026-06-01T23:59:40.000000Z", "6")
    assert (first["x_TimeClass"], first["x_Cause"], first["x_Held"], first["x_Attempt"]) == (
        "starting",
        "",
        "true",
        "1",
    )
    assert (later["ListUnitPrice"], later["x_PriceDate"], later["x_PriceSource"]) == ("3600", "2026-06-02", "another")
    assert (later["ServiceCategory"], later["ChargeCategory"], later["SubAccountId"]) == ("Compute", "Usage", "default")
    for row in rows:
        assert not any(row[name] for name in UNKNOWN)
        exact = Decimal(row["ListUnitPrice"]) * Decimal(row["PricingQuantity"])
        assert abs(exact - Decimal(row["ListCost"])) < Decimal("1e-8")
    assert [name for name in COLUMNS if name.startswith("x_")] == list(COLUMNS[-7:]), "our own come last"


def test_parquet_keeps_money_exact(made: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "cost.parquet"
    code, out, err = cli(made(), "--output-file", file)
    assert (code, out) == (0, "")
    assert err == f"{file}: 7 rows of 1 run\n"
    table = pq.read_table(file)
    assert table.schema.field("BilledCost").type == pa.decimal128(38, 12)
    assert table.schema.field("ChargePeriodStart").type == pa.timestamp("us", tz="UTC")
    assert sum(table["BilledCost"].to_pylist()) == 39
    assert table["ChargePeriodStart"][0].as_py() == datetime.datetime(2026, 6, 1, 23, 59, 40, tzinfo=datetime.UTC)


def test_the_three_files_say_the_same(made: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    run, found = made(), {}
    for kind in ("csv", "json", "parquet"):
        assert cli(run, "--output-file", tmp_path / f"cost.{kind}")[0] == 0
    with (tmp_path / "cost.csv").open(newline="") as file:
        found["csv"] = list(csv.DictReader(file))
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    found["json"] = [{name: text(value) for name, value in row.items()} for row in rows]
    table = pq.read_table(tmp_path / "cost.parquet").to_pylist()
    found["parquet"] = [{name: text(value) for name, value in row.items()} for row in table]
    numbers = {field.name for field in pq.read_schema(tmp_path / "cost.parquet") if pa.types.is_decimal(field.type)}
    assert len(numbers) == 8
    for kind in ("json", "parquet"):
        for one, other in zip(found["csv"], found[kind], strict=True):
            assert one.keys() == other.keys()
            for name in one:
                assert (Decimal(one[name]) == Decimal(other[name])) if name in numbers else (one[name] == other[name])


def text(value: object) -> str:
    return as_text(value)  # type: ignore[arg-type]


def test_what_focus_forbids_to_be_empty_or_full(cli: Cli, made: Callable[..., Path]) -> None:
    """Version 1.2: of usage the pricing category must be there; a resource's type only with the resource."""
    for run in (OLD, made()):
        code, out, _ = cli(run, "-o", "csv")
        assert code == 0
        for row in csv.DictReader(io.StringIO(out)):
            assert row["PricingCategory"] in {"Standard", "Dynamic", "Committed", "Other"}
            assert bool(row["ResourceId"]) == bool(row["ResourceType"])
            never = ("BilledCost", "BillingCurrency", "ChargeCategory", "ContractedCost", "EffectiveCost", "ListCost")
            assert all(row[name] for name in (*never, "PricingQuantity", "PricingUnit", "ServiceCategory"))


def test_other_folders_beside_the_runs_are_left_out(cli: Cli, made: Callable[..., Path], tmp_path: Path) -> None:
    """As the shell gives them for runs/*/: the data, and what MLflow keeps."""
    data = tmp_path / "data"
    data.mkdir()
    code, out, err = cli(data, made())
    assert code == 0
    assert err == f"{data}: not the folder of a run, left out\n"
    assert "tiny of team default: $39.00" in out
    assert cli(data)[0] == 3
    assert cli(tmp_path / "mistyped", made("other"))[0] == 3


def test_what_to_write_follows_from_the_name_or_is_asked_for(
    cli: Cli, made: Callable[..., Path], tmp_path: Path
) -> None:
    run = made()
    code, _, err = cli(run, "--output-file", tmp_path / "cost.xlsx")
    assert code == 2
    assert "name it .csv, .json, .yaml, .parquet or .txt, or give -o" in err
    assert cli(run, "--output-file", tmp_path / "cost.xlsx", "-o", "csv")[0] == 0
    assert cli(run, "--output-file", tmp_path / "cost.txt")[2] == f"{tmp_path / 'cost.txt'}: table of 1 run\n"
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    code, _, err = cli(run, "--output-file", pipe, "--force")
    assert code == 2
    assert "is no plain file, and would be replaced by one" in err


def test_a_link_to_itself_is_no_run(cli: Cli, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    code, _, err = cli(loop)
    assert code == 2
    assert "Too many levels of symbolic links" in err


@pytest.mark.parametrize("option", ["--plot", "--html"])
def test_a_page_that_needs_no_other_file(made: Callable[..., Path], cli: Cli, tmp_path: Path, option: str) -> None:
    file = tmp_path / "cost.html"
    assert cli(made(), option, file)[0] == 0
    page = alone(file.read_bytes())
    assert page.tags.count("svg") == 2
    assert page.row("stalled") == ["stalled", "15.0", "15.00", "38.5%"]
    assert ["together", "29.0", "39.00", "100.0%"] in page.rows
    code, _, err = cli(made("other"), option, file)
    assert code == 4
    assert "give --force" in err


def test_a_picture_of_a_run_or_of_its_ledger(made: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    run = made()
    history = History(Record.open(run))
    (tmp_path / "ledger.json").write_text(history.ledger(history.resolved(2)).to_json())
    for of in (run, tmp_path / "ledger.json"):
        assert cli(of, "--plot", tmp_path / "cost.png", "--force")[0] == 0
        assert image((tmp_path / "cost.png").read_bytes()).size == (900, 970)


def test_a_ledger_by_itself_of_this_version_or_the_one_before(
    made: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    code, out, _ = cli(OLD, "-o", "json")
    assert code == 0
    old = json.loads(OLD.read_text())["totals"]
    assert json.loads(out)["jobs"][0]["totals"]["cost"] == old["cost"]
    assert cli(OLD, "--by", "cause")[0] == 0
    run = made()
    whole = sums(cli, "cause", run)
    file, history = tmp_path / "ledger.json", History(Record.open(run))
    file.write_text(history.ledger(history.resolved(2)).to_json())
    assert sums(cli, "cause", file) == whole
    code, _, err = cli(run, file)
    assert code == 2
    assert "named twice" in err


def test_currencies_are_never_mixed(made: Callable[..., Path], cli: Cli) -> None:
    euro = RATE.model_copy(update={"currency": "EUR"})
    one, two = made("one"), made("two", rate=euro, later_rates=())
    for form in ("table", "json", "csv", "parquet"):
        code, _, err = cli(one, two, "-o", form)
        assert code == 2
        assert "USD (one" in err
        assert "EUR (two" in err


def test_nothing_was_held(tmp_path: Path, cli: Cli, made: Callable[..., Path]) -> None:
    fresh = Record.create(tmp_path / "fresh", tiny_job()).folder.root
    code, out, err = cli(fresh)
    assert (code, out) == (3, "")
    assert "no attempt was ever started" in err
    code, out, err = cli(fresh, made())
    assert code == 0
    assert "no attempt was ever started" in err


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b"\xff\xfe\x00", b'{"version": 1, "rows": 5}', b"not json", b"null"]
)
def test_what_is_no_ledger_is_refused(text: bytes, tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "ledger.json"
    file.write_bytes(text)
    code, out, err = cli(file)
    assert (code, out) == (2, "")
    assert "is not a ledger" in err
    assert "Traceback" not in err


def test_wrong_use(made: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    run = made()
    assert cli(tmp_path / "nowhere")[0] == 3
    assert cli(run, run, "--html", tmp_path / "x.html")[0] == 2
    assert cli(run, "--output-file", tmp_path)[0] == 2
    assert cli(run, "--output-file", tmp_path / "no" / "x.csv")[0] == 2
    (run / "held.json").write_text('[{"attempt": 1, "start": 5, "end": 1}]')
    code, _, err = cli(run)
    assert code == 2
    assert "held.json" in err
    (run / "held.json").write_text("[]")
    (run / "resolved-2.json").write_text("{")
    assert cli(run)[0] == 2


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_a_base_install_is_enough(form: str, made: Callable[..., Path]) -> None:
    command = [sys.executable, "-c", BASE, "cost", str(made()), "-o", form]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "stalled" in done.stdout


def test_ledgers_written_by_a_run_are_of_version_2(made: Callable[..., Path]) -> None:
    history = History(Record.open(made()))
    ledger = history.ledger(history.resolved(2))
    assert json.loads(ledger.to_json())["version"] == 2
    assert ledger.owner is not None
    assert (ledger.owner.job, ledger.owner.team) == ("tiny", "default")
    assert Ledger.from_json(ledger.to_json()) == ledger
    assert abs(history.charged() - ledger.totals.cost) < Decimal("1e-5")
