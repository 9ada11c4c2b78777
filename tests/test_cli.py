"""The `fastloss` command: what it prints and the status it exits with."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import pytest

import fastloss
from fastloss import cli
from fastloss._backends import BACKENDS
from fastloss.registry import LOSSES


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error with line breaks undone."""
    try:
        status = cli.main(list(arguments))
    except SystemExit as end:
        status = end.code
    captured = capsys.readouterr()
    return status, captured.out, " ".join(captured.err.split())


def test_the_command_and_the_module_are_installed():
    for command in ([sys.executable, "-m", "fastloss"], [str(cli.Path(sys.executable).with_name("fastloss"))]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"fastloss {fastloss.__version__}\n")


def test_info(capsys):
    status, out, _ = run(capsys, "info", "--json")
    facts = json.loads(out)
    assert status == 0
    assert set(facts["backends"]) == {*BACKENDS, "in force"}
    assert facts["backends"]["eager"] == "works on cpu tensors" and facts["backends"]["in force"] == "auto"
    assert facts["versions"]["torch"] == fastloss.cli.torch.__version__
    assert facts["machine"]["instruction set of the cpu backend"] in ("default", "avx2", "avx512")
    status, out, _ = run(capsys, "info")
    assert status == 0 and all(backend in out for backend in BACKENDS) and fastloss.__version__ in out


def test_info_says_why_a_backend_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(cli, "unavailable", lambda backend, device: None if backend == "eager" else f"no {backend}, [bold]because[/bold]")
    assert json.loads(run(capsys, "info", "--json")[1])["backends"]["cpu"] == "no cpu, [bold]because[/bold]"
    assert "no triton, [bold]because[/bold]" in run(capsys, "info")[1]


def test_list(capsys):
    status, out, _ = run(capsys, "list", "--json")
    listed = json.loads(out)
    assert status == 0 and [row["name"] for row in listed] == list(LOSSES)
    row = next(row for row in listed if row["name"] == "cross_entropy")
    assert (row["function"], row["module"]) == ("fastloss.functional.cross_entropy", "fastloss.nn.CrossEntropyLoss")
    status, out, _ = run(capsys, "list")
    assert status == 0 and all(name in out for name in LOSSES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: fastloss [-h] [--version] COMMAND"),
        ([], "fastloss show monai.DiceCELoss"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["info", "--loud"], "unrecognized arguments: --loud"),
        (["compile"], "compile: say --all"),
        (["compile", "--all", "--target", "sm_1"], "unknown target 'sm_1'; choose from"),
        (["demo", "--out", "/nonexistent/folder/a.png"], "the folder of --out does not exist: /nonexistent/folder"),
        (["demo", "--out", "curves.txt"], "--out must end in .png, .svg or .pdf, got 'curves.txt'"),
        (["fuzz", "--loss", "zzz"], "argument --loss: invalid choice: 'zzz' `fastloss fuzz --help` tells more"),  # and no list of all
        (["fuzz", "--loss", "hubre"], "argument --loss: invalid choice: 'hubre'; did you mean huber?"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert status == 2 and message in err and not out


ROW = {"kernel": "row_forward", "target": "sm_90", "registers": 40, "spills": 0}


@pytest.mark.parametrize("violations", [[], ["row_forward sm_90: 3 register spills, wanted none"]])
def test_compile(capsys, monkeypatch, violations):
    asked = []
    aot = types.SimpleNamespace(
        rows=lambda targets, quick, progress: asked.append((targets, quick)) or progress(1, 1) or [ROW], check=lambda rows: violations
    )
    monkeypatch.setattr(cli, "_need", lambda *_: aot)
    status, out, err = run(capsys, "compile", "--all", "--json", "--target", "sm_90", "--target", "gfx942")
    assert (status, json.loads(out)) == (len(violations), [ROW])
    assert f"1 kernels compiled, {len(violations)} violations" in err and all(text in err for text in violations)
    assert asked == [(["sm_90", "gfx942"], False)]
    status, out, _ = run(capsys, "compile", "--quick")
    assert status == len(violations) and "row_forward" in out and "registers" in out
    assert asked[1] == (None, True)


def test_a_kernel_that_does_not_compile_is_a_finding(capsys, monkeypatch):
    def rows(*_):
        raise RuntimeError("compiling for sm_90 failed: [bad]")

    monkeypatch.setattr(cli, "_need", lambda *_: types.SimpleNamespace(rows=rows))
    status, _, err = run(capsys, "compile", "--all")
    assert status == 1 and "compiling for sm_90 failed: [bad]" in err


@pytest.mark.parametrize(("command", "package", "extra"), [("fuzz", "hypothesis", "fuzz"), ("demo", "sklearn", "demo")])
def test_a_missing_package_is_named(capsys, monkeypatch, tmp_path, command, package, extra):
    monkeypatch.delitem(sys.modules, f"fastloss.{command}", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    status, _, err = run(capsys, command)
    assert status == 2 and f"fastloss {command} needs the package {package}" in err and f"pip install 'fastloss[{extra}]'" in err


@pytest.mark.parametrize("command", ["info", "list", "show", "compile", "demo", "fuzz"])
def test_help(command, capsys):
    status, out, err = run(capsys, command, "--help")
    assert status == 0 and out.startswith("usage: ") and len(out.splitlines()) > 3 and not err


def test_an_interrupt_ends_without_a_traceback(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "information", interrupt)
    assert run(capsys, "info")[0] == 130


def test_fuzz_is_passed_on(capsys, monkeypatch):
    seen = []
    fuzz = types.SimpleNamespace(
        __doc__="Fuzz.",
        add_arguments=lambda parser: parser.add_argument("--seed", type=int),
        main=lambda options: seen.append(options.seed) or 1,
    )
    monkeypatch.setattr(cli, "_need", lambda *_: fuzz)
    assert run(capsys, "fuzz", "--seed", "7")[0] == 1 and seen == [7]


def test_bench_outside_a_checkout(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "fastloss" / "cli.py"))
    status, _, err = run(capsys, "bench", "--quick")
    assert status == 2 and "not part of the installed package" in err


def test_bench_runs_the_checkouts(monkeypatch):
    called = []
    monkeypatch.setattr(cli.subprocess, "call", lambda command, cwd: called.append((command[1:], cwd)) or 3)
    assert cli.main(["bench", "--quick"]) == 3
    assert called == [(["-m", "bench", "--quick"], cli.Path(__file__).resolve().parent.parent)]


def test_a_closed_pipe_is_no_error():
    done = subprocess.run(f"{sys.executable} -m fastloss list --json | true", shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
