"""Which properties a loss has: each with a counterexample, what was tried, or a proof.

    python experiments/report_card.py focal,gamma=2 my_module.my_loss,alpha=0.3 --html card.html
    python experiments/report_card.py my_module.my_loss --claims "strictly_proper, same as mae"

Exit status 1: a property that is claimed (--claims, or a line `Claims: ...` in the loss's
docstring) is refuted.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cnnlab import cli, files
from cnnlab.config import Settings, check
from cnnlab.errors import InputError, one_line

if TYPE_CHECKING:
    from cnnlab.report_card import Card
    from cnnlab.spec import Part


@dataclass(frozen=True)
class Arguments(Settings):
    """Examine losses; without LOSS, all of cnnlab.losses."""

    losses: tyro.conf.Positional[tuple[str, ...]] = ()
    """Specifications: name,key=value,... or your own loss by its dotted path."""
    all: bool = False
    """All of cnnlab.losses, in addition to those named."""
    claims: str = ""
    """Properties that the named losses are said to have, separated by commas; also "same as LOSS".
    """
    num_classes: Annotated[int, "[2, 1000]"] = 3
    """Classes to examine with."""
    json: str | None = None
    """File for all findings, with the counterexamples as numbers; - for stdout."""
    markdown: str | None = None
    """File for a table in Markdown; that of cnnlab/losses/README.md is of all losses."""
    html: str | None = None
    """File for a page that needs no other."""

    def __post_init__(self) -> None:
        check(self)


def main(arguments: Arguments) -> None:
    from cnnlab import losses
    from cnnlab.report_card import table

    for file in (arguments.json, arguments.markdown, arguments.html):
        if file != "-":
            cli.writable(file)
    builtin = () if arguments.losses and not arguments.all else losses.LOSSES
    chosen = choose([*arguments.losses, *builtin], arguments.num_classes)
    cards = examine(chosen, arguments)
    show(cards, arguments)
    write(cards, chosen, arguments)
    if broken := table.broken_claims(cards):
        raise cli.Stopped("\n".join(["claimed, and refuted or impossible to examine:", *broken]), 1)


def choose(specs: Sequence[str], num_classes: int) -> dict[str, Part]:
    """Find the losses by their specs; try each on a batch of two before the first is examined."""
    from cnnlab import report_card
    from cnnlab.contracts import check_loss
    from cnnlab.parts import find

    supplied = report_card.placeholders(num_classes)
    supplied["view_logits"] = [[view] * 2 for view in supplied["view_logits"]]
    chosen = {text: find("loss", text) for text in dict.fromkeys(specs)}
    for part in chosen.values():
        if part.requires("features"):
            raise InputError(
                f"loss {part} needs a model's features: a card is of losses of logits and labels"
            )
        check_loss(part, part.bind(**supplied), num_classes)
    return chosen


def examine(chosen: dict[str, Part], arguments: Arguments) -> list[Card]:
    """Make a card of each loss, with a progress bar."""
    from cnnlab import report_card
    from cnnlab.console import Console
    from cnnlab.report_card import claims

    claimed = claims.split(arguments.claims)
    if claimed and not arguments.losses:
        raise InputError("--claims are about the losses that are named; name at least one")
    claims.resolve(claimed, report_card.PROPERTIES)
    cards = []
    console = Console("off" if arguments.json == "-" else "auto")
    with console.progress("report card", len(chosen), "losses") as advance:
        for name, part in chosen.items():
            card = report_card.card(
                part.function,
                name=name,
                hyperparameters=dict(part.keywords),
                num_classes=arguments.num_classes,
                claims=claimed if name in arguments.losses else (),
            )
            cards.append(card)
            advance(note=name)
    return cards


def show(cards: Sequence[Card], arguments: Arguments) -> None:
    """Print the table, and for each loss its findings: all, or what is refuted."""
    from rich.console import Console

    from cnnlab.report_card import table
    from cnnlab.report_card.finding import REFUTED

    # A pipe has no width: the table stays whole there.
    file = sys.stderr if arguments.json == "-" else sys.stdout
    screen = Console(file=file, highlight=False, soft_wrap=True)
    screen.width = max(screen.width, 120)
    for part in table.tables(cards):
        screen.print(part, "")
    for line in table.legend():
        screen.print(line, markup=False)
    for card in cards:
        lines = table.details(card) if arguments.losses else table.details(card, [REFUTED])
        screen.print(f"\n{card.name} ({card.seconds:.1f} s)", *lines, sep="\n", markup=False)


def write(cards: Sequence[Card], chosen: dict[str, Part], arguments: Arguments) -> None:
    """Write the files that were asked for."""
    from cnnlab import losses, plots, report_card
    from cnnlab.report_card import page, table

    if arguments.json:
        text = json.dumps([card.to_json() for card in cards], indent=1, allow_nan=False)
        if arguments.json == "-":
            print(text)
        else:
            files.write_text(Path(arguments.json), text + "\n")
    if arguments.markdown:
        text = "\n".join(table.markdown(cards)) + "\n"
        files.write_text(Path(arguments.markdown), text)
    if arguments.html:
        classes = arguments.num_classes
        curves = {
            card.name: report_card.curve(
                chosen[card.name].function, dict(chosen[card.name].keywords), classes, card.cosines
            )
            for card in cards
        }
        picture = io.BytesIO()
        try:
            reference = report_card.curve(losses.cross_entropy, {}, classes)
            plots.loss_curves(curves, picture, reference)
        except Exception as error:  # matplotlib raises anything
            print(f"the curves could not be drawn: {one_line(error)}", file=sys.stderr)
        files.write_text(Path(arguments.html), page.page(cards, picture.getvalue()))


if __name__ == "__main__":
    cli.main(main, Arguments)
