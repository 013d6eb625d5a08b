// What one cell has to say: the choice, the reasons, every other candidate, and what was found when it ran.

const SOURCES = {
  policy: "a rule of the policy", measured: "a measurement of this very problem", override: "an explicit choice",
  fallback: "the portable fallback: no rule matched", accepted: "it can run here (it was not chosen)",
};

const chip = (look, code, name) => h("span", {class: "chip"}, h("i", {class: `tile ${look}`, "aria-hidden": "true"}, code), name);
const wordChip = (word) => chip(`w-${wordLook(word).look}`, wordLook(word).code, wordName(word));
const code = (text) => h("code", {}, text);
const block = (title, ...children) => h("section", {class: "block"}, h("h3", {}, title), children);
const factList = (pairs) => h("dl", {}, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "" && value.length !== 0)
  .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));

/** The whole explanation. `onCell` opens another cell, `href` gives its link. */
function explanation(cell, {siblings, onCell, href}) {
  const one = CASES[caseOf[cell]], device = DEVICES[deviceOf[cell]], kind = kindOf[cell];
  const facts = HEADER.ops?.find(({name}) => name === one.op);
  const others = related(cell);
  return [
    h("header", {},
      h("p", {class: "eyebrow"}, {[CHOSEN]: "What would be chosen", [LIVE]: "What was measured", [COMPILED]: "What was compiled"}[kind]),
      h("h2", {id: "cell-title", tabindex: -1}, one.op, h("span", {class: "on"}, " on "), device.name),
      facts?.summary ? h("p", {class: "note"}, facts.summary) : null,
      h("p", {class: "note"}, aboutDevice(device)),
      h("p", {class: "tags"}, [one.scheme === "none" ? "not quantized" : one.scheme, one.variant, one.dtype, shapeWord(one.shape)].filter(Boolean).map((word) => h("span", {class: "tag"}, word)))),
    tokens(cell, siblings, onCell, href),
    verdict(cell),
    resultBlock(cell),
    liveBlock(others.live, cell, device, one, onCell, href),
    compiledBlock(others.compiled, cell, onCell, href),
    outrankedBlock(cell),
    rejectedBlock(cell),
    h("p", {class: "note link"}, h("a", {href: href(cell)}, "Link to this cell"), " · ", code(keyOf(cell))),
  ];
}

/** The same question at other token counts. */
function tokens(cell, siblings, onCell, href) {
  if (siblings.length < 2) return h("p", {class: "tokens-one"}, "Tokens M: ", h("b", {}, mWord(cell)));
  return h("nav", {class: "tokens", "aria-label": "Token count M"},
    h("span", {class: "label"}, "M"),
    siblings.map((other) => {
      const [letters, look] = kindOf[other] === CHOSEN ? TILES.backend(other) : TILES.result(other);
      return h("a", {href: href(other), "aria-current": other === cell ? "true" : null, "aria-label": `M ${mWord(other)}: ${answer(other)}`,
        onclick: (event) => { if (!event.ctrlKey && !event.metaKey) { event.preventDefault(); onCell(other); } }},
      h("i", {class: `tile ${look}`, "aria-hidden": "true"}, letters), h("span", {}, mWord(other)));
    }));
}

function verdict(cell) {
  const kernel = said(cell, "kernel"), evidence = said(cell, "evidence"), scheme = CASES[caseOf[cell]].scheme, first = outranked(cell)[0];
  const {look, code: letters, name} = backendOf(cell);
  if (kernel === null) {
    return h("section", {class: "verdict nothing"}, h("h3", {}, chip("none", "×", "No kernel can run here")), h("p", {}, said(cell, "why")));
  }
  const rule = said(cell, "rule"), link = said(cell, "link"), runs = said(cell, "runs_as"), source = said(cell, "source");
  const config = [said(cell, "config_source"), said(cell, "config_grade")].filter(Boolean).join(", fits: ");
  return h("section", {class: "verdict"},
    h("h3", {}, h("code", {class: "kernel"}, kernel)),
    h("p", {class: "chips"}, chip(look, letters, name), evidence ? wordChip(evidence) : null),
    evidence ? h("p", {class: "note"}, `${evidence}: ${wordLook(evidence).means}.`) : null,
    h("p", {class: "why"}, said(cell, "why")),
    factList([
      ["decided by", SOURCES[source] ?? source],
      ["rule", rule ? code(rule) : null],
      ["evidence for it", outside(link)],
      ["runs as", runs && runs !== scheme ? h("span", {}, code(runs), ", which has other numerics") : null],
      ["launch config", config],
      ["runner-up", first ? h("span", {}, code(first.kernel), ` (${first.backend})`) : kindOf[cell] === CHOSEN ? "none: nothing else can run here" : null],
      ["demanded", CASES[caseOf[cell]].demands?.join(", ")],
      ["conditions", conditions(cell).length ? h("ul", {}, conditions(cell).map((text) => h("li", {}, text))) : null],
    ]));
}

function resultBlock(cell) {
  const result = resultAt(cell);
  if (!result) return null;
  const {time_us: time, status} = result, word = wordLook(status);
  return h("section", {class: `block result ${RED.has(status) ? "bad" : ""}`},
    h("h3", {}, "Result ", wordChip(status)),
    h("p", {class: "note"}, word.means ? `${status}: ${word.means}.` : null),
    result.explanation ? h("p", {class: "why"}, result.explanation) : null,
    factList([
      ["time", time ? `${number(time.median)} µs (95%: ${number(time.low)} to ${number(time.high)}${time.samples ? `, ${count(time.samples, "sample")}` : ""})` : null],
      ["of the roofline", typeof result.roofline_percent === "number" ? `${number(result.roofline_percent)}% (at least ${number(result.floor_us)} µs, bound by ${result.bound})` : null],
      ["correct", result.correct === undefined || result.correct === null ? null : `${yes(result.correct)}${result.checked ? `, in ${count(result.checked, "call")}` : ""}`],
      ["error", typeof result.error === "number" ? `${number(result.error)} of what is allowed` : null],
      ["CUDA graph", result.capture === undefined ? null : yes(result.capture)],
      ["same bits again", result.deterministic === undefined ? null : yes(result.deterministic)],
      ["first call", typeof result.first_call_ms === "number" ? `${number(result.first_call_ms)} ms` : null],
      ["peak memory", result.peak_bytes === undefined ? null : bytes(result.peak_bytes)],
      ["compiled for", result.arch ? code(result.arch) : null],
      ["registers", result.registers], ["spills", result.spills === undefined ? null : bytes(result.spills)],
      ["shared memory", result.shared_bytes === undefined ? null : bytes(result.shared_bytes)],
      ["compilations", result.jobs ? `${result.jobs}${result.failed ? `, ${result.failed} failed` : ""}` : null],
      ["notes", result.notes?.length ? h("ul", {}, result.notes.map((text) => h("li", {}, text))) : null],
    ]));
}

let byQuestion = null;
/** Live cells of the same work and device, and compiled ones of the same work and capability. */
function related(cell) {
  if (!byQuestion) {
    byQuestion = new Map();
    for (let other = 0; other < COUNT; other++) {
      if (kindOf[other] === CHOSEN) continue;
      const key = question(other, kindOf[other]);
      if (byQuestion.has(key)) byQuestion.get(key).push(other); else byQuestion.set(key, [other]);
    }
  }
  const of = (kind) => {
    const all = byQuestion.get(question(cell, kind)) ?? [], own = all.filter((other) => caseOf[other] === caseOf[cell]);
    return own.length ? own : all;
  };
  return {live: of(LIVE), compiled: of(COMPILED)};
}
function question(cell, kind) {
  const device = DEVICES[deviceOf[cell]];
  return [kind, WORK[caseOf[cell]], kind === LIVE ? device.name : architecture(device)].join("\n");
}

const opener = (cell, text, {onCell, href}) => h("a", {href: href(cell), onclick: (event) => {
  if (!event.ctrlKey && !event.metaKey) { event.preventDefault(); onCell(cell); }
}}, text);

function liveBlock(cells, cell, device, one, onCell, href) {
  if (!cells.length) return null;
  const chosen = chosenKernel(cell);
  const series = seriesOf(cells, chosen);
  const kernels = [...new Set(cells.map((other) => said(other, "kernel")))].sort((a, b) => (b === chosen) - (a === chosen) || a.localeCompare(b));
  const ms = [...new Set(cells.map((other) => mOf[other]))].sort((a, b) => a - b);
  const at = new Map(cells.map((other) => [`${said(other, "kernel")}\n${mOf[other]}`, other]));
  const rows = kernels.map((kernel) => [
    h("span", {title: kernel}, code(brief(kernel, one.op)), kernel === chosen ? " (chosen)" : ""),
    ...ms.map((m) => {
      const other = at.get(`${kernel}\n${m}`), result = other === undefined ? null : resultAt(other);
      if (!result) return "–";
      const percent = typeof result.roofline_percent === "number" ? h("small", {}, `${Math.round(result.roofline_percent)}%`) : null;
      return opener(other, result.status === "ok" && result.time_us ? h("span", {}, number(result.time_us.median), " ", percent) : result.status, {onCell, href});
    }),
  ]);
  return block(`Measured on ${device.name}`, latencyPlot(series), rooflinePlot(series, device, one.dtype),
    table("Median time of a call in µs and its share of the roofline, by kernel and M", ["kernel", ...ms.map((m) => `M ${m}`)], rows, ms.map((_, i) => i + 1)));
}

/** The kernel that is chosen for the question of this cell. */
function chosenKernel(cell) {
  if (kindOf[cell] === CHOSEN) return said(cell, "kernel");
  for (let other = 0; other < COUNT; other++) {
    if (caseOf[other] === caseOf[cell] && deviceOf[other] === deviceOf[cell] && mOf[other] === mOf[cell] && (kindOf[other] === CHOSEN || wasPicked(other))) return said(other, "kernel");
  }
  return null;
}

function compiledBlock(cells, cell, onCell, href) {
  if (!cells.length || kindOf[cell] === COMPILED) return null;
  const rows = cells.map((other) => {
    const result = resultAt(other) ?? {};
    return [opener(other, code(brief(said(other, "kernel"), CASES[caseOf[other]].op)), {onCell, href}), wordChip(result.status ?? "unknown"), result.arch ?? "–", result.registers ?? "–",
      bytes(result.spills), bytes(result.shared_bytes)];
  });
  return block(`Compiled for ${architecture(DEVICES[deviceOf[cell]])}`,
    table("What the compilers made of each kernel", ["kernel", "result", "for", "registers", "spills", "shared"], rows, [3, 4, 5]));
}

function outrankedBlock(cell) {
  const others = outranked(cell);
  if (!others.length) return null;
  return block(`Could run, outranked: ${others.length}`, h("ol", {class: "candidates"}, others.map(({backend, kernel, by}, i) => h("li", {},
    h("p", {}, chip(BACKENDS.get(backend).look, BACKENDS.get(backend).code, backend), " ", code(kernel), i ? "" : h("span", {class: "tag"}, "runner-up")),
    h("p", {class: "note"}, "outranked by ", code(by))))));
}

function rejectedBlock(cell) {
  const kernels = new Map();
  for (const reason of rejected(cell)) {
    if (!kernels.has(reason.kernel)) kernels.set(reason.kernel, []);
    kernels.get(reason.kernel).push(reason);
  }
  if (!kernels.size) return null;
  return block(`Rejected: ${kernels.size}`, h("ul", {class: "candidates"}, [...kernels].map(([kernel, reasons]) => h("li", {},
    h("p", {}, chip(BACKENDS.get(reasons[0].backend).look, BACKENDS.get(reasons[0].backend).code, reasons[0].backend), " ", code(kernel)),
    reasons.map(({code: word, reason, remedy, link}) => h("div", {class: "reason"},
      h("p", {}, h("span", {class: "tag"}, word), " ", reason),
      h("p", {class: "remedy"}, h("b", {}, "Remedy: "), remedy),
      link ? h("p", {class: "note"}, outside(link)) : null))))));
}
