"""How far the engine can be trusted: parity, checkpoints, faults, kills. Real runs become tables in docs/engine.md.

`make trust` runs everything (about half an hour on two cores); `python benchmarks/trust.py parity faults` only those
parts, and leaves the other tables as they are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support import checkpoint_cases, faults, home, kills, parity  # noqa: E402
from support.engine_worker import Outcome, run  # noqa: E402

DOCUMENT = ROOT / "docs" / "engine.md"
SEED, PAUSE = 20261124, 7.0
STEPS = 200
"""Of a run with a fault; the faults come at steps 90 to 120."""
LONG = ("--set", "training.tokens=640_000", "--set", "training.evaluation.everySteps=1000")
"""2,500 steps: long enough for many kills."""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def parity_table(folder: Path, _: int) -> str:
    """ZeRO stages, expert sizes and processes against one process."""
    one = parity.layout(1, 1, 1)
    plain = {
        "sgd": parity.one_process(parity.recipe(one, steep=True), by_sgd=True),
        "adamw": parity.one_process(parity.recipe(one)),
    }
    rows = []
    for world in (2, 4):
        cases = parity.matrix(world)
        outcomes = run(folder, world, cases)
        for case in cases:
            far = parity.distance(case, outcomes[case.name], plain[case.name.partition("-")[0]])
            of = case.recipe.layout
            optimizer, _, variant = case.name.rpartition("-z")[0].partition("-")
            rows.append(
                (world, of.zero_stage, of.expert_parallel, optimizer, variant.replace("-", " + "), f"{far.loss:.1e}",
                 f"{far.gradient:.1e}", f"{far.norm:.1e}", f"{far.weight:.1e}", "same" if far.loads_equal else "OTHER")
            )  # fmt: skip
    head = ("processes", "ZeRO", "experts over", "by", "variant", "loss", "gradient", "norm", "weight", "load")
    return table(head, rows)


def checkpoint_table(folder: Path, _: int) -> str:
    """Going on from a checkpoint on the same and on other topologies, and what happens without the remedies."""
    out: dict[str, list[Outcome]] = {}
    for world, group in checkpoint_cases.cases():
        out |= run(folder, world, group)
    return table(("written by", "read by", "largest difference, or why refused"), checkpoint_cases.rows(out))


def fault_table(folder: Path, _: int) -> str:
    """One run for each fault, compared with the undisturbed run."""
    data = home.prepare_data(folder / "corpus")
    calm = _calm(folder / "calm", data)
    rows = []
    for scenario in faults.SCENARIOS:
        place = home.Home.make(_new(folder / scenario.name.replace(" ", "-")), data, STEPS)
        code, said = faults.run(place, scenario)
        assert code == 0, said
        seen = faults.seen(place, calm)
        equal = seen.same_losses and seen.same_samples and seen.same_weights
        rows.append(
            (scenario.name, "yes" if seen.happened == len(scenario.faults) else "NO", seen.restarts, seen.attempts,
             "yes" if equal else "NO", seen.repeated, f"{seen.lost_seconds:.1f}", f"{seen.recovering_seconds:.1f}")
        )  # fmt: skip
    head = ("fault", "happened", "worker restarts", "attempts", "losses, samples, weights equal to the last bit",
            "steps done again", "seconds lost", "seconds recovering")  # fmt: skip
    return table(head, rows)


def kill_table(folder: Path, number: int) -> str:
    """SIGKILL for any process at any moment."""
    data = home.prepare_data(folder / "corpus")
    calm = _calm(folder / "calm", data, *LONG)
    place = home.Home.make(_new(folder / "torment"), data, STEPS)
    report = kills.torment(place, number, SEED, PAUSE, *LONG)
    seen = faults.seen(place, calm)
    equal = seen.same_losses and seen.same_samples and seen.same_weights
    steps = home.points(place.client(), "train/loss")  # asserts that each step is there once
    rows = [
        ("killed (SIGKILL, drawn by a seed)", ", ".join(f"{count} x {name}" for name, count in report.kills.items())),
        ("starts of workers, in so many attempts", f"{report.starts}, {report.attempts}"),
        ("checkpoints committed", report.commits),
        ("starts from before a committed step", report.resumed_before_a_commit),
        ("steps of which two checkpoints were committed", report.committed_twice),
        ("steps in MLflow's parent run, each once", len(steps)),
        ("losses, samples, weights equal to the last bit", "yes" if equal else "NO"),
        ("wall time", f"{report.seconds:.0f} s"),
    ]
    return table((f"{number} kills of one run of {len(steps)} steps", ""), rows)


def _calm(folder: Path, data: Path, *options: str) -> home.Home:
    place = home.Home.make(_new(folder), data, STEPS)
    done = place.fathom("train", "job.yaml", "-o", "json", *options, patience=home.LONG_PATIENCE)
    assert done.code == 0, done.err
    return place


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


PARTS: dict[str, Callable[[Path, int], str]] = {
    "parity": parity_table,
    "checkpoints": checkpoint_table,
    "faults": fault_table,
    "kills": kill_table,
}


def write(part: str, text: str) -> None:
    """Put a table between its marks in the document."""
    begin, end = f"<!-- {part}: written by `make trust` -->", f"<!-- end of {part} -->"
    document = DOCUMENT.read_text()
    head, _, rest = document.partition(begin)
    _, mark, tail = rest.partition(end)
    assert mark, f"{DOCUMENT} has no place for {part}"
    DOCUMENT.write_text(f"{head}{begin}\n\n{text}\n\n{mark}{tail}")


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--kills", type=int, default=50)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    for part in options.parts or PARTS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="fathom-trust-") as folder:
            try:
                text = PARTS[part](Path(folder), options.kills)
            finally:
                for place in Path(folder).iterdir():
                    home.Home(place).end_all()  # no driver outlives a part that failed
        write(part, text)
        print(f"{part} ({time.monotonic() - began:.0f} s)\n\n{text}\n", flush=True)


if __name__ == "__main__":
    main()
