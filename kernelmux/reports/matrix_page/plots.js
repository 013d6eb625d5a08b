// Plots of what was measured. The classes are those of chart.css; series differ by mark and dash as well as by colour.

const BOX = {width: 560, height: 320, left: 58, right: 14, top: 14, bottom: 46};
const MARKS = ["circle", "square", "diamond", "triangle", "cross", "ring"];
const RATES = {bfloat16: "bf16", float16: "fp16", float32: "fp32", float8_e4m3fn: "fp8", int8: "int8"};

const log10 = Math.log10;
const place = (axis, value, from, to) => from + (to - from) * (log10(value) - log10(axis.low)) / (log10(axis.high) - log10(axis.low));
const toX = (axis, value) => place(axis, value, BOX.left, BOX.width - BOX.right);
const toY = (axis, value) => place(axis, value, BOX.height - BOX.bottom, BOX.top);

function powersOfTwo(label, values) {
  const low = Math.min(...values), high = Math.max(...values);
  let ticks = [];
  for (let e = Math.floor(Math.log2(low)); e <= Math.ceil(Math.log2(high)); e++) ticks.push(2 ** e);
  ticks = ticks.filter((tick) => tick >= low / 1.3 && tick <= high * 1.3);
  while (ticks.length > 11) ticks = ticks.filter((_, i) => i % 2 === 0);
  return {label, low: low / 1.35, high: high * 1.35, ticks};
}

function decades(label, values) {
  const low = Math.min(...values), high = Math.max(...values);
  const steps = [];
  for (let e = Math.floor(log10(low)) - 1; e <= Math.ceil(log10(high)); e++) for (const f of [1, 2, 5]) steps.push(f * 10 ** e);
  const first = steps.filter((step) => step <= low * 0.95).at(-1) ?? low / 2;
  const last = steps.find((step) => step >= high * 1.05) ?? high * 2;
  let ticks = steps.filter((step) => step >= first * 0.999 && step <= last * 1.001);
  if (ticks.length > 9) ticks = ticks.filter((tick) => Math.abs(log10(tick) - Math.round(log10(tick))) < 1e-9);
  return {label, low: first, high: last, ticks};
}

function mark(i, x, y, tip) {
  const shape = MARKS[i % MARKS.length], r = 4.3;
  const title = tip ? s("title", {}, tip) : null;
  const at = (dx, dy) => `${(x + dx).toFixed(1)},${(y + dy).toFixed(1)}`;
  if (shape === "square") return s("rect", {class: "mark", x: x - r + 0.5, y: y - r + 0.5, width: 2 * r - 1, height: 2 * r - 1}, title);
  if (shape === "diamond") return s("path", {class: "mark", d: `M${at(0, -r - 1)}L${at(r + 1, 0)}L${at(0, r + 1)}L${at(-r - 1, 0)}z`}, title);
  if (shape === "triangle") return s("path", {class: "mark", d: `M${at(0, -r - 0.5)}L${at(r + 0.5, r)}L${at(-r - 0.5, r)}z`}, title);
  if (shape === "cross") return s("path", {class: "mark cross", d: `M${at(-r, -r)}L${at(r, r)}M${at(-r, r)}L${at(r, -r)}`}, title);
  return s("circle", {class: shape === "ring" ? "mark hollow" : "mark", cx: x, cy: y, r}, title);
}

function axes(x, y) {
  const bottom = BOX.height - BOX.bottom, right = BOX.width - BOX.right;
  const form = (value) => (value >= 1e6 ? `${value / 1e6}M` : value >= 1000 ? value.toLocaleString("en") : String(Number(value.toPrecision(3))));
  return [
    y.ticks.map((tick) => [
      s("line", {class: "grid", x1: BOX.left, x2: right, y1: toY(y, tick), y2: toY(y, tick)}),
      s("text", {class: "tick", x: BOX.left - 7, y: toY(y, tick) + 4, "text-anchor": "end"}, form(tick)),
    ]),
    x.ticks.map((tick) => [
      s("line", {class: "grid", x1: toX(x, tick), x2: toX(x, tick), y1: BOX.top, y2: bottom}),
      s("text", {class: "tick", x: toX(x, tick), y: bottom + 17, "text-anchor": "middle"}, form(tick)),
    ]),
    s("line", {class: "axis", x1: BOX.left, x2: right, y1: bottom, y2: bottom}),
    s("text", {class: "label", x: (BOX.left + right) / 2, y: BOX.height - 8, "text-anchor": "middle"}, x.label),
    s("text", {class: "label", transform: `translate(13 ${(BOX.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle"}, y.label),
  ];
}

function chart(title, description, x, y, inner) {
  return s("svg", {class: "chart", viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": `${title}. ${description}`},
    s("rect", {class: "paper", width: BOX.width, height: BOX.height}), axes(x, y), inner);
}

/** The names of the series as a list beside the plot, each with its mark. */
function legend(series) {
  return h("ul", {class: "series-list"}, series.map((one) => h("li", {},
    s("svg", {class: "chart key", viewBox: "0 0 34 14", "aria-hidden": "true"},
      s("g", {class: `series ${one.look}`}, one.dashed === "floor" ? null : mark(one.index, 17, 7),
        s("line", {class: "line", x1: 1, x2: 33, y1: 7, y2: 7}))),
    h("span", {class: one.chosen ? "chosen-name" : null}, one.name, one.chosen ? " (chosen)" : ""))));
}

/** One series a kernel: {name, chosen, points: [{m, cell, result}]}, the chosen one first. */
function seriesOf(cells, chosen) {
  const found = new Map();
  for (const cell of cells) {
    const result = resultAt(cell);
    if (!result?.time_us) continue;
    const name = said(cell, "kernel");
    if (!found.has(name)) found.set(name, {name, chosen: name === chosen, points: []});
    found.get(name).points.push({m: mOf[cell], cell, result});
  }
  const series = [...found.values()].sort((a, b) => b.chosen - a.chosen || a.name.localeCompare(b.name));
  series.forEach((one, i) => {
    one.points.sort((a, b) => a.m - b.m);
    one.index = i;
    one.look = `k${i % 6}`;
  });
  return series;
}

const line = (points) => s("polyline", {class: "line", points: points.map(([a, b]) => `${a.toFixed(1)},${b.toFixed(1)}`).join(" ")});

/** Time of a call over M, with the 95% intervals and the roofline's least time. */
function latencyPlot(series) {
  const shown = series.map((one) => ({...one, points: one.points.filter((p) => p.m > 0)})).filter((one) => one.points.length);
  if (!shown.length) return null;
  const all = shown.flatMap((one) => one.points);
  const floors = [...new Map(all.filter((p) => p.result.floor_us > 0).map((p) => [p.m, p.result.floor_us]))].sort((a, b) => a[0] - b[0]);
  const x = powersOfTwo("tokens M", all.map((p) => p.m));
  const y = decades("µs a call", all.flatMap((p) => [p.result.time_us.low, p.result.time_us.high]).concat(floors.map(([, us]) => us)).filter((us) => us > 0));
  const inner = shown.map((one) => s("g", {class: `series ${one.look}`},
    one.points.length > 1 ? line(one.points.map((p) => [toX(x, p.m), toY(y, p.result.time_us.median)])) : null,
    one.points.map((p) => {
      const {median, low, high} = p.result.time_us, at = toX(x, p.m);
      return [
        high > low ? s("path", {class: "whisker", d: `M${at - 3},${toY(y, low)}h6m-3,0V${toY(y, high)}m-3,0h6`}) : null,
        mark(one.index, at, toY(y, median), `${one.name}, M ${p.m}: ${number(median)} µs (${number(low)} to ${number(high)})`),
      ];
    })));
  const floor = floors.length > 1 ? {name: "least time by the roofline", look: "floor", dashed: "floor"} : null;
  if (floor) inner.unshift(s("g", {class: "series floor"}, line(floors.map(([m, us]) => [toX(x, m), toY(y, us)]))));
  const title = "Latency over M";
  return h("figure", {}, h("h4", {}, title),
    chart(title, `${shown.map((one) => one.name).join(", ")}. The numbers are in the table below.`, x, y, inner),
    legend(floor ? [...shown, floor] : shown),
    h("figcaption", {}, "Median of a call and its 95% interval; both axes are logarithmic."));
}

/** The rates the roofline stands for: those the least times were made with, else the device's data sheet. */
function ceilings(points, device, dtype) {
  let peak = 0, bandwidth = 0;
  for (const {result} of points) {
    if (!(result.floor_us > 0)) continue;
    if (result.bound === "compute" && result.flops) peak = Math.max(peak, result.flops / result.floor_us * 1e-6);
    if (result.bound === "memory" && result.bytes) bandwidth = Math.max(bandwidth, result.bytes / result.floor_us * 1e-3);
  }
  return {peak: peak || device.peak_tflops?.[RATES[dtype]] || 0, bandwidth: bandwidth || device.bandwidth_gbs || 0};
}

/** What was reached against work per byte, under what the GPU could do at best. */
function rooflinePlot(series, device, dtype) {
  const shown = series.map((one) => ({...one, points: one.points.filter((p) => p.result.flops > 0 && p.result.bytes > 0)}))
    .filter((one) => one.points.length);
  const all = shown.flatMap((one) => one.points);
  const {peak, bandwidth} = ceilings(all, device, dtype);
  if (!all.length || !bandwidth) return null;
  const work = (p) => p.result.flops / p.result.bytes, rate = (p) => p.result.flops / p.result.time_us.median * 1e-6;
  const roof = (w) => Math.min(peak || Infinity, bandwidth * w * 1e-3);
  const works = all.map(work), ridge = peak ? peak / bandwidth * 1e3 : null;
  const ends = [Math.min(...works) / 2, Math.max(...works) * 2];
  const x = decades("work per byte, FLOP/B", ridge && ridge < ends[1] * 30 ? [...ends, ridge * 2] : ends);
  const y = decades("TFLOP/s", [...all.map(rate), roof(x.low), roof(x.high)]);
  const bend = ridge && ridge > x.low && ridge < x.high ? [ridge] : [];
  const inner = [
    s("g", {class: "series floor"}, line([x.low, ...bend, x.high].map((w) => [toX(x, w), toY(y, roof(w))]))),
    shown.map((one) => s("g", {class: `series ${one.look}`}, one.points.map((p) =>
      mark(one.index, toX(x, work(p)), toY(y, rate(p)),
        `${one.name}, M ${p.m}: ${number(rate(p))} TFLOP/s, ${number(p.result.roofline_percent)}% of the roofline`)))),
  ];
  const title = "Roofline";
  const roofName = `${number(bandwidth)} GB/s${peak ? `, ${number(peak)} TFLOP/s` : ""}`;
  return h("figure", {}, h("h4", {}, title),
    chart(title, `What ${shown.map((one) => one.name).join(", ")} reached under ${roofName}. The numbers are in the table below.`, x, y, inner),
    legend([...shown, {name: `at best: ${roofName}`, look: "floor", dashed: "floor"}]),
    h("figcaption", {}, "A mark on the line leaves nothing to gain on this GPU; both axes are logarithmic."));
}
