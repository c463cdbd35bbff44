"""How a report looks: one stylesheet for desk, phone, paper, light and dark."""

from __future__ import annotations

from diffax.ablation import figures


def stylesheet() -> str:
    """The CSS of a report, with the figures' colours as variables for both colour schemes."""
    light = "".join(f"--c{i}:{colour};" for i, (colour, _) in enumerate(figures.PALETTE))
    dark = "".join(f"--c{i}:{colour};" for i, (_, colour) in enumerate(figures.PALETTE))
    paper = (
        f"--ink:{figures.INK};--muted:{figures.MUTED};--rule:{figures.RULE};--paper:{figures.PAPER};"
        f"--tint:#f3f4f1;--warn:#fdf3dc;--shade:rgba(0,0,0,.2);{light}"
    )
    night = (
        "--ink:#e6e8ea;--muted:#9aa1a9;--rule:#34393f;--paper:#14171a;"
        f"--tint:#1c2024;--warn:#352b12;--shade:rgba(255,255,255,.22);{dark}"
    )
    dark_screen = f"@media screen and (prefers-color-scheme:dark){{:root{{{night}}}}}"
    return f":root{{{paper}}}\n{dark_screen}\n{_CSS}"


_CSS = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 3rem 1.5rem 4rem; }
h1 { font-size: 2.1rem; line-height: 1.2; font-weight: 650; letter-spacing: -.015em;
  margin: 0 0 .6rem; max-width: 24em; text-wrap: balance; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .3rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.8rem 0 .5rem; }
p { margin: 0 0 .8rem; max-width: 44rem; }
small { font-size: .8125rem; color: var(--muted); }
section { margin-top: 3.2rem; }
.eyebrow { margin: 0 0 .7rem; color: var(--muted); font-size: .8125rem; letter-spacing: .04em; }
.question { font-size: 1.15rem; color: var(--muted); margin: 0; text-wrap: pretty; }
.note, figcaption { color: var(--muted); font-size: .875rem; line-height: 1.5; }
.note { margin-bottom: 1.3rem; }
.remark { background: var(--warn); padding: .8rem 1rem; margin: 1.5rem 0 0; max-width: none;
  font-size: .9375rem; overflow-wrap: anywhere; }
.verdict { margin-top: 1.8rem; padding: 1.4rem 1.6rem; background: var(--tint); }
.headline { font-size: 1.35rem; line-height: 1.4; margin: 0; max-width: 44rem; text-wrap: pretty; }
.verdict ul { margin: 1rem 0 0; padding: 0; list-style: none; font-size: .875rem; }
.verdict ul:empty { display: none; }
.verdict li { padding: .28rem 0 .28rem 1.6rem; position: relative; }
.verdict .mark { position: absolute; left: 0; color: var(--muted); }
.verdict > p:last-child { margin-bottom: 0; }
.verdict ul + p { margin-top: .8rem; font-size: .875rem; }
strong { font-weight: 650; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem 2.6rem; margin: 1.4rem 0 0; }
.facts dt { color: var(--muted); font-size: .8125rem; }
.facts dd { margin: 0; font-variant-numeric: tabular-nums; }
/* What goes on to the right has a shade there, and says so where the browser can tell. */
.meanings { margin: 1.2rem 0 0; font-size: .875rem; line-height: 1.5; color: var(--muted); }
.meanings div { margin: 0 0 .35rem; max-width: 54rem; break-inside: avoid; }
.meanings dt { display: inline; font-weight: 600; color: var(--ink); }
.meanings dt::after { content: ": "; }
.meanings dd { display: inline; margin: 0; }
.scroll { overflow-x: auto; background:
    linear-gradient(to left, var(--paper) 40%, transparent) right / 2.5rem 100% no-repeat local,
    linear-gradient(to left, var(--shade), transparent) right / 1rem 100% no-repeat scroll; }
.sideways { position: sticky; left: 0; margin: 0; height: 0; overflow: hidden; color: var(--muted);
  font-size: .8125rem; line-height: 1.5rem; animation: sideways 1s linear both;
  animation-timeline: scroll(nearest inline); }
@keyframes sideways { from, to { height: 1.5rem; } }
@supports not (animation-timeline: scroll()) {
  @media (max-width: 40rem) { .sideways { height: 1.5rem; animation: none; } }
}
.scroll + .scroll { margin-top: 1.8rem; }
.scroll + p { margin-top: 2rem; color: var(--muted); font-size: .875rem; line-height: 1.5; }
table { border-collapse: collapse; overflow-wrap: normal;
  font-variant-numeric: tabular-nums lining-nums; font-size: .9375rem; line-height: 1.35; }
td, thead th { text-align: right; }
td, th { padding: .45rem 0 .45rem 1.4rem; vertical-align: baseline; font-weight: 400;
  white-space: nowrap; }
tbody th { white-space: normal; max-width: 24rem; }
th:first-child { text-align: left; padding-left: 0; position: sticky; left: 0;
  background: var(--paper); padding-right: .5rem; }
thead th { font-weight: 600; vertical-align: bottom; white-space: normal; max-width: 12rem; }
thead { border-bottom: 1px solid var(--muted); }
tbody tr + tr, tbody + tbody { border-top: 1px solid var(--rule); }
td small, thead small { display: block; font-weight: 400; margin-top: .1rem; }
tr.focus th, tr.focus td { font-weight: 650; }
tr.focus small { font-weight: 400; }
.group th { font-weight: 600; padding-top: 1.3rem; max-width: none; }
.group small { font-weight: 400; margin-left: .7rem; }
:is(.differences, .effects) td:last-child, .settled td, .settled thead th { text-align: left; }
abbr { text-decoration: none; color: var(--muted); font-weight: 400; }
:is(.differences, .effects, .settled) :is(td, th) { padding-top: .3rem; padding-bottom: .3rem; }
:is(.differences, .effects, .settled) tr.group th { padding-top: 1.1rem; }
.differences thead th:last-child, .effects thead th:last-child { text-align: left; }
.effects tbody tr:not(.group) th { min-width: 11rem; max-width: 21rem; }
.effects tbody th small { display: block; }
.scroll + .panels { margin-top: 1.8rem; }
.key { display: flex; align-items: baseline; }
.key > span { min-width: 0; }
.key small { margin-left: .5rem; font-weight: 400; }
.swatch { flex: none; width: 1.25rem; height: .5rem; margin-right: .55rem; vertical-align: .12em; }
.swatch line { stroke-width: 3; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.6rem; margin: 0 0 1.2rem; padding: 0;
  list-style: none; font-size: .9375rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr));
  gap: 2rem 2rem; margin-bottom: 1.6rem; }
figure { margin: 0; display: flex; flex-direction: column; min-width: 0; break-inside: avoid; }
figure h3 { font-size: .9375rem; margin: 0 0 .4rem; }
figcaption { margin-top: .5rem; max-width: 26rem; }
figure > svg { display: block; width: 100%; max-width: 26rem; height: auto; overflow: visible; }
.samples h3 { font-weight: 400; }
.samples { display: grid; gap: 1.5rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(11rem, 46%), 1fr)); }
.samples img { display: block; width: 100%; height: auto; }
pre { background: var(--tint); padding: .9rem 1.1rem; overflow-wrap: anywhere; white-space:
pre-wrap;
  font: .875rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 0; }
.listing { columns: 20rem 3; column-gap: 2.5rem; margin: 0; font-size: .8125rem; line-height: 1.45;
  font-variant-numeric: tabular-nums; }
.listing div { display: flex; gap: 1rem; justify-content: space-between; padding: .22rem 0;
  border-bottom: 1px solid var(--rule); break-inside: avoid; }
.listing dt { color: var(--muted); overflow-wrap: anywhere; }
.listing dd { margin: 0; text-align: right; overflow-wrap: anywhere; max-width: 65%; }
@media (max-width: 40rem) {
  main { padding: 1.5rem 1.1rem 3rem; }
  h1 { font-size: 1.7rem; }
  .question { font-size: 1.1rem; }
  .headline { font-size: 1.2rem; }
  .verdict { padding: 1.1rem 1.1rem; margin-left: -1.1rem; margin-right: -1.1rem; }
  section { margin-top: 2.4rem; }
  table { font-size: .8125rem; }
  td, th { padding-left: .9rem; }
  tbody tr:not(.group) th, .effects tbody tr:not(.group) th { min-width: 8rem; max-width: 10rem; }
  tbody th { overflow-wrap: anywhere; }
  th .key small { display: block; margin-left: 0; }
  .group th { max-width: 20rem; }
  .settled td { white-space: normal; }
  :is(.differences, .effects) :is(td, thead th):is(:nth-child(4), :nth-child(6)) { display: none; }
}
@media print {
  @page { margin: 16mm 14mm; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  section { margin-top: 1.6rem; }
  :root { --paper: #fff; }
  h2, h3, .note, .legend { break-after: avoid; break-inside: avoid; }
  tr, tbody, .results, .headline, .verdict li, .samples, pre { break-inside: avoid; }
  .scroll + p { break-after: avoid; }
  .samples { grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: 1rem; }
  .panels { grid-template-columns: repeat(2, 1fr); }
  .verdict { box-decoration-break: clone; -webkit-box-decoration-break: clone; }
  .verdict, pre, .remark { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .scroll { overflow: visible; background: none; }
  .sideways { display: none; }
  tbody tr:not(.group) th, .effects tbody tr:not(.group) th { min-width: 7rem; max-width: 11rem;
    overflow-wrap: anywhere; }
  .group th { overflow-wrap: anywhere; }
  :is(.differences, .effects) td:last-child { white-space: normal; min-width: 5rem; }
  table { font-size: 8.5pt; }
  small { font-size: .9em; }
  .samples h3 { font-size: 8pt; }
  td, th { padding-left: .8rem; }
}
"""
