"""The benchmarks: sound arithmetic, honest measurement, and no timing of a loss that is wrong."""

from __future__ import annotations

import inspect
import io
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from checkout import ROOT
from rich.console import Console

from bench import __main__ as command
from bench import distributed, metric, readme, report, rivals, scaling, worker
from bench.metric import METRIC, MetricWorkload
from bench.workload import Workload
from bench.workloads import WORKLOADS
from fastloss.oracle import Mismatch, check
from fastloss.registry import LOSSES

ENGINE = None
TINY = "ce tiny fp32 32x10"
LARGE = "ce fp32 4096x32000"


def test_every_loss_is_timed(loss):
    about = LOSSES[loss]
    wanted = {"float32"} if about.engine == "plain" and about.torch else {"float32", "bfloat16"}
    assert {w.dtype for w in WORKLOADS.values() if w.loss == loss} >= wanted
    assert all(name == workload.name for name, workload in WORKLOADS.items())


@pytest.mark.parametrize("name", WORKLOADS)
def test_both_sides_compute_the_same(name):
    workload = WORKLOADS[name]
    small = replace(workload, shape=(30,) if len(workload.shape) == 1 else (12, *workload.shape[1:2], *(2 for _ in workload.shape[2:])))
    of_metric = isinstance(workload, MetricWorkload)
    if of_metric:
        small.verify()
    else:
        check(replace(small.check_case(), shape=small.shape))
    if workload.loss in ("AngularLoss", "P2SGradLoss"):  # there rows or weights are normalised in place, outside the gradient
        return
    input, *others = small.tensors()
    assert of_metric or workload.about.engine != "row" or others[0].is_floating_point() == workload.soft
    sides = [worker._step(call, input.clone().requires_grad_(), others, small.inplace) for call in (small.our_call, small.rival_call)]
    flat = torch.cat([grad.flatten().float() for side in sides for grad in (side if isinstance(side, tuple) else (side,))])
    largest = max(1.0, float(flat.abs().max()))
    half = workload.dtype == "bfloat16"  # torch rounds more than once on the way
    if of_metric:
        flat, half = flat * 100, False  # thresholds of float32 scores
    rough = {"rtol": 0.05 if half else 1.3e-6, "atol": (4e-3 if half else 1e-5) * largest}
    torch.testing.assert_close(*sides, **rough)
    assert torch.equal(small.tensors()[0], input)


def test_bytes_that_must_move():
    assert WORKLOADS[LARGE].bytes_moved == 3 * 4096 * 32000 * 4
    assert WORKLOADS["ce bf16 4096x32000"].bytes_moved == 3 * 4096 * 32000 * 2
    assert Workload("soft", soft=True, shape=(2, 3)).bytes_moved == 5 * 6 * 4
    assert Workload("nll", loss="nll", shape=(2, 3)).bytes_moved == 6 * 4


def test_operations_of_products():
    assert WORKLOADS["clip fp32 4096x512"].flops == 3 * 2 * 4096 * 4096 * 512
    assert WORKLOADS["nt_xent fp32 8192x128"].flops == 3 * 16384 * 16384 * 128
    assert WORKLOADS["sup_con fp32 2048x512"].flops == 3 * 2048 * 2048 * 512
    assert WORKLOADS["linear_cross_entropy fp32 4096x1024x32000"].flops == 3 * 2 * 4096 * 1024 * 32000
    assert WORKLOADS["vicreg fp32 256x8192"].flops == 4 * 2 * 256 * 256 * 8192
    assert WORKLOADS[LARGE].flops == 0
    timed = {"sides": {side: {"median_ms": 2.0} for side in ("ours", "eager")}, "failed": {}, "copy_bytes_per_second": 1e12}
    row = report.row(WORKLOADS["clip fp32 4096x512"], {"backend": "cpu"}, timed | {"flops_per_second": 1e14}, {}, False)
    assert row["floor_ms"] == pytest.approx(1e3 * 3 * 2 * 4096 * 4096 * 512 / 1e14) and row["rival"] == "formula"


def test_a_released_library_is_preferred_to_its_formula(monkeypatch):
    dice = WORKLOADS["dice fp32 4x8x64^3"]
    x, y = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))

    class DiceLoss:
        def __init__(self, to_onehot_y, softmax):
            assert to_onehot_y and softmax

        def __call__(self, input, target):
            assert target.shape == (2, 1, 4, 4)
            return input.sum()

    monkeypatch.setattr(rivals.importlib.util, "find_spec", lambda name: None)
    assert dice.rival == "formula" and dice.rival_call(x, y).allclose(dice.our_call(x, y))
    monkeypatch.setattr(rivals.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(rivals.importlib, "import_module", lambda name: SimpleNamespace(DiceLoss=DiceLoss))
    monkeypatch.setattr(rivals, "version", lambda name: "9.9")
    assert dice.rival == "monai 9.9" and dice.rival_call(x, y) == x.sum()


def test_bytes_of_element_wise_losses():
    assert WORKLOADS["mse fp32 2^23"].bytes_moved == 5 * 2**23 * 4
    assert WORKLOADS["gaussian_nll fp32 2^23"].bytes_moved == 7 * 2**23 * 4


def test_bytes_of_overlap_losses():
    assert WORKLOADS["dice fp32 4x8x64^3"].bytes_moved == 3 * 4 * 8 * 64**3 * 4 + 2 * 8 * 4 * 64**3


def test_bytes_of_box_losses():
    assert WORKLOADS["box_iou fp32 2^18"].bytes_moved == 5 * 2**18 * 16


def test_bytes_of_sorting_losses():
    assert WORKLOADS["lovasz_softmax fp32 (4,19,256,256)"].bytes_moved == 3 * 19 * 2**18 * 4 + 2 * 2**18 * 8
    assert WORKLOADS["lovasz_hinge fp32 (16,512,512)"].bytes_moved == (3 * 4 + 2 * 8) * 2**22


def test_bytes_of_losses_in_plain_torch():
    assert WORKLOADS["mase fp32 4096x1000"].bytes_moved == 5 * 4096 * 1000 * 4
    assert WORKLOADS["multi_margin fp32 4096x1000"].bytes_moved == 3 * 4096 * 1000 * 4 + 2 * 8 * 4096
    assert WORKLOADS["multilabel_margin fp32 4096x1000"].bytes_moved == (3 * 4 + 2 * 8) * 4096 * 1000


def test_work_of_a_linear_layer():
    head = WORKLOADS["linear_distillation fp32 1024x512x16000"]
    assert head.flops == 6 * 1024 * 512 * 16000
    assert head.bytes_moved == 4 * (3 * (1024 + 16000) * 512 + 2 * 1024 * 16000)
    assert [t.shape for t in head.smaller(1024).tensors()] == [(1, 512), (16000, 512), (1, 16000)]


def test_the_same_lines_are_not_timed_twice():
    alone, beside = WORKLOADS["simsiam bf16 4096x1000"], WORKLOADS["calibration fp32 4096x1000"]
    assert alone.alone and not beside.alone and not WORKLOADS["cosine_embedding fp32 4096x1000"].alone
    sides = worker.measure_time(alone.smaller(4096), 7, False)["sides"]
    assert list(sides) == ["ours"]
    assert report.row(alone, {"backend": "cpu"}, worker.measure_time(alone.smaller(4096), 7, False), {}, False)["rival"] == ""


def test_bytes_of_divergences():
    assert WORKLOADS["distillation fp32 4096x32000"].bytes_moved == 5 * 4096 * 32000 * 4
    assert WORKLOADS["dino bf16 4096x4000"].bytes_moved == 5 * 4096 * 4000 * 2


def test_bytes_of_losses_over_pairs():
    assert WORKLOADS["clip fp32 4096x512"].bytes_moved == 2 * 3 * 4096 * 512 * 4
    assert WORKLOADS["linear_cross_entropy bf16 4096x1024x32000"].bytes_moved == 3 * (4096 + 32000) * 1024 * 2


def test_geometric_mean_of_the_element_wise_losses():
    names = [name for name, about in LOSSES.items() if about.engine == "elementwise"]
    rows = [{"name": f"{n} fp32 2^23", "loss": n, "dtype": "float32", "speedup_eager": 2.0 if i % 2 else 8.0} for i, n in enumerate(names)]
    (family,) = report.families(rows)
    assert family["losses"] == len(names) and 3.9 < family["speedup_eager"] < 4.2 and family["met"]
    assert "target 3x: met" in report.family_line(family)
    assert report.families(rows[:3]) == []


def test_losses_of_metric(monkeypatch, capsys):
    """All of them are timed at one size, skipped where there is nothing to compare with, and a wrong one is seen."""
    rows = [{"name": f"metric {n} fp32 128x128", "loss": n, "dtype": "float32", "speedup_eager": 3.0} for n in METRIC]
    assert all(row["name"] in WORKLOADS for row in rows)
    (family,) = report.families(rows)
    assert family["losses"] == len(METRIC)
    assert report.family_line(family).startswith("Losses of fastloss.metric, float32, 128 x 128: 30 losses")
    workload = WORKLOADS["metric CosFaceLoss fp32 128x128"]
    assert workload.flops == 6 * 128 * 128 * 16 and WORKLOADS["metric SupConLoss fp32 2048x512"].flops == 3 * 2048 * 2048 * 512
    step = worker._step(workload.our_call, workload.tensors()[0].requires_grad_(), workload.tensors()[1:], False)
    assert [tuple(grad.shape) for grad in step] == [(128, 128), (128, 16)] and workload.rival.startswith("pytorch-metric-learning 2")
    monkeypatch.setattr(MetricWorkload, "our_call", property(lambda self: lambda *given: self._module(metric.losses)(*given) + 1e-3))
    with pytest.raises(Mismatch, match="CosFaceLoss"):
        workload.verify()
    monkeypatch.setattr(metric.importlib.util, "find_spec", lambda name: None)
    assert command.main(["--case", "metric CosFaceLoss"]) == 0
    assert "skipped 1 workloads: pytorch-metric-learning is not installed" in " ".join(capsys.readouterr().err.split())


def test_capacity(monkeypatch):
    """Timed a few times without a rival, and only when asked for."""
    large = next(name for name, workload in WORKLOADS.items() if workload.capacity and isinstance(workload, MetricWorkload))
    small = replace(WORKLOADS[large], shape=(64, 128))
    timed = worker.measure_time(small, 9, False)
    assert list(timed["sides"]) == ["ours"] and timed["sides"]["ours"]["repeats"] == worker.FEW
    row = report.row(small, CHECKED, timed, {"ours": 10**6}, False)
    assert row["speedup_eager"] is None and row["rival"] == "" and "1" in str(report.table([row]).columns[-3]._cells)
    asked = []

    def measure(kind, name, *options, huge_pages=False):
        asked.append(name)
        return {"wrong": "no", "backend": "cpu", "reason": ""}

    monkeypatch.setattr(command, "measure", measure)
    command.main([])
    assert asked and not any(WORKLOADS[name].capacity for name in asked)
    asked.clear()
    command.main(["--capacity"])
    assert asked == [name for name, workload in WORKLOADS.items() if workload.capacity]


def test_smaller_has_no_targets():
    small = WORKLOADS[LARGE].smaller(16)
    assert small.shape == (256, 32000) and small.eager_ratio is small.compiled_ratio is None and not small.huge_pages
    assert WORKLOADS[TINY].smaller(1000).shape == (1, 10)


def spread(median: float) -> dict[str, float]:
    return {"median_ms": median, "low_ms": median / 2, "high_ms": 2 * median, "repeats": 9}


CHECKED = {"wrong": None, "backend": "cpu", "reason": ""}


def measured(ours: float, eager: float, compiled: float | None) -> dict:
    sides = {"ours": spread(ours), "eager": spread(eager)} | ({"compiled": spread(compiled)} if compiled else {})
    return {"sides": sides, "failed": {} if compiled else {"compiled": "no compiler"}, "copy_bytes_per_second": 1e10}


@pytest.mark.parametrize(
    ("eager", "inductor", "met"), [(39.9, 20.0, [False, True]), (40.0, 19.9, [True, False]), (41.0, None, [True, None])]
)
def test_targets_are_judged(eager, inductor, met):
    row = report.row(WORKLOADS[LARGE], CHECKED, measured(10.0, eager, inductor), {"ours": 5_000_000}, False)
    assert [target["met"] for target in row["targets"]] == met
    assert row["speedup_eager"] == eager / 10 and row["ours_extra_mb"] == 5.0
    assert row["floor_ms"] == pytest.approx(157.2864) and row["per_cent_of_floor"] == pytest.approx(1572.864)
    assert row["gb_per_second"] == pytest.approx(157.2864)
    assert report.row(WORKLOADS[LARGE], CHECKED, measured(10.0, eager, inductor), {}, True)["targets"] == []


def test_table_shows_verdicts():
    rows = [report.row(WORKLOADS[LARGE], CHECKED, measured(10.0, 20.0, None), {"ours": 1, "eager": 2}, False)]
    console = Console(width=250, file=io.StringIO())
    console.print(report.table(rows))
    text = console.file.getvalue()
    assert "4x eager: not met" in text and "2x compiled: rival did not run" in text and "2.00x" in text and "failed" in text


def test_a_wrong_loss_is_not_timed(monkeypatch, capsys, tmp_path):
    asked = []

    def measure(kind, name, *options, huge_pages=False):
        asked.append(kind)
        return {"wrong": "loss differs by 1", "backend": "cpu", "reason": ""}

    monkeypatch.setattr(command, "measure", measure)
    assert command.main(["--case", TINY, "--json", str(tmp_path / "rows.json")]) == 1
    assert asked == ["check"]
    assert f"not timed: {TINY}: loss differs by 1" in " ".join(capsys.readouterr().err.split())
    assert json.loads((tmp_path / "rows.json").read_text())["refused"] == {TINY: "loss differs by 1"}


def test_the_check_sees_a_wrong_loss(monkeypatch, capsys):
    """The worker's own check, on a loss whose kernel result is changed."""
    about = LOSSES["cross_entropy"]

    def wrong(*args, backend=None, **options):
        return about.function(*args, backend=backend, **options) * (1 if backend == "eager" else 1.01)

    wrong.__signature__ = inspect.signature(about.function)
    monkeypatch.setitem(LOSSES, "cross_entropy", replace(about, function=wrong))
    monkeypatch.setattr(sys, "argv", ["bench.worker", "check", TINY])
    worker.main()
    assert json.loads(capsys.readouterr().out)["wrong"]


def test_huge_pages_and_compile_reach_the_worker(monkeypatch):
    asked = []

    def measure(kind, name, *options, huge_pages=False):
        asked.append((kind, "--compiled" in options, huge_pages))
        if kind == "check":
            return CHECKED
        return {"extra_bytes": 1} if kind == "memory" else measured(1.0, 2.0, 3.0)

    monkeypatch.setattr(command, "measure", measure)
    rows, wrong = command.measure_workload(LARGE, quick=False, repeats=7, compiled=True)
    assert wrong is None and [row["huge_pages"] for row in rows] == [False, True]
    memory = ("memory", False, False)
    assert asked == [("check", False, False), ("time", True, False), memory, memory, ("time", True, True)]


def test_extra_memory_of_each_side():
    """The fused loss needs its gradient and little more; torch's needs the log-probabilities and two gradients."""
    gradient = 256 * 32000 * 4
    ours, eager = (command.measure("memory", LARGE, "--smaller", "16", "--side", side)["extra_bytes"] for side in ("ours", "eager"))
    assert gradient <= ours + 2**20 and ours < 1.4 * gradient
    assert 2.5 * gradient < eager < 4 * gradient


def test_a_run_of_a_tiny_workload(tmp_path, capsys):
    assert command.main(["--case", TINY, "--repeats", "7", "--json", str(tmp_path / "rows.json")]) == 0
    result = json.loads((tmp_path / "rows.json").read_text())
    (row,) = result["rows"]
    assert row["backend"] == "cpu" and row["ours_repeats"] == 7 and row["copy_gb_per_second"] > 0.5
    assert 0 < row["ours_low_ms"] <= row["ours_median_ms"] <= row["ours_high_ms"] < 50
    assert result["machine"]["versions"]["torch"] == torch.__version__ and "date" in result["machine"]
    assert TINY in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--case", "nothing like it"], "no workload contains"), (["--repeats", "6"], "fewer than 7"), (["--fast"], "unrecognized arguments")],
)
def test_bad_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        command.main(arguments)
    assert end.value.code == 2 and message in " ".join(capsys.readouterr().err.split())


def test_list():
    done = subprocess.run([sys.executable, "-m", "bench", "--list"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == list(WORKLOADS)


def test_a_worker_that_dies_is_reported():
    with pytest.raises(command.WorkerFailed, match="(?s)ended with status 2.*invalid choice: 'no such"):
        command.measure("time", "no such workload")


def test_readme_lists_every_loss():
    text = readme.README.read_text()
    assert readme.replace_part(text, "losses", readme.loss_table()) == text, "run python -m bench.readme"
    with pytest.raises(ValueError, match="no part"):
        readme.replace_part(text, "nothing", "")


def test_readme_takes_the_last_of_a_row():
    def results(day: str, time: float, names: str, torch: str = "2") -> dict:
        machine = {"processor": "P", "threads": "1 of 1", "instruction set of the cpu backend": "avx2"}
        rows = [{"name": name, "huge_pages": False, "ours_median_ms": time, "rival": "", "targets": []} for name in names]
        return {"machine": {"date": f"{day}T01:02:03", "machine": machine, "versions": {"torch": torch, "python": "3"}}, "rows": rows}

    first, second = results("2026-01-02", 1.0, "ab"), results("2026-01-03", 2.0, "bc")
    (both,) = readme.by_machine([first, second])
    text = readme.result_table(both)
    assert "2026-01-02 and 2026-01-03." in text
    assert [line.split(" |")[:2] for line in text.splitlines()[4:]] == [["| a", " 1"], ["| b", " 2"], ["| c", " 2"]]
    machines = readme.by_machine([first, results("2026-01-03", 3.0, "c", torch="3"), results("2026-01-04", 4.0, "a")])
    assert [[(row["name"], row["ours_median_ms"]) for row in one["rows"]] for one in machines] == [[("b", 1.0), ("a", 4.0)], [("c", 3.0)]]
    assert machines[0]["machine"]["date"] == "2026-01-02 and 2026-01-04"
    assert len(readme.by_machine([first, results("2026-01-03", 3.0, "ab", torch="3")])) == 1


def test_slope_of_cost_over_floor():
    assert scaling.slope([3.0, 6.0, 12.0], [1.0, 2.0, 4.0]) == pytest.approx(1)
    assert scaling.slope([1.0, 4.0, 16.0], [1.0, 2.0, 4.0]) == pytest.approx(2)


@pytest.mark.parametrize("name", scaling.SERIES)
def test_series_grow(name):
    case, tail, sizes = scaling.SERIES[name]
    assert sizes == sorted(set(sizes)) and len(sizes) >= 4
    smallest = replace(WORKLOADS[case], shape=(sizes[0], *tail))
    assert 2**14 <= smallest.elements <= 2**16
    value = smallest.our_call(*smallest.tensors())
    assert value.isfinite()


def test_scaling_of_one_loss(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(scaling.SERIES, "mse", ("mse fp32 2^23", (), [2**10, 2**12, 2**14]))
    monkeypatch.setattr(scaling, "SECONDS", 0.0)
    rows = [scaling.measure("mse")]
    assert rows[0]["floor_ms"] == sorted(rows[0]["floor_ms"]) and all(ms > 0 for ms in rows[0]["ms"]) and rows[0]["threads_speedup"] > 0
    done = subprocess.CompletedProcess([], 0, stdout=f"noise\n{json.dumps(rows)}\n", stderr="")
    monkeypatch.setattr(scaling.subprocess, "run", lambda *args, **keywords: done)
    assert scaling.main(["mse", "--json", str(tmp_path / "rows.json")]) == 0
    assert json.loads((tmp_path / "rows.json").read_text()) == rows and "mse" in capsys.readouterr().out
    done.returncode, done.stderr = 1, "no memory"
    assert scaling.main(["mse"]) == 1 and "no memory" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        scaling.main(["absent"])


def test_a_run_on_paper_is_the_law():
    found = distributed.on_paper(2**20, 512, 64, 2, 1e14, 25e9)
    assert found["rows"] == 2**14 and found["scores of its rows GB"] == pytest.approx(68.7, abs=0.1)
    assert found["GB sent"] == pytest.approx(2**14 * (2 * 63 * 512 * 2 + 64 * 512 * 4 + (64 + 63) * 8) / 1e9)
    assert found["s computing"] == pytest.approx(8 * 2**14 * 2**20 * 512 / 1e14)
    assert found["s, the longer"] == max(found["s computing"], found["s sending"])
    assert distributed.beside_published().row_count == len(distributed.PUBLISHED)
