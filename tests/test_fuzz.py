"""The fuzzer: finds deliberate defects within a bounded number of examples, finds none where there is none, and tells its story."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest
import torch
import wrong

from fastloss import fuzz

# What a deliberately wrong implementation does, the words its finding must contain, and how many examples may pass before.
DEFECTS = {
    "phantom_classes": ("loss", 4000),  # defect 1
    "nan_from_empty_block": ("nan", 4000),  # defect 2
    "raw_logits_as_gradient": ("gradient of input", 2000),  # defect 3
    "overwrites_logits": ("the memory of input was written to", 400),  # defect 5
    "scaled_twice": ("second backward", 400),  # defect 6
    "cancelling": ("loss", 2000),  # defect 7
}


@pytest.mark.parametrize("name", DEFECTS)
def test_finds(name):
    words, most = DEFECTS[name]
    finding = fuzz.run("cross_entropy", examples=most, seed=0, target=getattr(wrong, name))
    assert finding is not None, f"no finding in {most} examples"
    assert words in finding.message, finding.message
    assert torch.Size(finding.case.shape).numel() <= 128, f"not shrunk: {finding.case}"


@pytest.mark.slow
def test_finds_nothing_in_a_right_implementation():
    """The same code with its defects switched off."""
    finding = fuzz.run("cross_entropy", examples=1600, seed=0, target=wrong.right)
    assert finding is None, finding.script


def test_same_seed_same_cases():
    def seen(seed):
        cases = []
        fuzz.run("cross_entropy", examples=40, seed=seed, target=lambda input, target: cases.append(input) or wrong.right(input, target))
        return cases

    first, again, other = seen(1), seen(1), seen(2)
    assert len(first) == len(again) and all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, again))
    assert len(first) != len(other) or any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first, other))


def test_only_keywords_that_the_target_takes_are_passed():
    passed = set()

    def target(input, target, ignore_index=-100, reduction="mean"):
        passed.update(name for name, value in {"ignore_index": ignore_index != -100, "reduction": reduction != "mean"}.items() if value)
        return wrong.right(input, target, ignore_index, reduction)

    fuzz.run("cross_entropy", examples=400, seed=0, target=target)
    assert passed == {"ignore_index", "reduction"}


def test_the_printed_script_reproduces_the_finding(tmp_path):
    finding = fuzz.run("cross_entropy", examples=400, seed=0, target="wrong:scaled_twice")
    path = tmp_path / "finding.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(wrong.__file__.rsplit('/', 1)[0])!r})\n{finding.script}")
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Mismatch" in done.stderr, done.stdout + done.stderr


def options(*words):
    parser = argparse.ArgumentParser()
    fuzz.add_arguments(parser)
    return parser.parse_args(words)


def test_main_exit_codes_and_json(capsys):
    assert fuzz.main(options("--target", "wrong:scaled_twice", "--examples", "200", "--json")) == 1
    (result,) = json.loads(capsys.readouterr().out)
    assert "second backward" in result["finding"]["message"] and result["seed"] == 0
    assert fuzz.main(options("--loss", "cross_entropy", "--backend", "eager", "--examples", "40", "--seed", "3")) == 0
    assert "40 examples, seed 3" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["wrong", "wrong:nothing_of_this_name", "no_such_module:f", "wrong:BLOCK"])
def test_bad_targets(target):
    with pytest.raises((ValueError, AttributeError, ModuleNotFoundError), match="wrong|no_such_module"):
        fuzz.run("cross_entropy", examples=1, target=target)


def test_an_unavailable_backend_is_said_not_skipped(monkeypatch):
    monkeypatch.setattr(fuzz, "unavailable", lambda backend, device: "it is not here")
    with pytest.raises(RuntimeError, match="'cpu' cannot run here: it is not here"):
        fuzz.run("cross_entropy", "cpu", examples=1)
