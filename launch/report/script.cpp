// The script of the report. It reads the JSON inside the page and draws SVG; strings that come from runs
// reach the page as text nodes only.

#include "launch/report/page.h"

namespace osprey::report {

const char* const page_js = R"js(
(() => {
"use strict";
const runs = JSON.parse(document.getElementById("data").textContent).runs;
const NS = document.getElementById("ns").namespaceURI;
const root = document.getElementById("charts");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const state = {x: "step", xscale: "linear", heat: null};
const redraws = [];
const redraw = () => { for (const draw of redraws) draw(); };

// ---- small helpers ----
function set(e, attrs, parent, text) {
  for (const k in attrs) e.setAttribute(k, attrs[k]);
  if (text !== undefined) e.textContent = text;
  if (parent) parent.appendChild(e);
  return e;
}
const svg = (tag, attrs, parent, text) => set(document.createElementNS(NS, tag), attrs, parent, text);
const node = (tag, attrs, parent, text) => set(document.createElement(tag), attrs, parent, text);
const colour = i => "var(--c" + (i % 8) + ")";
const trim = (v, n) => String(+v.toPrecision(n));
function short(v) {
  const a = Math.abs(v);
  if (a === 0) return "0";
  for (const [unit, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, ""]])
    if (a >= unit && a < 1e16) return name ? trim(v / unit, 3) + name : trim(v / 1e3, 3) + "k";
  if (a < 1e-3 || a >= 1e16) return v.toExponential(1).replace(".0e", "e");
  return trim(v, 4);
}
const exact = v => Math.abs(v) < 1e-3 && v !== 0 ? v.toExponential(4) : Math.abs(v) >= 1e9 ? v.toExponential(5) : trim(v, 7);
const whole = v => v.toLocaleString("en-US");

// ---- scales ----
function niceTicks(lo, hi, n) {
  const raw = (hi - lo) / Math.max(1, n), p = Math.pow(10, Math.floor(Math.log10(raw)));
  const step = [1, 2, 5, 10].map(m => m * p).find(s => s >= raw * 0.999);
  const out = [];
  for (let i = Math.ceil(lo / step - 1e-9); i * step <= hi * (1 + 1e-12) + step * 1e-9 && out.length < 50; ++i) out.push(+(i * step).toPrecision(12));
  return out;
}
function logTicks(lo, hi, n) {
  const all = [];
  for (let e = Math.floor(Math.log10(lo)); e <= Math.ceil(Math.log10(hi)); ++e)
    for (const m of [1, 2, 5]) all.push({v: m * Math.pow(10, e), m});
  let kept = all.filter(t => t.v >= lo * 0.999 && t.v <= hi * 1.001);
  if (kept.length < 2) return niceTicks(lo, hi, n);
  if (kept.length > n + 1) kept = kept.filter(t => t.m === 1);
  const skip = Math.ceil(kept.length / (n + 1));
  return kept.filter((t, i) => i % skip === 0).map(t => +t.v.toPrecision(12));
}
const scales = {
  linear: {f: v => v, back: v => v, ok: () => true, ticks: niceTicks},
  log: {f: Math.log10, back: v => Math.pow(10, v), ok: v => v > 0, ticks: logTicks},
  // linear near zero, logarithmic beyond one: excess kurtosis may be negative
  sym: {f: v => Math.sign(v) * Math.log10(1 + Math.abs(v)), back: v => Math.sign(v) * (Math.pow(10, Math.abs(v)) - 1), ok: () => true,
    ticks: (lo, hi, n) => {
      if (hi - lo < 4) return niceTicks(lo, hi, n);
      const all = [0];
      for (let e = 0; e < 16; ++e) for (const m of [1, 3]) all.push(m * Math.pow(10, e), -m * Math.pow(10, e));
      let kept = all.filter(v => v >= lo && v <= hi).sort((a, b) => a - b);
      if (kept.length > n + 1) kept = kept.filter(v => !/^-?3/.test(String(v)));
      const skip = Math.ceil(kept.length / (n + 1));
      return kept.filter((v, i) => i % skip === 0);
    }},
};

function nearest(xs, x) {
  let lo = 0, hi = xs.length - 1;
  if (hi < 0) return -1;
  while (hi - lo > 1) { const m = (lo + hi) >> 1; if (xs[m] < x) lo = m; else hi = m; }
  return Math.abs(xs[lo] - x) <= Math.abs(xs[hi] - x) ? lo : hi;
}

function placeTip(card, tip, x, y) {
  tip.hidden = false;
  const w = tip.offsetWidth, room = card.clientWidth;
  tip.style.left = Math.max(2, x + 14 + w < room ? x + 14 : x - 14 - w) + "px";
  tip.style.top = Math.max(2, y) + "px";
}
function tipLine(tip, css, text, strong) {
  const line = node("div", {}, tip);
  if (css) node("span", {class: "chip", style: "color:" + css}, line);
  node(strong ? "b" : "span", {}, line, text);
}

// ---- line chart ----
// series: {label, colour, dash, width, opacity, dots, step[], tokens[], y[]}; marks: {step, tokens, colour, text}
function lineChart(parent, title, series, options) {
  series = series.filter(s => s.y.some(v => v !== null));
  if (!series.length) return false;
  const card = node("div", {class: "card"}, parent);
  node("h3", {}, card, title);
  const legend = node("div", {class: "legend"}, card);
  const host = node("div", {}, card), tip = node("div", {class: "tip"}, card);
  tip.hidden = true;
  for (const s of series) {
    const b = node("button", {type: "button", "aria-pressed": "true", title: s.label + " (click to hide or show)"}, legend);
    const k = svg("svg", {class: "key", viewBox: "0 0 24 10"}, b);
    svg("line", {x1: 0, x2: 24, y1: 5, y2: 5, stroke: s.colour, "stroke-width": s.width || 2, "stroke-dasharray": s.dash || "none", opacity: s.opacity || 1}, k);
    if (s.dots) svg("circle", {cx: 12, cy: 5, r: 3, fill: s.colour}, k);
    node("span", {}, b, s.label);
    b.addEventListener("click", () => { s.off = !s.off; b.setAttribute("aria-pressed", String(!s.off)); draw(); });
  }
  const H = 230, M = {l: 50, r: 10, t: 8, b: 32};
  function draw() {
    host.textContent = "";
    const W = Math.max(240, host.clientWidth), iw = W - M.l - M.r, ih = H - M.t - M.b;
    const xs = scales[state.xscale], ys = scales[options.scale || "linear"];
    const shown = series.filter(s => !s.off);
    let x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
    for (const s of shown) {
      const x = s[state.x];
      s.y.forEach((v, i) => {
        if (!xs.ok(x[i])) return;
        x0 = Math.min(x0, x[i]); x1 = Math.max(x1, x[i]);
        if (v === null || !ys.ok(v)) return;
        y0 = Math.min(y0, v); y1 = Math.max(y1, v);
      });
    }
    const box = svg("svg", {viewBox: `0 0 ${W} ${H}`, height: H, role: "img", "aria-label": title}, host);
    if (!(x0 <= x1) || !(y0 <= y1)) { svg("text", {class: "axislabel", x: M.l, y: H / 2}, box, "nothing to show on this axis"); return; }
    if (options.zero && y0 > 0) y0 = 0;
    if (options.scale === "sym") { y0 = Math.min(y0, 0); y1 = Math.max(y1, 1); }
    let fx0 = xs.f(x0), fx1 = xs.f(x1), fy0 = ys.f(y0), fy1 = ys.f(y1);
    if (fx0 === fx1) { fx0 -= 0.5; fx1 += 0.5; }
    const pad = fy1 === fy0 ? Math.max(Math.abs(fy1) * 0.1, 1e-9) : (fy1 - fy0) * 0.05;
    if (!(options.zero && y0 === 0)) fy0 -= pad;
    fy1 += pad;
    const X = v => M.l + (xs.f(v) - fx0) / (fx1 - fx0) * iw, Y = v => M.t + (1 - (ys.f(v) - fy0) / (fy1 - fy0)) * ih;
    const axis = svg("g", {class: "axis"}, box);
    for (const t of ys.ticks(ys.back(fy0), ys.back(fy1), 5)) {
      const y = Y(t);
      if (y < M.t - 1 || y > M.t + ih + 1) continue;
      svg("line", {x1: M.l, x2: M.l + iw, y1: y, y2: y}, axis);
      svg("text", {x: M.l - 6, y: y + 4, "text-anchor": "end"}, axis, short(t));
    }
    for (const t of xs.ticks(xs.back(fx0), xs.back(fx1), Math.floor(iw / 85))) {
      const x = X(t);
      if (x < M.l - 1 || x > M.l + iw + 1 || !Number.isInteger(t)) continue;
      svg("line", {x1: x, x2: x, y1: M.t, y2: M.t + ih}, axis);
      svg("text", {x: Math.min(x, W - 14), y: M.t + ih + 15, "text-anchor": "middle"}, axis, short(t));
    }
    svg("text", {class: "axislabel", x: M.l + iw, y: H - 2, "text-anchor": "end"}, box, state.x + (state.xscale === "log" ? ", log scale" : ""));
    svg("rect", {class: "frame", x: M.l, y: M.t, width: iw, height: ih}, box);
    for (const m of options.marks || []) {
      if (!xs.ok(m[state.x]) || m[state.x] < x0 || m[state.x] > x1) continue;
      const line = svg("line", {class: "mark", x1: X(m[state.x]), x2: X(m[state.x]), y1: M.t, y2: M.t + ih, stroke: m.colour}, box);
      svg("title", {}, line, m.text);
    }
    for (const s of shown) {
      const x = s[state.x];
      let d = "", pen = false, points = 0;
      s.y.forEach((v, i) => {
        if (!xs.ok(x[i])) return;
        if (v === null) {  // not a finite number: a cross on the upper edge and a gap
          const cx = X(x[i]);
          svg("path", {d: `M${cx - 3} ${M.t + 1}l6 6m0 -6l-6 6`, stroke: s.colour, "stroke-width": 1.5, fill: "none"}, box);
          pen = false;
          return;
        }
        if (!ys.ok(v)) { pen = false; return; }
        d += (pen ? "L" : "M") + X(x[i]).toFixed(1) + " " + Y(v).toFixed(1);
        pen = true;
        ++points;
      });
      svg("path", {class: "series", d, stroke: s.colour, "stroke-width": s.width || 2, "stroke-dasharray": s.dash || "none", opacity: s.opacity || 1}, box);
      if ((s.dots && points <= 60) || points <= 12)  // a line needs two neighbours to be seen
        s.y.forEach((v, i) => { if (v !== null && ys.ok(v) && xs.ok(x[i])) svg("circle", {cx: X(x[i]), cy: Y(v), r: 2.6, fill: s.colour}, box); });
    }
    const cross = svg("line", {class: "cross", y1: M.t, y2: M.t + ih, visibility: "hidden"}, box);
    const dots = svg("g", {}, box);
    const pad2 = svg("rect", {x: M.l, y: M.t, width: iw, height: ih, fill: "transparent"}, box);
    const leave = () => { tip.hidden = true; cross.setAttribute("visibility", "hidden"); dots.textContent = ""; };
    pad2.addEventListener("pointerleave", leave);
    pad2.addEventListener("pointermove", e => {
      const r = box.getBoundingClientRect(), px = (e.clientX - r.left) * W / r.width;
      const at = xs.back(fx0 + (px - M.l) / iw * (fx1 - fx0));
      let best = null;
      const hits = shown.map(s => {
        const i = nearest(s[state.x], at), x = s[state.x][i];
        if (i >= 0 && xs.ok(x) && (best === null || Math.abs(X(x) - px) < Math.abs(X(best) - px))) best = x;
        return {s, i, x};
      });
      if (best === null) return leave();
      tip.textContent = "";
      dots.textContent = "";
      tipLine(tip, null, state.x + " " + whole(best), true);
      for (const h of hits) {
        if (h.i < 0 || !xs.ok(h.x)) continue;
        const v = h.s.y[h.i];
        tipLine(tip, h.s.colour, h.s.label + ": " + (v === null ? "not finite" : exact(v)) + (h.x === best ? "" : " at " + whole(h.x)));
        if (v !== null && ys.ok(v)) svg("circle", {cx: X(h.x), cy: Y(v), r: 3.5, fill: h.s.colour}, dots);
      }
      set(cross, {x1: X(best), x2: X(best), visibility: "visible"});
      placeTip(card, tip, host.offsetLeft + X(best), host.offsetTop + 10);
    });
  }
  redraws.push(draw);
  return true;
}

// ---- heat map ----
const ramp = ["#f4f1e6", "#f7d9a4", "#f2ad6d", "#e27a50", "#bd4851", "#8a2a5d", "#532060", "#23143d"];
const rgb = h => [1, 3, 5].map(i => parseInt(h.slice(i, i + 2), 16));
function heatColour(t) {
  t = Math.min(1, Math.max(0, t));
  if (dark.matches) t = 1 - t;
  const at = t * (ramp.length - 1), i = Math.min(ramp.length - 2, Math.floor(at)), a = rgb(ramp[i]), b = rgb(ramp[i + 1]);
  return "rgb(" + a.map((v, k) => Math.round(v + (b[k] - v) * (at - i))).join(",") + ")";
}
function heatMap(parent, title, grid, metric, domain) {
  const card = node("div", {class: "card"}, parent);
  node("h3", {}, card, title);
  const host = node("div", {}, card), tip = node("div", {class: "tip"}, card);
  tip.hidden = true;
  const f = scales[metric.scale].f, rows = grid.rows.length, columns = grid.step.length;
  const M = {l: 44, r: 8, t: 8, b: 32}, rowHeight = Math.max(5, Math.min(22, 220 / rows)), H = M.t + M.b + rows * rowHeight;
  const W = Math.max(240, host.clientWidth), iw = W - M.l - M.r, cw = iw / columns;
  const box = svg("svg", {viewBox: `0 0 ${W} ${H}`, height: H, role: "img", "aria-label": title + ", " + metric.label}, host);
  // the first layer stands at the bottom, as in drawings of networks
  const top = r => M.t + (rows - 1 - r) * rowHeight;
  const cells = svg("g", {"shape-rendering": "crispEdges"}, box);
  grid.rows.forEach((row, r) => {
    row.forEach((v, c) => {
      if (v === null) return;
      svg("rect", {x: (M.l + c * cw).toFixed(2), y: top(r).toFixed(2), width: (cw + 0.4).toFixed(2), height: (rowHeight + 0.3).toFixed(2),
        fill: heatColour((f(v) - domain[0]) / (domain[1] - domain[0]))}, cells);
    });
  });
  const axis = svg("g", {class: "axis"}, box), every = Math.ceil(rows * 14 / (rows * rowHeight));
  grid.layers.forEach((layer, r) => {
    if (r % every === 0) svg("text", {x: M.l - 6, y: top(r) + rowHeight / 2 + 4, "text-anchor": "end"}, axis, layer < 0 ? "final" : String(layer));
  });
  const labels = Math.max(1, Math.min(columns, Math.floor(iw / 80)));
  let last = -Infinity;
  for (let k = 0; k < labels; ++k) {
    const c = labels === 1 ? 0 : Math.round(k * (columns - 1) / (labels - 1)), x = M.l + (c + 0.5) * cw;
    if (x - last < 44) continue;
    last = x;
    svg("text", {x: Math.min(x, W - 16), y: H - M.b + 15, "text-anchor": "middle"}, axis, short(grid[state.x][c]));
  }
  svg("text", {class: "axislabel", x: M.l + iw, y: H - 2, "text-anchor": "end"}, box, state.x);
  if (rows > 1) svg("text", {class: "axislabel", x: M.l, y: H - 2}, box, "layer, upwards");
  svg("rect", {class: "frame", x: M.l, y: M.t, width: iw, height: rows * rowHeight}, box);
  const pad = svg("rect", {x: M.l, y: M.t, width: iw, height: rows * rowHeight, fill: "transparent"}, box);
  pad.addEventListener("pointerleave", () => { tip.hidden = true; });
  pad.addEventListener("pointermove", e => {
    const b = box.getBoundingClientRect(), px = (e.clientX - b.left) * W / b.width, py = (e.clientY - b.top) * H / b.height;
    const c = Math.min(columns - 1, Math.max(0, Math.floor((px - M.l) / cw)));
    const r = Math.min(rows - 1, Math.max(0, rows - 1 - Math.floor((py - M.t) / rowHeight)));
    const v = grid.rows[r][c];
    tip.textContent = "";
    tipLine(tip, null, (grid.layers[r] < 0 ? "after the last layer" : "layer " + grid.layers[r]) + ", step " + whole(grid.step[c]), true);
    tipLine(tip, null, metric.label + ": " + (v === null ? "none" : exact(v)));
    placeTip(card, tip, px, host.offsetTop + py + 12);
  });
}

// ---- the page ----
function choice(parent, label, options, value, change) {
  const box = node("label", {}, parent, label + " ");
  const select = node("select", {}, box);
  options.forEach(([v, text]) => { const o = node("option", {value: v}, select, text); if (v === value) o.selected = true; });
  select.addEventListener("change", () => change(select.value));
}
function section(title, text) {
  const s = node("section", {}, root);
  node("h2", {}, s, title);
  if (text) node("p", {class: "quiet"}, s, text);
  return s;
}
const marks = runs.flatMap((run, i) => {
  const loss = run.train.loss;
  const tokensAt = step => { const k = loss ? nearest(loss.step, step) : -1; return k < 0 ? 0 : loss.tokens[k]; };
  return run.skipped.map(([step, reason]) => ({step, tokens: tokensAt(step), colour: colour(i), text: run.name + ": update skipped at step " + step + " (" + reason + ")"}))
    .concat(run.resumed.map(step => ({step, tokens: tokensAt(step), colour: "var(--quiet)", text: run.name + ": resumed from step " + step})));
});
const ofTrain = (key, more) => runs.flatMap((run, i) => run.train[key] ? [Object.assign({label: run.name, colour: colour(i)}, run.train[key], more)] : []);

const training = section("Training", "");
const controls = node("div", {class: "controls"}, training);
choice(controls, "Horizontal axis", [["step", "steps"], ["tokens", "tokens"]], state.x, v => { state.x = v; redraw(); });
choice(controls, "Scale", [["linear", "linear"], ["log", "logarithmic"]], state.xscale, v => { state.xscale = v; redraw(); });
const lines = node("div", {class: "grid"}, training);
const validation = runs.flatMap((run, i) => [Object.assign({label: run.name + ", validation", colour: colour(i), width: 2.2, dots: true}, run.validation)]);
const trainLoss = runs.flatMap((run, i) => run.train.loss ? [Object.assign({label: run.name + ", training", colour: colour(i), width: 1.2, opacity: run.validation.y.length ? 0.55 : 1}, run.train.loss)] : []);
let any = [
  lineChart(lines, "Loss, nats per token", trainLoss.concat(validation), {marks}),
  lineChart(lines, "Validation loss, nats per token", validation, {}),
  lineChart(lines, "Gradient norm before clipping", ofTrain("grad_norm", {width: 1.3}), {scale: "log", marks}),
  lineChart(lines, "Learning rate", ofTrain("learning_rate", {}), {zero: true}),
  lineChart(lines, "Tokens per second, all ranks", ofTrain("tokens_per_second", {width: 1.3}), {zero: true}),
  lineChart(lines, "Percent of the measured bf16 GEMM rate", ofTrain("gemm_percent", {width: 1.3}), {zero: true}),
].some(Boolean);
if (!any) node("p", {class: "quiet"}, training, "There are no training entries to draw.");

const get = (run, protocol, tensor, metric) => ((run.outliers[protocol] || {})[tensor] || {})[metric];
function overLayers(grid, how) {
  const y = grid.step.map((_, c) => {
    const v = grid.rows.map(r => r[c]).filter(x => x !== null);
    if (!v.length) return null;
    return how === "max" ? Math.max(...v) : v.reduce((a, b) => a + b, 0) / v.length;
  });
  return {step: grid.step, tokens: grid.tokens, y};
}
const tensors = [["block_input", "block input"], ["attention_output", "attention output"], ["down_input", "MLP down-projection input"], ["final_hidden", "final hidden"]];
const measured = runs.some(run => Object.keys(run.outliers).length);
if (measured) {
  const outliers = section("Outliers over training",
    "Excess kurtosis over the channels of each token, averaged over tokens and layers (a Gaussian has 0); the largest magnitude over all layers. " +
    "\"In context\" is an ordinary batch, with central moments. \"OSP protocol\" runs sequences of length one and uses the raw fourth moment, " +
    "clamped at 0 for every token; the two are not comparable with each other.");
  const grid = node("div", {class: "grid"}, outliers);
  for (const [tensor, label] of tensors) {
    const curves = (protocol, metric, how, words, more) => runs.flatMap((run, i) => {
      const g = get(run, protocol, tensor, metric);
      return g ? [Object.assign({label: run.name + words, colour: colour(i), dots: true}, overLayers(g, how), more)] : [];
    });
    const over = tensor === "final_hidden" ? "" : ", mean of layers", most = tensor === "final_hidden" ? "" : ", all layers";
    lineChart(grid, "Excess kurtosis, " + label + over, curves("context", "kurtosis", "mean", ", in context", {})
      .concat(curves("osp", "osp_kurtosis", "mean", ", OSP protocol", {dash: "5 4", width: 1.6, dots: false})), {scale: "sym"});
    lineChart(grid, "Largest |x|, " + label + most, curves("context", "max_abs", "max", ", in context", {})
      .concat(curves("osp", "max_abs", "max", ", OSP protocol", {dash: "5 4", width: 1.6, dots: false})), {scale: "log"});
  }
  lineChart(grid, "Attention on the first token, mean of layers", runs.flatMap((run, i) => {
    const g = get(run, "context", "attention", "first_token_share");
    return g ? [Object.assign({label: run.name, colour: colour(i), dots: true}, overLayers(g, "mean"))] : [];
  }), {zero: true});

  const metrics = [
    {id: "context/kurtosis", label: "excess kurtosis, in context", scale: "sym"},
    {id: "osp/osp_kurtosis", label: "excess kurtosis, OSP protocol", scale: "sym"},
    {id: "context/pooled_kurtosis", label: "excess kurtosis of all elements together, in context", scale: "sym"},
    {id: "context/max_abs", label: "largest |x|, in context", scale: "log"},
    {id: "osp/max_abs", label: "largest |x|, OSP protocol", scale: "log"},
    {id: "context/max_to_mean", label: "largest |x| over mean |x|, in context", scale: "log"},
    {id: "context/max_to_median", label: "largest |x| over median |x| per token, in context", scale: "log"},
    {id: "context/first_token_share", label: "attention on the first token", scale: "linear"},
  ].filter(m => runs.some(run => Object.values(run.outliers[m.id.split("/")[0]] || {}).some(t => t[m.id.split("/")[1]])));
  if (metrics.length) {
    state.heat = metrics[0].id;
    const layers = section("Layer by time", "");
    const pick = node("div", {class: "controls"}, layers);
    choice(pick, "Figure", metrics.map(m => [m.id, m.label]), state.heat, v => { state.heat = v; drawHeat(); });
    const host = node("div", {}, layers);
    const drawHeat = () => {
      host.textContent = "";
      const metric = metrics.find(m => m.id === state.heat), [protocol, key] = metric.id.split("/"), f = scales[metric.scale].f;
      const rows = tensors.concat([["attention", "attention"]]).map(([tensor, label]) => {
        const grids = runs.map(run => get(run, protocol, tensor, key));
        return {label, grids};
      }).filter(row => row.grids.some(Boolean));
      let lo = Infinity, hi = -Infinity;
      for (const row of rows) for (const g of row.grids) if (g) for (const r of g.rows) for (const v of r)
        if (v !== null && scales[metric.scale].ok(v)) { lo = Math.min(lo, v); hi = Math.max(hi, v); }
      if (!(lo <= hi)) return;
      if (metric.scale === "sym") { lo = Math.min(lo, 0); hi = Math.max(hi, 1); }
      if (lo === hi) hi = lo === 0 ? 1 : lo + Math.abs(lo) * 0.5;
      const domain = [f(lo), f(hi)];
      const bar = node("div", {class: "barbox"}, host);
      const stops = [];
      for (let k = 0; k <= 16; ++k) stops.push(heatColour(k / 16));
      node("div", {class: "bar", style: "background:linear-gradient(to right," + stops.join(",") + ")"}, bar);
      const ticks = node("div", {class: "barticks"}, bar);
      for (const t of scales[metric.scale].ticks(lo, hi, 6)) {
        const at = (f(t) - domain[0]) / (domain[1] - domain[0]) * 100;
        if (at >= -0.5 && at <= 100.5) node("span", {style: "left:" + at.toFixed(1) + "%"}, ticks, short(t));
      }
      node("div", {}, bar, metric.label + (metric.scale === "linear" ? "" : ", log colour") + ", one scale for all maps");
      for (const row of rows) {
        const grid = node("div", {class: "heat"}, host);
        grid.style.setProperty("--columns", String(Math.min(4, runs.length)));
        row.grids.forEach((g, i) => {
          const title = row.label + ", " + runs[i].name;
          if (g) return heatMap(grid, title, g, metric, domain);
          const card = node("div", {class: "card"}, grid);
          node("h3", {}, card, title);
          node("p", {class: "quiet"}, card, "not measured");
        });
      }
    };
    redraws.push(drawHeat);
  }
} else {
  section("Outliers over training", "No run has measured outliers (telemetry.outliers).");
}

const quantized = document.getElementById("quantization-charts");
if (quantized) {
  const grid = node("div", {class: "grid"}, quantized);
  for (const role of ["weights", "activations", "gradients"])
    lineChart(grid, "Relative error of " + role + ", mean of layers", runs.flatMap((run, i) => {
      const q = run.quantization[role];
      if (!q) return [];
      const mean = Object.assign({label: run.name, colour: colour(i), dots: true}, q.mean);
      return q.layers < 2 ? [mean] : [mean, Object.assign({label: run.name + ", worst: layer " + q.worst_layer, colour: colour(i), dash: "5 4", width: 1.6}, q.worst)];
    }), {});
}

redraw();  // only now do all cards have their width
let width = root.clientWidth, pending = false;
new ResizeObserver(() => {
  if (pending || root.clientWidth === width) return;
  pending = true;
  requestAnimationFrame(() => { pending = false; width = root.clientWidth; redraw(); });
}).observe(root);
dark.addEventListener("change", redraw);
})();
)js";

}  // namespace osprey::report
