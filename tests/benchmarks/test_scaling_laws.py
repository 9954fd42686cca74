"""The scaling benchmark finds a known law again, does not look at what it foretells, and runs."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from os import environ
from pathlib import Path

import pytest

from training.scaling_law import ScalingLaw

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import scaling_laws
    from scaling_laws import Point, Prediction, interval, outer_edge, residual
finally:
    sys.path.pop(0)

# far from symmetric: with N and D exchanged every loss and every constant is another
LAW = ScalingLaw(E=1.2, A=60.0, alpha=0.5, B=25.0, beta=0.3)
SIZES = {32: 27_000, 48: 59_000, 64: 103_000, 96: 228_000, 128: 402_000}
TOKENS = (125_000, 250_000, 500_000, 1_000_000, 2_000_000)


@pytest.fixture
def points():
    return [Point(2, dim, 0, n, d, LAW.loss(n, d), 1.0) for dim, n in SIZES.items() for d in TOKENS]


def test_the_constants_are_found_again(points):
    fitted = scaling_laws.fit(points)
    for name, value in asdict(LAW).items():
        assert getattr(fitted, name) == pytest.approx(value, rel=0.02), name
    for point in points:
        assert residual(point, fitted) == pytest.approx(0, abs=1e-5)


def test_exchanged_n_and_d_are_another_law(points):
    exchanged = [replace(point, n=point.d, d=point.n) for point in points]
    fitted = scaling_laws.fit(exchanged)
    assert fitted.alpha == pytest.approx(LAW.beta, rel=0.02)
    assert fitted.beta == pytest.approx(LAW.alpha, rel=0.02)
    assert max(abs(residual(point, fitted)) for point in points) > 0.1


def test_the_table_pairs_each_run_with_its_own_fit(points):
    shuffled = [replace(p, loss=1.02 * p.loss) if p.n == 59_000 else p for p in points[::-1]]
    heading, *rows = scaling_laws.table(shuffled, LAW)
    assert heading.split() == ["model", "N", "D", "seed", "measured", "fitted", "residual"]
    assert len(rows) == 25
    cells = [row.split() for row in rows]
    for point, (layers, _, dim, n, d, seed, measured, fitted, off) in zip(
        points, cells, strict=True
    ):
        assert (layers, int(dim), seed) == ("2", point.dim, "0")
        assert (n, d) == (f"{point.n:,}", f"{point.d:,}")
        true = 1.2 + 60 / point.n**0.5 + 25 / point.d**0.3
        assert float(fitted) == pytest.approx(true, abs=1e-4)
        assert off == ("+2.00%" if point.n == 59_000 else "+0.00%")
        assert float(measured) == pytest.approx(true * (1.02 if point.n == 59_000 else 1), abs=1e-4)


def test_held_out_are_the_largest_n_and_the_largest_d(points):
    rest, edge = outer_edge(points)
    assert {(p.n, p.d) for p in edge} == {
        *((402_000, d) for d in TOKENS),
        *((n, 2_000_000) for n in SIZES.values()),
    }
    assert len(rest) == 16
    assert not set(rest) & set(edge)


def test_what_is_held_out_is_foretold_and_not_looked_at(points):
    honest = Prediction.make(points)
    assert len(honest.held_out) == 9
    for point in honest.held_out:
        assert residual(point, honest.law) == pytest.approx(0, abs=1e-4)
    assert honest.last == pytest.approx(LAW.loss(228_000, 1_000_000))

    worse = [replace(p, loss=1.03 * p.loss) if p in outer_edge(points)[1] else p for p in points]
    judged = Prediction.make(worse)
    assert judged.law == honest.law
    lines = judged.lines()
    assert "foretold without them: mean 3.00 %, worst 3.00 %" in lines
    largest = 1.03 * LAW.loss(402_000, 2_000_000)
    against_last = 100 * (largest / honest.last - 1)
    assert f"{largest:.4f}, foretold {LAW.loss(402_000, 2_000_000):.4f} (+3.00%)" in lines[-1]
    assert lines[-1].endswith(f"{honest.last:.4f} ({against_last:+.2f}%)")


def test_the_spread_is_none_without_noise_and_shows_a_disturbed_row(points):
    drawn = scaling_laws.resampled(points, 5)
    assert len(drawn) == 5
    assert all(law.beta == pytest.approx(LAW.beta, rel=0.05) for law in drawn)

    left_out = scaling_laws.without_one(points)
    assert list(left_out) == [f"N = {n:,}" for n in SIZES.values()] + [f"D = {d:,}" for d in TOKENS]
    disturbed = [replace(p, loss=1.05 * p.loss) if p.n == 402_000 else p for p in points]
    laws = scaling_laws.without_one(disturbed)
    assert laws["N = 402,000"].alpha == pytest.approx(LAW.alpha, rel=0.05)
    assert abs(laws["N = 27,000"].alpha - LAW.alpha) > 0.1 * LAW.alpha


def test_the_interval_leaves_a_tenth_on_either_side():
    assert interval(range(100, 0, -1)) == (11, 90)
    assert interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_the_splits_spend_the_budget(points):
    heading, *rows = scaling_laws.splits(LAW, [LAW], points)
    assert heading.split()[:4] == ["FLOPs", "N*", "D*", "loss"]
    for row in rows:
        budget, n, d, loss = (float(cell.replace(",", "")) for cell in row.split()[:4])
        assert 6 * n * d == pytest.approx(budget, rel=1e-4)
        assert loss == pytest.approx(LAW.loss(n, d), abs=1e-3)
        assert loss <= min(LAW.loss(n * 1.3, d / 1.3), LAW.loss(n / 1.3, d * 1.3)) + 5e-4
        assert row.endswith("beyond the runs") == (budget > 6 * 402_000 * 2_000_000)


@pytest.mark.parametrize("loss", [float("nan"), 0.0, "2.0"])
def test_a_loss_that_cannot_be_is_refused(loss):
    with pytest.raises(ValueError, match="a point's loss must be"):
        Point(2, 32, 0, 27_000, 125_000, loss, 1.0)


def run(*options, code=0):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "scaling_laws.py"), *map(str, options)],
        capture_output=True,
        encoding="utf-8",
        env={**environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_a_quick_run_trains_fits_draws_and_can_be_fitted_again(tmp_path):
    text, figures, picture = (tmp_path / name for name in ("text.txt", "laws.json", "laws.png"))
    lines = [f"{n} times {n + 1} is {n * (n + 1)}, said line {n % 7}.\n" for n in range(900)]
    raw = "".join(lines)
    text.write_text(raw, encoding="utf-8", newline="\n")
    out = run("--data", text, "--quick", "--json", figures, "--output", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    saved = json.loads(figures.read_text(encoding="utf-8"))
    points = [Point(**each) for each in saved["points"]]
    vocab = len(set(raw))
    for point in points:
        w = point.dim  # one layer: 12 w² in matrices, two norms on a head, three on the stream
        head = w // max(1, w // 32)
        assert point.n == 12 * w * w + 2 * head + 3 * w + vocab * w
    assert [(p.dim, p.d) for p in points] == [
        (dim, d) for d in (4096, 8192, 16384, 32768) for dim in (16, 32, 48, 64)
    ]
    assert len({p.loss for p in points}) == 16
    longest, shortest = (mean_loss(points, d) for d in (32768, 4096))
    assert longest < shortest - 0.2

    law = ScalingLaw(**saved["law"])
    rows = scaling_laws.table(points, law)
    assert "\n".join(rows) in out
    again = run("--points", figures, "--quick")
    assert again.strip() == out[out.index(rows[0]) :].strip()


def mean_loss(points, d):
    losses = [point.loss for point in points if point.d == d]
    return sum(losses) / len(losses)


def test_mistakes_are_one_line(tmp_path):
    wrong = tmp_path / "wrong.json"
    assert re.search(r"expected LAYERSxWIDTH .*'64'$", run("--data", wrong, "--sizes", 64, code=2))
    wrong.write_text('{"points": [{"n": 1}]}', encoding="utf-8")
    assert run("--points", wrong, code=2).count("\n") == 1
    assert "is not what --json wrote" in run("--points", wrong, code=2)
    text = tmp_path / "text.txt"
    text.write_text("abc " * 3000, encoding="utf-8")
    assert "tokens must be at least 4096, got 100" in run("--data", text, "--tokens", 100, code=2)
