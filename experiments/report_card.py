"""Which properties a loss has: each with a counterexample, what was tried, or a proof.

python experiments/report_card.py focal,gamma=2 my_module.my_loss,alpha=0.3 --html card.html
python experiments/report_card.py my_module.my_loss --claims "strictly_proper, same as squentropy"

Exit status 1: a property that is claimed (--claims, or a line `Claims: ...` in the loss's
docstring) is refuted.
"""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from cnnlab import cli
from cnnlab.errors import InputError


@dataclass(frozen=True)
class Arguments:
    """Examine losses; without LOSS, all of cnnlab.losses."""

    losses: tyro.conf.Positional[tuple[str, ...]] = ()
    """Specifications: name,key=value,... or your own loss by its dotted path."""
    all: bool = False
    """All of cnnlab.losses, beside those named."""
    claims: str = ""
    """Properties that the named losses are said to have, separated by commas; also "same as LOSS".
    """
    num_classes: int = 3
    """Classes to examine with."""
    json: str | None = None
    """File for all findings, with the counterexamples as numbers; - for stdout."""
    markdown: str | None = None
    """File for a table in Markdown; the README's is that of all losses."""
    html: str | None = None
    """File for a page that needs no other."""


def main(arguments: Arguments) -> None:
    from rich.console import Console

    from cnnlab import losses, plots, report_card
    from cnnlab.console import Console as Progress
    from cnnlab.contracts import check_loss
    from cnnlab.parts import find
    from cnnlab.report_card import claims, page, table
    from cnnlab.report_card.finding import REFUTED

    classes = arguments.num_classes
    if classes < 2:
        raise InputError(f"--num-classes must be at least 2, got {classes}")
    for file in (arguments.json, arguments.markdown, arguments.html):
        if (
            file
            and file != "-"
            and (Path(file).is_dir() or not os.access(Path(file).parent, os.W_OK))
        ):
            raise InputError(f"{file} cannot be written")
    claimed = claims.split(arguments.claims)
    if claimed and not arguments.losses:
        raise InputError("--claims are about the losses that are named; name at least one")
    claims.resolve(claimed, report_card.PROPERTIES)
    builtin = () if arguments.losses and not arguments.all else losses.LOSSES
    # Each is tried on a batch of two before the first is examined.
    given = report_card.given(classes)
    given["view_logits"] = [[view] * 2 for view in given["view_logits"]]
    chosen = {text: find("loss", text) for text in dict.fromkeys([*arguments.losses, *builtin])}
    for part in chosen.values():
        if part.requires("features"):
            raise InputError(
                f"loss {part} needs a model's features: a card is of losses of logits and labels"
            )
        check_loss(part, part.bind(**given), classes)

    cards, curves = [], {}
    quiet = arguments.json == "-"
    with Progress("off" if quiet else "auto").progress(
        "report card", len(chosen), "losses"
    ) as advance:
        for spec, part in chosen.items():
            function, hyperparameters = part.function, dict(part.keywords)
            card = report_card.card(
                function,
                name=spec,
                hyperparameters=hyperparameters,
                num_classes=classes,
                claims=claimed if spec in arguments.losses else (),
            )
            cards.append(card)
            if arguments.html:
                curves[spec] = report_card.curve(function, hyperparameters, classes, card.cosines)
            advance(note=spec)

    # A pipe has no width: the table stays whole there.
    screen = Console(file=sys.stderr if quiet else sys.stdout, highlight=False, soft_wrap=True)
    screen.width = max(screen.width, 120)
    for part in table.tables(cards):
        screen.print(part, "")
    for line in table.legend():
        screen.print(line, markup=False)
    for card in cards:
        every = table.details(card) if arguments.losses else table.details(card, [REFUTED])
        screen.print(f"\n{card.name} ({card.seconds:.1f} s)", *every, sep="\n", markup=False)
    if arguments.json:
        text = json.dumps([card.to_json() for card in cards], indent=1, allow_nan=False)
        print(text) if quiet else Path(arguments.json).write_text(text + "\n")
    if arguments.markdown:
        Path(arguments.markdown).write_text("\n".join(table.markdown(cards)) + "\n")
    if arguments.html:
        plots.loss_curves(
            curves, picture := io.BytesIO(), report_card.curve(losses.cross_entropy, {}, classes)
        )
        Path(arguments.html).write_text(page.page(cards, picture.getvalue()))
    broken = table.broken_claims(cards)
    if broken:
        raise cli.Stopped("\n".join(["claimed, and refuted or impossible to examine:", *broken]), 1)


if __name__ == "__main__":
    cli.main(main, Arguments)
