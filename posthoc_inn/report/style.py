"""The report's looks: readable on screen, in the dark, and on paper; nothing is loaded from anywhere."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark;
  --ink:#1f2430; --soft:#5b6472; --line:#e3e6eb; --paper:#fff; --ground:#f6f7f9; --accent:#2f6fb3;
  --good:#1d7a46; --fair:#96650b; --poor:#b3261e; --info:#5b6472; }
@media (prefers-color-scheme: dark) { :root {
  --ink:#e7e9ee; --soft:#a3abb9; --line:#353b47; --paper:#1d212a; --ground:#15181f; --accent:#7fb2e8;
  --good:#63c78d; --fair:#e0b35a; --poor:#f08a80; --info:#a3abb9; } }
* { box-sizing:border-box }
body { margin:0; background:var(--ground); color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif }
main { max-width:60rem; margin:0 auto; padding:2.5rem 1.25rem 4rem }
header { margin-bottom:2rem }
h1 { font-size:1.75rem; line-height:1.2; margin:0 0 .4rem; letter-spacing:-.01em }
h2 { font-size:1.15rem; margin:0 0 .75rem }
p { margin:0 0 .8rem; max-width:46rem }
.lead { font-size:1.06rem; color:var(--soft); margin:0 }
section { background:var(--paper); border:1px solid var(--line); border-radius:10px; padding:1.4rem 1.5rem;
  margin:0 0 1.1rem }
.soft { color:var(--soft) }
code { font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; overflow-wrap:anywhere }
figure { margin:1rem 0 .25rem }
figure img { display:block; max-width:100%; height:auto; background:#fff; border-radius:6px; margin:0 auto }
figure + p { margin-top:1.1rem }
figcaption { color:var(--soft); font-size:.92rem; margin-top:.6rem; max-width:46rem }
.pair { display:grid; grid-template-columns:repeat(auto-fit,minmax(19rem,1fr)); gap:1.25rem; align-items:start }
.pair figure { margin:.5rem 0 0 }
.key { display:grid; grid-template-columns:repeat(auto-fit,minmax(12.5rem,1fr)); gap:.9rem; margin:1.25rem 0 0 }
.key div { background:var(--paper); border:1px solid var(--line); border-left:4px solid var(--info); border-radius:8px;
  padding:.8rem 1rem }
.key b { display:block; font-size:1.35rem; line-height:1.25; font-weight:600 }
.key span { color:var(--soft); font-size:.86rem; display:block; line-height:1.35 }
.key .good { border-left-color:var(--good) } .key .fair { border-left-color:var(--fair) }
.key .poor { border-left-color:var(--poor) }
.warn { border-left:4px solid var(--fair) }
.warn ul { margin:0; padding-left:1.1rem } .warn li { margin:.2rem 0 }
.scroll { overflow-x:auto }
table { border-collapse:collapse; width:100%; font-size:.94rem }
th,td { text-align:left; vertical-align:top; padding:.5rem .75rem .5rem 0; border-bottom:1px solid var(--line) }
tr:last-child>th, tr:last-child>td { border-bottom:0 }
th { font-weight:600 }
td.n { white-space:nowrap; font-variant-numeric:tabular-nums }
td.m { color:var(--soft) }
tbody.g th[scope=rowgroup] { color:var(--soft); font-size:.8rem; text-transform:uppercase; letter-spacing:.06em;
  padding-top:1rem; border-bottom:0 }
.s { white-space:nowrap; font-weight:600 }
.s.good { color:var(--good) } .s.fair { color:var(--fair) } .s.poor { color:var(--poor) } .s.info { color:var(--info) }
.bar { display:flex; height:1.1rem; border-radius:5px; overflow:hidden; margin:.25rem 0 .75rem }
.bar i { display:block; min-width:2px; border-right:1px solid var(--paper) }
.dot { display:inline-block; width:.7rem; height:.7rem; border-radius:3px; margin-right:.45rem }
details summary { cursor:pointer; color:var(--accent) }
footer { color:var(--soft); font-size:.88rem; margin-top:1.5rem }
@media print {
  :root { --ink:#000; --soft:#444; --line:#ccc; --paper:#fff; --ground:#fff }
  body { font-size:10.5pt } main { max-width:none; padding:0 } section { border:0; padding:0 0 .6rem; border-radius:0 }
  figure, tr { break-inside:avoid } h2 { break-after:avoid } }
"""

STAGE_COLORS = ("#2f6fb3", "#d9822b", "#4c9f70", "#8a63b3", "#b8566b", "#7a8290", "#c2a83e", "#3f9aa5")
"""One a stage, in the bar that shows where the seconds went."""
