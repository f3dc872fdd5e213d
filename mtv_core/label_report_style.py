"""How pages of labels look: as those of an ingest, with boxes over pictures."""

from __future__ import annotations

from mtv_core import ingest_pages

STYLE = (
    ingest_pages.STYLE
    + """
:root { --green:#0a8f6a; --grey:#9aa3af }
a { color:var(--blue) } nav { display:flex; flex-wrap:wrap; gap:6px 18px; margin-top:14px; font-size:14px }
.experts { display:grid; grid-template-columns:repeat(auto-fit,minmax(320px,1fr)); gap:18px }
.expert { background:var(--card); border:1px solid var(--rule); border-radius:8px; padding:14px 16px; min-width:0 }
.expert dl { display:grid; grid-template-columns:max-content 1fr; gap:3px 14px; margin:10px 0 0; font-size:14px }
.expert dt { color:var(--faint) } .expert dd { margin:0; overflow-wrap:anywhere }
.expert ul { margin:6px 0 0; padding-left:18px; font-size:13px }
.stack { display:flex; height:14px; margin:10px 0 4px; border-radius:3px; overflow:hidden; background:var(--rule) }
.stack .labelled { background:var(--blue) } .stack .refused { background:var(--orange) } .stack .stale { background:var(--green) }
.stack .waiting { background:var(--grey) }
.key { display:flex; flex-wrap:wrap; gap:4px 16px; color:var(--faint); font-size:13px }
.key i { display:inline-block; width:10px; height:10px; border-radius:2px; margin-right:5px }
.check { display:grid; grid-template-columns:minmax(0,1fr) auto; gap:6px 24px; padding:14px 0; border-bottom:1px solid var(--rule) }
.check .share { font-size:20px; font-weight:600; text-align:right; font-variant-numeric:tabular-nums }
.check .share small { display:block; font-weight:400 } .check ul { margin:6px 0 0; padding-left:18px; font-size:13px }
.thumbs { display:flex; flex-wrap:wrap; gap:8px; margin-top:8px; grid-column:1 / -1 } .thumb { width:132px }
.cards { display:grid; grid-template-columns:repeat(auto-fill,minmax(300px,1fr)); gap:26px 24px } .cards p { margin:2px 0 0 }
.cards .thumb { width:calc(50% - 4px) } .cards .thumb.pair { width:100% } .thumb.pair { width:272px }
.square { aspect-ratio:1; display:flex; align-items:center; justify-content:center; background:var(--card); border-radius:4px }
.grid.four { grid-template-columns:repeat(auto-fill,minmax(230px,1fr)) }
.grid.two { grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr)) }
.grid.four figcaption { min-height:64px } .grid.four svg text { font-size:13px } .grid.two svg { max-width:340px }
.figures { display:grid; grid-template-columns:repeat(auto-fill,minmax(440px,1fr)); gap:30px 26px; align-items:start;
  margin-top:24px }
.figures.one { grid-template-columns:repeat(auto-fill,minmax(260px,1fr)) }
@media (max-width:520px) { .figures, .figures.one { grid-template-columns:1fr } }
.pair { display:grid; gap:6px; align-items:start } .pair.n2 { grid-template-columns:1fr 1fr }
.pair.n3 { grid-template-columns:1fr 1fr 1fr } .pair > div { min-width:0 }
.picture { position:relative; width:100%; overflow:hidden; border-radius:4px; background:var(--card) }
.picture img { width:100%; height:100%; display:block; object-fit:fill }
.picture svg { position:absolute; inset:0; width:100%; height:100%; overflow:hidden }
.picture svg > rect { fill:transparent; stroke-width:2.5; vector-effect:non-scaling-stroke }
.picture svg > rect:hover { fill:rgba(255,255,255,.25) } .picture .badge text { font-size:12px; font-weight:600; text-anchor:middle }
.picture .badge { pointer-events:none }
.missing { display:flex; align-items:center; justify-content:center; color:var(--faint); font-size:13px; border:1px dashed var(--rule) }
.boxes { list-style:none; margin:7px 0 0; padding:0; display:flex; flex-wrap:wrap; gap:3px 12px; font-size:13.5px }
.boxes i { font-style:normal; font-size:11px; font-weight:600; border-radius:2px; padding:0 4px; margin-right:3px }
.boxes b { font-weight:500; color:var(--faint); font-variant-numeric:tabular-nums }
.boxes span { overflow-wrap:anywhere }
.row .caption { margin:7px 0 2px; overflow-wrap:anywhere; display:-webkit-box; -webkit-line-clamp:4; -webkit-box-orient:vertical;
  overflow:hidden }
 .row .why { margin:0 0 6px; font-weight:600 }
.row code { font-size:12px } .row h4 { margin:6px 0 4px; font-size:12px; font-weight:600; color:var(--faint) }
.phrases th { max-width:none; width:auto } .phrases td { text-align:right; padding-left:14px; white-space:nowrap }
.phrases thead th { white-space:nowrap; padding-left:14px; color:var(--faint); font-size:12px; text-align:right; font-weight:400 }
.phrases thead th:first-child { text-align:left; padding-left:0 }
.phrases th, .phrases td { padding-top:2px; padding-bottom:2px } .phrases tbody th { overflow-wrap:anywhere }
"""
)
