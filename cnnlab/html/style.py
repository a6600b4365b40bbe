"""The look of every page: reports, report cards, lessons."""

from cnnlab.plots import SERIES

# Where a colour stands out too little from the paper it is lighter or darker there, of the same
# hue.
LIGHT = {"#ccbb44": "#9a8a1c", "#66ccee": "#2b93b8"}
DARK = {"#4477aa": "#6b9fd4", "#228833": "#45b05a", "#aa3377": "#d0609f", "#666666": "#969696"}


def colours(instead: dict[str, str]) -> str:
    """Format the losses' colours as CSS variables, but for the last: black is the text's colour."""
    return " ".join(
        f"--s{place}: {instead.get(colour, colour)};" for place, colour in enumerate(SERIES[:-1])
    )


STYLE = f"""
:root {{ color-scheme: light dark; --ink: #1c1f23; --dim: #656d76; --paper: #fff; --line: #d7dce1;
  --box: #f5f7f9;
  --good: #1a7f4b; --bad: #b42318; --bad-box: #fdecea; --same: #1f5fa8; {colours(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e4e7ea; --dim: #98a1aa; --paper: #15181c;
  --line: #363c43;
  --box: #1e2227; --good: #5ccf92; --bad: #ff8f85; --bad-box: #3a1d1b;
  --same: #7fb4f0; {colours(DARK)} }} }}
* {{ box-sizing: border-box; }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 2rem auto;
  max-width: 1240px; padding: 0 1rem; overflow-wrap: break-word; }}
h1 {{ font-size: 1.6rem; margin-bottom: .2rem; }} h2 {{ font-size: 1.2rem; margin-top: 2.4rem; }}
p, dl {{ max-width: 60rem; }} a {{ color: inherit; }} .dim {{ color: var(--dim); font-size: .92rem;
  }}
.wide {{ overflow-x: auto; margin: .8rem 0; }} table {{ border-collapse: collapse;
  font-size: .92rem; }}
th, td {{ text-align: right; padding: .28rem .5rem; border-bottom: 1px solid var(--line);
  vertical-align: top;
  white-space: nowrap; font-variant-numeric: tabular-nums; }}
thead th {{ vertical-align: bottom; font-weight: 500; white-space: normal; font-size: .87rem;
  line-height: 1.3; }}
.word {{ text-align: left; }} tbody tr:hover td {{ background: var(--box); }}
td.word:first-child {{ min-width: 8.5rem; }}
td.word {{ white-space: normal; overflow-wrap: break-word; max-width: 18rem; }}
.group th {{ text-align: left; font-weight: 600; padding-top: .9rem; white-space: normal;
  font-size: inherit; }}
.group span {{ position: sticky; left: .5rem; }}
td.verdict {{ white-space: nowrap; font-weight: 600; }}
.better {{ color: var(--good); }} .worse {{ color: var(--bad); }} .equivalent {{
  color: var(--same); }}
.undecided, .exploratory {{ color: var(--dim); }}
.grid td, .grid thead th {{ text-align: center; padding: .28rem .35rem; }}
.grid thead th:not(:first-child) span {{ writing-mode: vertical-rl; transform: rotate(180deg);
  white-space: nowrap; }}
.grid th:first-child {{ text-align: left; font-weight: 500; position: sticky; left: 0;
  background: var(--paper); }}
.grid .first {{ border-left: 2px solid var(--line); }}
.proved, .open {{ color: var(--good); }} .proved {{ font-weight: 700; }}
.refuted {{ color: var(--bad); font-weight: 600; }} .none {{ color: var(--dim); }}
.claim {{ outline: 2px solid var(--bad); outline-offset: -2px; background: var(--bad-box); }}
img {{ max-width: 100%; background: #fff; border-radius: 6px; }}
.alarm {{ border: 2px solid var(--bad); background: var(--bad-box); border-radius: 6px;
  padding: .5rem 1rem;
  margin: .8rem 0; max-width: 60rem; }}
dt {{ font-weight: 600; }} dd {{ margin: 0 0 .4rem 1.2rem; }}
.panels {{ display: flex; flex-wrap: wrap; gap: 1rem 1.4rem; align-items: flex-end;
  margin: .8rem 0; }}
.panels .panels {{ margin: 0; }}
figure {{ margin: 0; max-width: 100%; }} code {{ white-space: nowrap; font-size: .92em; }}
figcaption {{ font-size: .87rem; font-weight: 500; overflow-wrap: anywhere; }}
svg {{ display: block; max-width: 100%; height: auto; font-family: system-ui, sans-serif;
  stroke-linejoin: round; }}
svg text {{ stroke: none; }} svg image {{ image-rendering: pixelated; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; font-size: .9rem; padding: 0;
  list-style: none; }}
.legend li {{ display: flex; align-items: center; gap: .45rem; overflow-wrap: anywhere; }}
.legend svg {{ flex: none; }}
details {{ border: 1px solid var(--line); border-radius: 6px; margin: .6rem 0;
  padding: .5rem .9rem; }}
summary {{ cursor: pointer; overflow-wrap: anywhere; }}
pre {{ background: var(--box); padding: .6rem .8rem; border-radius: 6px; overflow-x: auto;
  font-size: .87rem; }}
"""
