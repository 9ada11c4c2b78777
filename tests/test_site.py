"""The documentation's pages before Sphinx (`make docs`) has them: nothing public is missing or twice, and links lead somewhere."""

from __future__ import annotations

import inspect
import re
import sys

import checkout  # noqa: F401  makes docs importable
import pytest

import fastloss
from docs import generate
from docs.__main__ import loaded_from_elsewhere
from fastloss import functional, nn
from fastloss.curves import curve
from fastloss.names import compat_modules, find, own_modules
from fastloss.registry import LOSSES

ENGINE = None
PAGES = generate.pages()
ENTRIES = [path for text in PAGES.values() for path in re.findall(r"^\.\. auto(?:function|class):: (\S+)$", text, re.MULTILINE)]
offered = generate.offered
ROLE = re.compile(r":(?:py:)?(?:func|class|mod|meth|data|attr|obj):`([^`]+)`")


def test_every_loss_is_on_one_page():
    for loss in LOSSES.values():
        for path in (f"fastloss.functional.{loss.function.__name__}", f"fastloss.nn.{nn.class_name(loss)}"):
            assert ENTRIES.count(path) == 1
        target = f".. _loss-{loss.name}:"
        assert [name for name, text in PAGES.items() if target in text] == [f"tasks/{generate.task_of(loss)}.rst"]


def test_everything_public_is_there_once():
    """Where it is defined, if it is offered there too; so every name of torch's, fastloss's and other libraries' leads to one entry."""
    assert {"fastloss.explain", "fastloss.functional.pairwise_box_iou", "fastloss.nn.HuberLoss", "fastloss.metric.miners.HDCMiner",
            "fastloss.compat.monai.DiceCELoss", "fastloss.compat.monai.dice_ce"} <= offered().keys()
    assert generate.home("fastloss.compat.monai.dice_ce") == "fastloss.compat.monai.DiceCELoss"
    homes = {generate.home(path) for path in offered()}
    assert len(set(ENTRIES)) == len(ENTRIES) and set(ENTRIES) - homes == homes - set(ENTRIES) == set()


def test_another_name_of_a_function_has_no_entry_of_its_own(monkeypatch):
    monkeypatch.setattr(functional, "pseudo_huber_loss", functional.huber_loss, raising=False)
    monkeypatch.setattr(functional, "__all__", ["pseudo_huber_loss", *functional.__all__])
    offered.cache_clear()
    try:
        assert generate.home("fastloss.functional.pseudo_huber_loss") == "fastloss.functional.huber_loss"
        assert "pseudo_huber_loss" not in generate.others_of("regression")
        assert "``pseudo_huber_loss``" in generate.loss_section(LOSSES["huber"]) and find("PseudoHuber").name == "huber"
    finally:
        offered.cache_clear()


def test_everything_public_has_a_docstring():
    assert [path for path, thing in offered().items() if not (thing.__doc__ or "").strip()] == []
    modules = [fastloss, functional, nn, fastloss.metric, *compat_modules().values(), *own_modules().values(), *generate.METRIC.values()]
    assert [module.__name__ for module in modules if not (module.__doc__ or "").strip()] == []


def _named(target: str) -> str:
    """What a role refers to: of ``title <target>`` the target."""
    found = re.search(r"<([^>]+)>$", target)
    return (found[1] if found else target).lstrip("~!")


def _exists(target: str, *scopes: str) -> bool:
    """Whether a name leads to something: absolute, of another package, or in one of the scopes."""
    if target.partition(".")[0] in ("torch", "numpy", "fastloss"):
        return not target.startswith("fastloss") or generate.exists(target)
    return any(generate.exists(f"{scope}.{target}") for scope in scopes)


@pytest.mark.parametrize("module", sorted({path.rpartition(".")[0] for path in offered()}))
def test_names_in_docstrings_exist(module):
    for path, thing in offered().items():
        if path.rpartition(".")[0] == module and generate.home(path) == path:
            own = [value for value in vars(thing).values() if inspect.isfunction(value)] if inspect.isclass(thing) else []
            for part in (thing, *own):
                for target in ROLE.findall(part.__doc__ or ""):
                    scopes = module, path, thing.__module__
                    assert _exists(_named(target), *scopes), f"the docstring of {path} refers to {target!r}, which does not exist"


def test_a_name_that_leads_nowhere_is_found():
    assert _exists("fastloss.functional.huber_loss") and _exists("huber_loss", "fastloss.functional") and _exists("torch.whatever")
    assert _exists("DiceLoss.forward", "fastloss.compat.monai") and _exists("fastloss.functional")
    assert not _exists("fastloss.functional.hubr_loss") and not _exists("hubr_loss", "fastloss.functional") and not _exists("fastlos.x")


def test_links_between_pages():
    names = {name.rpartition(".")[0] for name in PAGES}
    labels = {label for text in PAGES.values() for label in re.findall(r"^\.\. _([^:]+):$", text, re.MULTILINE)}
    drawn = {loss.name for loss in LOSSES.values() if curve(loss) is not None}
    for page, text in PAGES.items():
        if page.endswith(".md"):
            for target in re.findall(r"\]\(([^)]+)\)", text):
                assert target.startswith("http") or target in PAGES, f"{page} links to {target}"
            continue
        assert {_named(target) for target in re.findall(r":ref:`([^`]+)`", text)} <= labels
        assert {_named(target) for target in re.findall(r":doc:`([^`]+)`", text)} <= names
        assert set(re.findall(r"^\.\. image:: /pictures/(\w+)\.svg$", text, re.MULTILINE)) <= drawn
        for target in ROLE.findall(text):
            assert _exists(_named(target), "fastloss.nn"), f"{page} refers to {target}"


@pytest.mark.parametrize("path", generate.MARKDOWN.values())
def test_links_of_markdown_files(path):
    """On disk, where they are read too."""
    for target in re.findall(r"\]\(([^)#\s]+)", (generate.ROOT / path).read_text()):
        assert re.match("https?://", target) or ((generate.ROOT / path).parent / target).exists(), f"{path} links to {target}"


def test_every_page_is_in_the_contents():
    listed = [page for text in PAGES.values() for page in re.findall(r"^   (?:\w+ <)?/([\w./-]+)>?$", text, re.MULTILINE)]
    assert sorted(listed) == sorted({name.rpartition(".")[0] for name in PAGES} - {"index"})


def test_other_modules_have_pages(tmp_path, monkeypatch):
    """Those that offer names, and no others."""
    own_modules.cache_clear()
    offered.cache_clear()
    (tmp_path / "offering.py").write_text('"""Offers."""\n__all__ = ["thing"]\n\n\ndef thing():\n    """A thing."""\n')
    (tmp_path / "inner.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.setattr(fastloss, "__path__", [*fastloss.__path__, str(tmp_path)])
    try:
        found = own_modules()
        assert "offering" in found and "inner" not in found and "nn" not in found
        assert ".. autofunction:: fastloss.offering.thing" in generate.module_page("offering", found["offering"])
        assert "   /modules/offering" in generate.pages()["index.rst"].splitlines()
    finally:
        sys.modules.pop("fastloss.offering", None)
        vars(fastloss).pop("offering", None)
        own_modules.cache_clear()
        offered.cache_clear()


def test_what_is_drawn():
    for loss in LOSSES.values():
        text = PAGES[f"tasks/{generate.task_of(loss)}.rst"]
        assert (f"/pictures/{loss.name}.svg" in text) == (loss.engine in ("elementwise", "row"))


def test_a_tables_cells_and_headings():
    assert generate.table(("a", "b"), [("1", "2")]).splitlines() == [
        ".. list-table::", "   :header-rows: 1", "", "   * - a", "     - b", "   * - 1", "     - 2",
    ]
    assert generate.heading("ab") == "ab\n--\n" and generate.escaped("|x|_*") == r"\|x\|\_\*"
    with pytest.raises(ValueError, match="no section 'Nothing'"):
        generate.section("## Something\n", "Nothing")


def test_pages_load_nothing_from_elsewhere():
    assert loaded_from_elsewhere('<script src="https://example.org/a.js"></script><a href="https://example.org">') != []
    assert loaded_from_elsewhere('<img src="../a.svg"><a href="https://example.org">') == []


def test_pictures_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "LOSSES", {name: LOSSES[name] for name in ("huber", "dice")})
    monkeypatch.setattr(generate, "pages", lambda: {"a/b.rst": "text"})
    generate.write(tmp_path)
    assert (tmp_path / "a" / "b.rst").read_text() == "text"
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["huber.svg"]
