"""The report card reproduces what is known of the losses, refutations included, and catches every
planted fault.
"""

import functools
import html.parser
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import broken_losses
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cnnlab import docstrings, losses, plots, report_card
from cnnlab.errors import InputError
from cnnlab.report_card import citations, claims, page, table
from cnnlab.report_card.finding import NOT_APPLICABLE, NOT_REFUTED, PROVED, REFUTED

ROOT = Path(__file__).parents[2]
HOLDS = (NOT_REFUTED, PROVED)
# Losses of losses, beside those that have a name.
MADE = {
    "label_smoothing": losses.label_smoothing(losses.cross_entropy),
    "with_z_loss": losses.with_z_loss(losses.cross_entropy),
}
# property -> the losses that have it, and those that do not (the papers are named in
# report_card.PROPERTIES)
EXPECTED = {
    "strictly_proper": (
        "cross_entropy mean_squared_error",
        "focal generalized_cross_entropy mean_absolute_error poly label_smoothing",
    ),
    "classification_calibrated": (
        "cross_entropy focal mean_squared_error with_z_loss",
        "multiclass_hinge",
    ),
    "symmetric": (
        "mean_absolute_error reverse_cross_entropy normalized_cross_entropy",
        "cross_entropy mean_squared_error",
    ),
    "bounded": (
        "generalized_cross_entropy mean_absolute_error mean_squared_error",
        "cross_entropy focal with_z_loss",
    ),
    "non_negative": ("cross_entropy focal mean_squared_error sparsemax_loss", ""),
    "convex": (
        "cross_entropy sparsemax_loss multiclass_hinge",
        "mean_squared_error focal mean_absolute_error",
    ),
    "shift_invariant": (
        "cross_entropy mean_squared_error multiclass_hinge",
        "with_z_loss squared_logits",
    ),
    "smooth": ("cross_entropy mean_squared_error sparsemax_loss", "multiclass_hinge"),
    "strong_on_confident_mistakes": (
        "cross_entropy focal multiclass_hinge",
        "mean_squared_error mean_absolute_error generalized_cross_entropy reverse_cross_entropy",
    ),
    "zero_at_perfect": (
        "cross_entropy focal mean_squared_error squared_logits with_z_loss sparsemax_loss ldam",
        "label_smoothing",
    ),
    "rewards_truth": ("cross_entropy mean_absolute_error ldam", "squared_logits"),
}
SOUND = "cross_entropy mean_squared_error squared_logits ldam distillation"
EXPECTED |= dict.fromkeys(("finite", "transform_safe"), (SOUND, ""))
EXPECTED |= dict.fromkeys(
    ("label_safe", "one_hot_agrees", "label_differentiable", "true_gradient"),
    (f"{SOUND} focal sparsemax_loss multiclass_hinge", ""),
)
EXPECTED["float32_accumulation"] = ("cross_entropy mean_squared_error ldam", "")

# fault -> the property that shows it, the loss that is meant, and what of the finding names the
# fault
FAULTS = {
    "wrong_sign": ("rewards_truth", "cross_entropy", "once z_"),
    "detached_focal": ("true_gradient", "focal", "differences of the values"),
    "naive_log": ("finite", "cross_entropy", "is inf|nan"),
    "last_class_wrap": ("label_safe", "cross_entropy", "label -1 .* the loss of class 2"),
    "first_class_clip": ("label_safe", "cross_entropy", "the loss of class"),
    "squentropy_slip": ("same_as", "squentropy", "that of squentropy"),
    "half_precision": ("float32_accumulation", "cross_entropy", "bfloat16 logits of 1000 classes"),
    "improper_focal": ("strictly_proper", "cross_entropy", "the risk is"),
    "mean_over_batch": ("transform_safe", "cross_entropy", "instead of"),
    "branch_on_value": ("transform_safe", "cross_entropy", "TracerBool"),
    "float_labels_as_ids": ("one_hot_agrees", "cross_entropy", "a loss of shape"),
    "label_mask": ("label_differentiable", "cross_entropy", "autodiff gives -?0 for dL/dq"),
    "guarded_log": ("same_as", "cross_entropy", "that of cross_entropy"),
}


@functools.cache
def examined(name):
    """The card of a loss, with the properties that some test reads."""
    wanted = [p for p, sides in EXPECTED.items() if name in " ".join(sides).split()]
    return report_card.card(MADE.get(name) or losses.LOSSES[name], name=name, properties=wanted)


@functools.cache
def broken(name):
    shown_by = FAULTS[name][0]
    return report_card.card(
        getattr(broken_losses, name), properties=[shown_by] if shown_by != "same_as" else []
    )


CASES = [
    (p, name, side)
    for p, sides in EXPECTED.items()
    for side in (0, 1)
    for name in sides[side].split()
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "property", "side"), sorted((n, p, s) for p, n, s in CASES))
def test_what_is_known(name, property, side):
    finding = examined(name)[property]
    assert finding.verdict in (HOLDS, (REFUTED,))[side], finding.detail
    assert finding.points > 0 and finding.detail and "\n" not in finding.detail
    assert finding.data or not side  # a counterexample as numbers


def test_every_property_is_expected_of_some_loss():
    assert set(EXPECTED) == set(report_card.PROPERTIES)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault):
    shown_by, meant, words = FAULTS[fault]
    finding = broken(fault)[shown_by]
    assert finding.verdict == REFUTED
    assert re.search(words, finding.detail)
    if shown_by != "same_as":
        assert examined(meant)[shown_by].verdict in HOLDS


def test_every_broken_loss_is_planted():
    local = {
        n for n, f in vars(broken_losses).items() if getattr(f, "__module__", "") == "broken_losses"
    }
    assert {n for n in local if not n.startswith("_")} == set(FAULTS) | {"sound"}


@pytest.mark.slow
def test_no_false_alarm():
    """The same words without a fault: every claim holds, and so does what the faults break."""
    wanted = sorted({shown_by for shown_by, _, _ in FAULTS.values()} - {"same_as"})
    card = report_card.card(broken_losses.sound, properties=wanted)
    # Not "proved": it is not one of cnnlab's
    assert {f.verdict for f in card.findings.values()} == {NOT_REFUTED}
    assert {f.property for f in card.findings.values() if f.claimed} == {
        "strictly_proper", "convex", "finite", "same_as"
    }  # fmt: skip
    assert not card.broken_claims


@pytest.mark.slow
def test_numbers():
    assert examined("cross_entropy")["smooth"].data["constant"] == pytest.approx(0.5, abs=1e-9)
    assert examined("sparsemax_loss")["smooth"].data["constant"] == pytest.approx(1, abs=1e-9)
    assert examined("mean_squared_error")["bounded"].data["supremum"] == pytest.approx(2, abs=1e-9)
    assert examined("generalized_cross_entropy")["bounded"].data["supremum"] == pytest.approx(
        1 / 0.7, abs=1e-9
    )
    # 2 (K - 1)
    assert examined("mean_absolute_error")["symmetric"].data["sum"] == pytest.approx(4, abs=1e-9)
    slopes = examined("cross_entropy")["strong_on_confident_mistakes"].data
    assert dict(zip(slopes["margins"], slopes["gradients"], strict=True))[-100] == pytest.approx(
        2**0.5, abs=1e-9
    )
    # label smoothing of 0.1 over 3 classes: entropy of (0.9333, 0.0333, 0.0333), found on a grid
    smoothed = -(14 / 15 * np.log(14 / 15) + 2 / 30 * np.log(1 / 30))
    assert examined("label_smoothing")["zero_at_perfect"].data["loss"] == pytest.approx(
        smoothed, abs=1e-3
    )


def probabilities(z):
    e = np.exp(z - np.max(z))
    return e / e.sum()


def test_a_counterexample_to_propriety_can_be_checked_by_hand():
    data = examined("focal")["strictly_proper"].data
    q = data["q"]
    p = probabilities(data["logits"])

    def risk(p):
        return np.sum(-q * (1 - p) ** 2 * np.log(p))

    assert 0.5 * np.abs(p - q).sum() > 1e-3 and risk(p) < risk(q) - 1e-6
    assert (data["risk"], data["risk_at_q"]) == pytest.approx((risk(p), risk(q)), abs=1e-12)


def test_a_counterexample_to_calibration_can_be_checked_by_hand():
    data = examined("multiclass_hinge")["classification_calibrated"].data
    q, z = data["q"], data["logits"]
    hinge = [max(0, *(1 + z[j] - z[k] for j in range(3) if j != k)) for k in range(3)]
    assert np.dot(q, hinge) == pytest.approx(data["lowest_risk"], abs=1e-8)
    assert np.max(q) < 0.5 and z[np.argmax(q)] <= np.max(np.delete(z, np.argmax(q)))


def test_a_counterexample_to_convexity_can_be_checked_by_hand():
    data = examined("mean_absolute_error")["convex"].data

    def loss(z):
        return 2 * (1 - probabilities(z)[data["label"]])

    a, b = data["ends"]
    assert loss((a + b) / 2) > (loss(a) + loss(b)) / 2 + 1e-3


def test_a_counterexample_beats_a_citation(monkeypatch):
    monkeypatch.setattr(report_card, "citation", lambda *_: "a paper that errs")
    card = report_card.card(losses.focal, properties=["strictly_proper", "non_negative"])
    assert (card["strictly_proper"].verdict, card["strictly_proper"].citation) == (REFUTED, "")
    assert (card["non_negative"].verdict, card["non_negative"].citation) == (
        PROVED,
        "a paper that errs",
    )


def test_a_proof_is_of_the_builtin_loss_and_of_its_hyperparameters():
    both = ["symmetric", "non_negative"]
    assert report_card.card(losses.active_passive, properties=both)["symmetric"].verdict == PROVED
    other = report_card.card(losses.active_passive, hyperparameters={"alpha": 2.0}, properties=both)
    assert other["symmetric"].verdict == NOT_REFUTED

    def mean_absolute_error(logits, labels):
        return losses.mean_absolute_error(logits, labels)

    assert (
        report_card.card(mean_absolute_error, properties=both)["symmetric"].verdict == NOT_REFUTED
    )


def test_citations_are_of_what_there_is_and_of_nothing_refuted():
    for tab in (citations.ALWAYS, citations.BY_DEFAULT):
        for (property, text), names in tab.items():
            assert property in report_card.PROPERTIES and text and set(names) <= set(losses.LOSSES)
            assert not set(names) & set(EXPECTED[property][1].split())
    calibrated = {
        n for n in losses.LOSSES if citations.citation(n, "classification_calibrated", True)
    }
    assert calibrated == {"cross_entropy", "mean_squared_error", "focal", "binary_cross_entropy"}
    assert {n for n in losses.LOSSES if citations.citation(n, "strictly_proper", True)} == {
        "cross_entropy", "mean_squared_error"
    }  # fmt: skip
    assert {n for n in losses.LOSSES if citations.citation(n, "symmetric", True)} == {
        "mean_absolute_error", "reverse_cross_entropy", "normalized_cross_entropy",
        "normalized_focal", "active_passive"
    }  # fmt: skip


def test_cosines_are_not_asked_what_makes_no_sense_of_them():
    card = report_card.card(
        losses.cosine_softmax, properties=["strictly_proper", "bounded", "rewards_truth"]
    )
    verdicts = [finding.verdict for finding in card.findings.values()]
    assert card.cosines and verdicts == [NOT_APPLICABLE, NOT_APPLICABLE, NOT_REFUTED]
    assert "cosines" in card["bounded"].detail


def test_a_loss_that_raises_has_a_card():
    def fails(logits, labels):
        raise RuntimeError("out of order")

    card = report_card.card(fails, properties=["convex", "finite", "transform_safe"])
    assert [f.verdict for f in card.findings.values()] == [NOT_APPLICABLE, REFUTED, REFUTED]
    assert all("RuntimeError: out of order" in f.detail for f in card.findings.values())


@pytest.mark.parametrize("classes", [2, 5])
def test_other_numbers_of_classes(classes):
    asked = ["strictly_proper", "classification_calibrated"]
    proper = report_card.card(losses.cross_entropy, num_classes=classes, properties=asked)
    assert [f.verdict for f in proper.findings.values()] == [PROVED, PROVED]
    hinge = report_card.card(losses.multiclass_hinge, num_classes=classes, properties=asked)
    # Two classes always leave one of them a majority.
    assert hinge["classification_calibrated"].verdict == (NOT_REFUTED if classes == 2 else REFUTED)
    assert hinge["strictly_proper"].verdict == REFUTED


def test_claims_are_read_from_the_docstring():
    def boasting(logits, labels):
        """A loss.

            L(z, y) = 0

        Source: nowhere.
        Claims: strictly proper, same as focal gamma=1,
          bounded.
        """

    claimed = claims.claimed(boasting)
    assert claimed == ("strictly proper", "same as focal gamma=1", "bounded")
    resolved = claims.resolve(claimed, report_card.PROPERTIES)
    assert resolved == {"strictly_proper": "", "same_as": "focal,gamma=1", "bounded": ""}
    about = docstrings.entry(boasting)
    assert (about.summary, about.formula, about.source) == ("A loss.", "L(z, y) = 0", "nowhere.")
    assert not any(claims.claimed(loss) for loss in losses.LOSSES.values())


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (
            "strictly_propr",
            "unknown claimed property 'strictly_propr': did you mean 'strictly_proper'",
        ),
        (
            "same as squentrpy",
            "unknown loss in the claim 'same as' 'squentrpy': did you mean 'squentropy'",
        ),
        ("same as", "names a loss"),
    ],
)
def test_what_cannot_be_claimed(claim, message):
    with pytest.raises(InputError, match=re.escape(message)):
        report_card.card(losses.cross_entropy, claims=[claim], properties=[])


def test_what_cannot_be_asked():
    with pytest.raises(InputError, match="did you mean 'convex'"):
        report_card.card(losses.cross_entropy, properties=["konvex"])
    with pytest.raises(InputError, match="at least 2 classes, got 1"):
        report_card.card(losses.cross_entropy, num_classes=1)


@pytest.mark.slow
def test_json_is_strict_and_whole():
    cards = [broken("naive_log"), broken("improper_focal"), examined("squared_logits")]
    read = json.loads(json.dumps([card.to_json() for card in cards], allow_nan=False))
    for card, copy in zip(cards, read, strict=True):
        assert copy["name"] == card.name and set(copy["findings"]) == set(card.findings)
        for name, finding in copy["findings"].items():
            assert (
                finding["verdict"] == card[name].verdict and finding["detail"] == card[name].detail
            )
    assert read[1]["findings"]["strictly_proper"]["data"]["q"] == list(
        cards[1]["strictly_proper"].data["q"]
    )
    assert read[1]["findings"]["strictly_proper"]["claimed"] is True


@pytest.mark.slow
def test_tables_stay_whole_in_a_pipe():
    cards = [examined("cross_entropy"), examined("mean_absolute_error"), broken("improper_focal")]
    out = io.StringIO()
    for part in table.tables(cards):
        Console(file=out, width=120).print(part)
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert [word for row in rows if row[0] == "loss" for word in row[1:]] == [
        p.short for p in report_card.PROPERTIES.values()
    ]
    assert ["improper_focal", "NO!", "ok"] in rows
    assert "…" not in out.getvalue()
    assert table.broken_claims(cards) == [
        f"improper_focal claims strictly_proper: {cards[2]['strictly_proper'].detail}"
    ]
    assert [line.split()[1] for line in table.details(cards[2], [REFUTED])] == ["strictly_proper:"]


class Links(html.parser.HTMLParser):
    """What a page loads or leads to, its text, and the tags that are open."""

    def __init__(self):
        super().__init__()
        self.links = []
        self.text = ""
        self.tags = set()
        self.open = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.slow
def test_the_page_needs_no_other():
    cards = [examined("cross_entropy"), examined("ldam"), broken("improper_focal")]
    text = page.page(cards, b"PNG", title="a <title>")
    read = Links()
    read.feed(text)
    assert not read.open and not read.tags & {"script", "link", "iframe"}
    assert {link.split(",")[0] for link in read.links} == {
        "#cross-entropy", "#ldam", "#improper-focal", "data:image/png;base64"
    }  # fmt: skip
    assert "@import" not in text and "url(" not in text and "prefers-color-scheme: dark" in text
    assert "a <title>" in read.text and "Claimed and refuted" in read.text
    for card in cards:
        for finding in card.findings.values():
            assert finding.detail in read.text and finding.citation in read.text
    assert "L(z, y) = -log p_y" in read.text and "Good, 1952" in read.text


def progressive(logits, labels, progress):
    """A loss of the training's progress, which is 1 at its end.

    Claims: same as cross_entropy
    """
    return progress * losses.cross_entropy(logits, labels)


@pytest.mark.slow
def test_a_loss_of_the_progress_is_examined_at_the_end_of_a_run():
    card = report_card.card(progressive, properties=["rewards_truth", "finite", "transform_safe"])
    assert {f.verdict for f in card.findings.values()} == {NOT_REFUTED} and not card.broken_claims


def test_a_loss_of_your_own_that_is_made_for_cosines_is_examined_on_them():
    @losses.made_for_cosines
    def own(logits, labels):
        return losses.cosine_softmax(logits, labels)

    assert report_card.card(own, properties=[]).cosines
    assert not report_card.card(own, properties=[], cosines=False).cosines


def test_curves():
    curve = report_card.curve(losses.cross_entropy)
    p = curve.x
    assert curve.axis == "probability"
    np.testing.assert_allclose(curve.loss, -np.log(p), rtol=1e-12)
    # gradient p - e_y: (p - 1, (1 - p)/2, (1 - p)/2)
    np.testing.assert_allclose(curve.gradient, (1 - p) * np.sqrt(1.5), rtol=1e-9)
    cosine = report_card.curve(losses.cosine_softmax, {"scale": 2.0}, 2, cosines=True)
    assert cosine.axis == "cosine"
    # The other is -x
    np.testing.assert_allclose(cosine.loss, np.log1p(np.exp(-4 * cosine.x)), rtol=1e-12)


def test_few_curves_share_panels_and_many_do_not(monkeypatch, tmp_path):
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1]
    )
    x = np.linspace(0.01, 0.99, 20)
    curve = ("probability", x, -np.log(x), 1 - x)
    cosine = ("cosine", 2 * x - 1, 1 - x, x)
    plots.loss_curves({"a": curve, "b": curve, "c": cosine}, tmp_path / "few.png")
    plots.loss_curves(
        {str(i): cosine if i == 3 else curve for i in range(11)}, tmp_path / "many.png", curve
    )
    few, many = figures
    assert [axis.get_xlabel() for axis in few.axes] == [f"{k} of the true class" for k in
                                                        ("probability", "probability", "cosine",
                                                            "cosine")]  # fmt: skip
    assert [[line.get_label() for line in axis.get_lines()] for axis in few.axes] == [
        ["a", "b"]
    ] * 2 + [["c"]] * 2
    np.testing.assert_array_equal(few.axes[1].get_lines()[0].get_ydata(), curve[3])
    shown = [axis for axis in many.axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == [str(i) for i in range(11)]
    # No grey without its axis
    assert [len(axis.get_lines()) for axis in shown] == [
        4,
        4,
        4,
        2,
        *[4] * 7,
    ]
    for name in ("few.png", "many.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 1000


def script(*args):
    command = [sys.executable, str(ROOT / "experiments" / "report_card.py"), *map(str, args)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    return subprocess.run(
        command,
        cwd=ROOT / "tests/support",
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_the_script_examines_an_own_loss_and_exits_with_its_claims(tmp_path):
    done = script(
        "broken_losses.improper_focal",
        "--html",
        tmp_path / "card.html",
        "--json",
        tmp_path / "card.json",
    )
    assert done.returncode == 1, done.stderr
    assert "broken_losses.improper_focal claims strictly_proper: for q = " in done.stderr
    assert "NO!" in done.stdout and "Traceback" not in done.stderr and "\x1b" not in done.stdout
    (card,) = json.loads((tmp_path / "card.json").read_text())
    assert list(card["findings"]) == list(report_card.PROPERTIES)
    assert card["name"] in (tmp_path / "card.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["cross_entrpy"], "did you mean 'cross_entropy'?"),
        (["broken_losses.wrong_sing"], "did you mean 'wrong_sign'?"),
        (["user_parts.of_features"], "needs a model's features"),
        (["cross_entropy", "--claims", "strictly_propr"], "did you mean 'strictly_proper'?"),
        (["cross_entropy", "--json", "nowhere/card.json"], "nowhere/card.json cannot be written"),
    ],
)
def test_the_script_refuses_in_one_line(args, message):
    done = script(*args)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_readme_table_is_the_catalogue():
    """Names, defaults and formulas of all losses, and the properties that are known."""
    rows = (ROOT / "cnnlab/losses/README.md").read_text().splitlines()
    for name, loss in losses.LOSSES.items():
        start = table.markdown_start(loss)
        (row,) = [row for row in rows if row.startswith(start)]
        words = row.split(" | ")[-2].split(", ")
        for property, word in table.WORDS.items():
            has, lacks = EXPECTED[property]
            assert name not in has.split() or word in words, (row, property)
            assert name not in lacks.split() or word not in words, (row, property)


def test_what_has_no_number_is_refuted():
    def nothing(logits, labels):
        return np.nan * losses.cross_entropy(logits, labels)

    card = report_card.card(nothing, properties=["smooth", "convex", "true_gradient", "bounded"])
    assert {f.verdict for f in card.findings.values()} == {REFUTED}
    assert "no finite value" in card["smooth"].detail


def test_a_claim_that_cannot_be_examined_is_no_claim_kept():
    card = report_card.card(losses.cosface, claims=["bounded"], properties=[])
    assert card["bounded"].verdict == NOT_APPLICABLE and card.broken_claims == [card["bounded"]]
