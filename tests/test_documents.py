"""The documents: links lead somewhere, the first page is short."""

import re

import pytest
from scripts import ROOT

DOCUMENTS = sorted(
    path
    for path in ROOT.glob("**/*.md")
    if not path.relative_to(ROOT).parts[0].startswith((".", "runs"))
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```", re.DOTALL)


def anchors(text):
    """Names of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for link in LINK.findall(CODE.sub("", path.read_text())):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def test_every_folder_that_a_reader_meets_has_a_readme():
    folders = ["", "cnnlab", *(f"cnnlab/{name}" for name in ("checkpoint", "data", "losses"))]
    folders += ["cnnlab/models", "cnnlab/study", "experiments"]
    names = ("benchmarks", "configs", "launch", "lessons", "replications")
    folders += [f"experiments/{name}" for name in names]
    assert [folder for folder in folders if not (ROOT / folder / "README.md").exists()] == []


def test_the_first_page_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1100


def test_every_script_is_listed():
    text = (ROOT / "experiments/README.md").read_text()
    for path in (ROOT / "experiments").glob("*.py"):
        assert f"`{path.name}" in text, path.name
    text = (ROOT / "experiments/lessons/README.md").read_text()
    for path in (ROOT / "experiments/lessons").glob("*.py"):
        assert path.name in text, path.name
    text = (ROOT / "experiments/configs/README.md").read_text()
    for path in (ROOT / "experiments/configs").glob("*.toml"):
        assert f"]({path.name})" in text, path.name
