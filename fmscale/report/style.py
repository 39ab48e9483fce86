"""The look of a report."""

STYLE = """
:root { color-scheme: light dark; --page: #f7f7f5; --card: #ffffff; --ink: #1c1e21; --soft: #62676f;
  --rule: #e3e3df; --blue: #2563c9; --orange: #c2620c; --grey: #8b9099; --good: #1a7f4b; --bad: #b3261e;
  --violet: #7b4bc4; --teal: #0f7c8a; --pink: #b8357d; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1d2026; --ink: #e8e9ec;
  --soft: #a0a6b0; --rule: #31353d; --blue: #74a7ff; --orange: #f0a35e; --grey: #8b919c; --good: #5fd39a;
  --bad: #ff8a80; --violet: #b795f5; --teal: #58c3d1; --pink: #f08fc0; } }
.s0, .p0 { --series: var(--blue); } .s1, .p1 { --series: var(--orange); } .s2, .p2 { --series: var(--violet); }
.s3, .p3 { --series: var(--teal); } .s4, .p4 { --series: var(--bad); } .s5 { --series: var(--pink); }
.p5 { --series: var(--grey); } .p6 { --series: var(--ink); }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; overflow-wrap: anywhere; }
h1 { font-size: 30px; line-height: 1.2; margin: 4px 0 12px; letter-spacing: -0.01em; text-wrap: balance; }
h2 { font-size: 18px; margin: 0 0 10px; }
section { margin-top: 40px; }
.eyebrow { margin: 0; color: var(--blue); font-weight: 600; }
.lead { font-size: 17px; color: var(--soft); max-width: 68ch; margin: 0; }
.note { color: var(--soft); margin: 0 0 12px; max-width: 80ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px; }
.tile, figure { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; margin: 0; }
.tile { padding: 14px 16px; }
.tile .label { font-size: 13px; font-weight: 600; }
.tile .value { font-size: 26px; font-variant-numeric: tabular-nums; letter-spacing: -0.01em; }
.tile:first-child .value { color: var(--blue); }
.tile .note { font-size: 12px; margin: 0; line-height: 1.35; }
.claims { list-style: none; margin: 0; padding: 0; background: var(--card); border: 1px solid var(--rule);
  border-radius: 10px; }
.claims li { display: grid; grid-template-columns: 24px 1fr auto; gap: 8px; padding: 10px 16px; }
.claims li + li { border-top: 1px solid var(--rule); }
.claims .value { color: var(--soft); font-variant-numeric: tabular-nums; text-align: right; }
.ok .sign { color: var(--good); } .failed .sign { color: var(--bad); } .failed .value { color: var(--bad); }
.charts, .texts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 16px; }
.texts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); }
figure { padding: 14px 16px 8px; min-width: 0; }
figcaption { font-size: 14px; margin-bottom: 6px; } figcaption span { color: var(--soft); }
.chart { display: block; overflow: visible; }
.lines { width: calc(100% - 62px); margin: 0 14px 0 48px; }
.dots { width: calc(100% - 50px); margin: 0 42px 0 8px; }
.row { display: grid; grid-template-columns: 260px minmax(0, 1fr); gap: 10px; align-items: center; }
.row .name { color: var(--ink); font-size: 12px; text-align: right; overflow-wrap: anywhere; line-height: 1.25; }
.grid { stroke: var(--rule); } .tick { fill: var(--soft); font-size: 11px; }
.line { fill: none; stroke: var(--series, var(--blue)); stroke-width: 1.6; stroke-linejoin: round;
  stroke-linecap: round; vector-effect: non-scaling-stroke; }
.dashed { stroke-dasharray: 5 4; stroke-width: 2.2; }
.cell { fill: var(--blue); } .cells { fill: none; stroke: var(--rule); }
.part { fill: var(--series); } .bar { width: 100%; margin-bottom: 12px; }
p.name { margin: 12px 0 4px; font-size: 13px; font-weight: 600; }
.trouble { color: var(--bad); }
.under { fill: none; stroke: var(--orange); stroke-opacity: 0.45; stroke-width: 6; stroke-linejoin: round;
  vector-effect: non-scaling-stroke; }
line.stem { stroke: var(--series, var(--blue)); stroke-width: 2; }
.dot { fill: var(--series, var(--blue)); background: var(--series); }
line.mark { stroke: var(--orange); stroke-width: 1.5; stroke-dasharray: 4 3; }
text.mark { fill: var(--orange); font-size: 12px; font-weight: 600; paint-order: stroke; stroke: var(--card);
  stroke-width: 4px; }
.span { stroke: var(--rule); stroke-width: 2; }
.fmscale { --series: var(--blue); } .primed { --series: var(--good); } .gzip { --series: var(--orange); }
.xz { --series: var(--grey); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; margin-bottom: 8px; }
.legend i { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 6px; }
pre { margin: 0 0 6px; font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.prompt { color: var(--soft); } .made { color: var(--ink); font-weight: 600; }
.facts { border-collapse: collapse; width: 100%; font-size: 13.5px; }
.facts th { text-align: left; font-weight: 600; vertical-align: top; padding: 5px 18px 5px 0; white-space: nowrap; }
.facts .head th { white-space: normal; }
.facts td { padding: 5px 18px 5px 0; overflow-wrap: anywhere; color: var(--soft); }
@media (max-width: 640px) {
  main { padding: 24px 14px 40px; } h1 { font-size: 24px; } .lead { font-size: 16px; }
  .claims li { grid-template-columns: 20px 1fr; padding: 10px 12px; }
  .claims .value { grid-column: 2; text-align: left; overflow-wrap: anywhere; }
  .row { grid-template-columns: minmax(0, 1fr); gap: 0; } .row .name { text-align: left; margin-top: 4px; }
  figure { padding: 12px 12px 8px; }
  .facts th, .facts td { display: block; padding: 0; white-space: normal; } .facts th { padding-top: 8px; }
  .facts .head, .facts td:empty { display: none; } .facts [data-label]::before { content: attr(data-label) ": "; }
}
"""
