// The style sheet of the report. Colours are chosen to differ in hue and lightness for all common kinds
// of colour vision, once for a light and once for a dark background.

#include "launch/report/page.h"

namespace osprey::report {

const char* const page_css = R"css(
:root{--bg:#fbfbf9;--card:#fff;--ink:#1d2126;--quiet:#5a626c;--line:#d9dcde;--grid:#e9ebec;--accent:#0b62a4;
--warn:#fdf3dc;--warnline:#c98a00;
--c0:#0b62a4;--c1:#c8511b;--c2:#00806a;--c3:#a3458f;--c4:#7a6a00;--c5:#51565c;--c6:#4a3fb5;--c7:#b3123f}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1c2024;--ink:#e6e8ea;--quiet:#a2abb4;--line:#363c42;--grid:#2a2f34;
--accent:#6cb6ff;--warn:#2c2512;--warnline:#d9a227;
--c0:#6cb6ff;--c1:#ff9b5e;--c2:#45d0ae;--c3:#e79ad8;--c4:#d8c44a;--c5:#b5b9be;--c6:#a9a1ff;--c7:#ff7d9c}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
header,main{max-width:1360px;margin:0 auto;padding:0 24px}
header{padding-top:20px}
h1{font-size:22px;margin:0 0 6px}
h2{font-size:18px;margin:34px 0 8px;padding-bottom:4px;border-bottom:1px solid var(--line)}
h3{font-size:14px;margin:0;font-weight:600}
p{margin:6px 0 12px;max-width:90ch}
.quiet{color:var(--quiet)}
.runs{list-style:none;margin:0;padding:0;display:flex;flex-wrap:wrap;gap:2px 24px}
.runs li,.notes li{overflow-wrap:anywhere}
.chip{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:6px;vertical-align:-1px;background:currentColor}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}.c5{color:var(--c5)}.c6{color:var(--c6)}.c7{color:var(--c7)}
.notes{background:var(--warn);border-left:4px solid var(--warnline);padding:8px 16px;margin:16px 0}
.notes h2{margin:0;border:0;font-size:15px}.notes ul{margin:4px 0;padding-left:18px}
.scroll{overflow-x:auto;margin:8px 0 16px;max-width:100%}
.pair{display:flex;flex-wrap:wrap;gap:0 32px;align-items:flex-start}
.pair>div{min-width:0;max-width:100%}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;background:var(--card);border:1px solid var(--line);font-size:14px}
th,td{padding:4px 10px;border-bottom:1px solid var(--grid);text-align:right;vertical-align:top}
thead th{border-bottom:1px solid var(--line);max-width:32ch;min-width:11ch;overflow-wrap:anywhere}
tbody th,thead th:first-child{text-align:left;font-weight:400}
td{max-width:44ch;overflow-wrap:anywhere}
td.none{color:var(--quiet)}
summary{cursor:pointer;margin:6px 0}
.controls{display:flex;flex-wrap:wrap;gap:8px 20px;margin:8px 0 14px;align-items:center}
.controls label{display:inline-flex;gap:6px;align-items:center;color:var(--quiet)}
select{font:inherit;color:var(--ink);background:var(--card);border:1px solid var(--line);border-radius:4px;padding:2px 6px;max-width:100%}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:16px}
.heat{display:grid;gap:16px;margin-bottom:16px;grid-template-columns:repeat(var(--columns),minmax(0,1fr))}
@media (max-width:760px){header,main{padding:0 12px}.heat{grid-template-columns:1fr}th,td{padding:4px 8px}}
.card{position:relative;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px 6px;min-width:0}
.card svg{display:block;width:100%;overflow:visible}
.legend{display:flex;flex-wrap:wrap;gap:0 14px;margin:2px 0 4px;font-size:13px}
.legend button{all:unset;cursor:pointer;display:inline-flex;align-items:center;gap:6px;color:var(--ink);max-width:100%}
.legend button:focus-visible{outline:2px solid var(--accent);border-radius:3px}
.legend button[aria-pressed=false]{color:var(--quiet);text-decoration:line-through}
.legend span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap;max-width:34ch}
.legend .key{flex:none;width:24px;height:10px}
.axis text,.axislabel{fill:var(--quiet);font-size:12px}
.axis line{stroke:var(--grid)}
.frame{fill:none;stroke:var(--line)}
.series{fill:none;stroke-linejoin:round}
.cross{stroke:var(--quiet);stroke-dasharray:3 3}
.mark{stroke-dasharray:1 3;stroke-width:1.5}
.tip{position:absolute;pointer-events:none;background:var(--card);border:1px solid var(--line);border-radius:6px;padding:4px 8px;
font-size:12.5px;line-height:1.45;box-shadow:0 2px 10px rgba(0,0,0,.18);z-index:2;max-width:min(330px,92%);font-variant-numeric:tabular-nums}
.tip div{overflow-wrap:anywhere}
.tip b{font-weight:600}
.bar{height:14px;border-radius:3px;border:1px solid var(--line)}
.barbox{width:min(420px,100%);margin:0 0 14px;font-size:12px;color:var(--quiet)}
.barticks{position:relative;height:18px}
.barticks span{position:absolute;transform:translateX(-50%);white-space:nowrap}
)css";

}  // namespace osprey::report
