// The matrix as the page holds it: columns of small integers over tables of what is said once.

const CHOSEN = 0, LIVE = 1, COMPILED = 2; // the kinds, in the order of reports/matrix.py
const RED = new Set(["wrong", "error", "crash", "hang"]);

const DATA = JSON.parse(document.getElementById("matrix").textContent);
const {header: HEADER, texts: TEXTS, reasons: REASONS, cases: CASES, lists: LISTS, outcomes: OUTCOMES, results: RESULTS} = DATA;
const FIELD = Object.fromEntries(DATA.outcome_fields.map((name, i) => [name, i]));
const DEVICES = HEADER.devices;

/** One column of the cells: {"values": [...]} as it is, or {"runs": [value, count, ...]}. */
function column(packed, length) {
  const out = new Int32Array(length);
  if (packed.values) { out.set(packed.values); return out; }
  let at = 0;
  for (let i = 0; i < packed.runs.length; i += 2) {
    out.fill(packed.runs[i], at, at += packed.runs[i + 1]);
  }
  return out;
}

const COUNT = DATA.length;
const [caseOf, deviceOf, mOf, kindOf, outcomeOf, resultOf] =
  ["case", "device", "m", "kind", "outcome", "result"].map((name) => column(DATA.columns[name], COUNT));

const said = (cell, field) => { const i = OUTCOMES[outcomeOf[cell]][FIELD[field]]; return i < 0 ? null : TEXTS[i]; };
const listed = (cell, field) => LISTS[OUTCOMES[outcomeOf[cell]][FIELD[field]]];
const conditions = (cell) => listed(cell, "conditions").map((i) => TEXTS[i]);
const outranked = (cell) => listed(cell, "outranked").map((i) => {
  const [backend, kernel, by] = DATA.others[i].map((t) => TEXTS[t]);
  return {backend, kernel, by};
});
const rejected = (cell) => listed(cell, "rejected").map((i) => {
  const [backend, kernel, code, reason, remedy, link] = REASONS[i].map((t) => (t < 0 ? null : TEXTS[t]));
  return {backend, kernel, code, reason, remedy, link};
});
const resultAt = (cell) => (resultOf[cell] < 0 ? null : RESULTS[resultOf[cell]]);

/** The word a cell is counted under: what is known of its kernel, or how that did. As Matrix.counts. */
function wordOf(cell) {
  const result = resultAt(cell);
  return result ? result.status : EVIDENCE_OF[outcomeOf[cell]];
}

// -- backends: each has a letter code beside its colour

const BACKENDS = new Map(DATA.backends.map(([name, code, look]) => [name, {name, code, look}]));
const NO_BACKEND = {name: "no kernel", code: "×", look: "none"};
const backendOf = (cell) => BACKEND_OF[outcomeOf[cell]];
/** By outcome, so that a filter asks once for what thousands of cells share. */
const BACKEND_OF = OUTCOMES.map((row) => BACKENDS.get(TEXTS[row[FIELD.backend]]) ?? NO_BACKEND);
const EVIDENCE_OF = OUTCOMES.map((row) => TEXTS[row[FIELD.evidence]] ?? "none");

const WORDS = {
  measured: {code: "M", look: "measured", means: "ran on a GPU of this capability and was checked against the reference"},
  compiled: {code: "C", look: "compiled", means: "was compiled for this capability and its instructions inspected; nobody ran it"},
  declared: {code: "D", look: "declared", means: "its library says that it runs here; nobody here tried"},
  none: {code: "×", look: "none", means: "no kernel can run here"},
  ok: {code: "✓", look: "ok", means: "did what it promises"},
  wrong: {code: "W", look: "wrong", means: "ran and gave a wrong result"},
  error: {code: "E", look: "error", means: "stopped with an error"},
  crash: {code: "K", look: "crash", means: "took its process down"},
  hang: {code: "H", look: "hang", means: "did not come back in time"},
  unknown: {code: "?", look: "unknown", means: "the installed compiler does not know this GPU"},
  skipped: {code: "–", look: "skipped", means: "was not run"},
};
const wordLook = (word) => WORDS[word] ?? {code: "?", look: "unknown", means: ""};
const wordName = (word) => (word === "none" ? "no kernel" : word);

// -- words for cases, devices and cells

const SHORT = {bfloat16: "bf16", float16: "fp16", float32: "fp32", float8_e4m3fn: "fp8", uint8: "u8"};
const dtypeWord = (dtype) => (dtype === null || dtype === undefined ? "" : SHORT[dtype] ?? dtype);
const shapeWord = (shape) => Object.entries(shape).map(([axis, size]) => `${axis}=${size}`).join(", ");
const architecture = (device) => device.capability ?? device.arch ?? "?";
const mWord = (cell) => (mOf[cell] === 0 && kindOf[cell] === COMPILED ? "any" : String(mOf[cell]));

/** What a case has a kernel do, whatever it demands of it: what was measured for one such case tells of the others. */
const WORK = CASES.map((one) => JSON.stringify([one.op, one.scheme, one.dtype, one.shape, one.activation]));

/** Cases of an op that differ in shape only are told apart by it. */
const TWINS = new Map();
for (const one of CASES) {
  const key = [one.op, one.scheme, one.variant, one.dtype].join("\n");
  one.family = key;
  TWINS.set(key, (TWINS.get(key) ?? 0) + 1);
}
function caseWords(one, withDtype = true) {
  const words = [one.scheme === "none" ? "" : one.scheme, one.variant, withDtype ? dtypeWord(one.dtype) : ""];
  if (TWINS.get(one.family) > 1) words.push(shapeWord(one.shape));
  return words.filter(Boolean).join(" · ");
}

/** A kernel's name where its op is known: "[triton]" of "kernelmux.rms_norm[triton]". */
const brief = (kernel, op) => kernel.replace(`kernelmux.${op}`, "");

const part = (text) => String(text ?? "").replaceAll("%", "%25").replaceAll("/", "%2F") || "-";

/** The cell's identity over versions, as Cell.key gives it. */
function keyOf(cell) {
  const one = CASES[caseOf[cell]];
  const shape = Object.entries(one.shape).map(([axis, size]) => `${axis}=${size}`).join(",");
  let parts = [one.op, one.scheme, one.variant, one.dtype, shape, DEVICES[deviceOf[cell]].name, mOf[cell]];
  if (kindOf[cell] !== CHOSEN) parts = [DATA.kinds[kindOf[cell]], ...parts, said(cell, "kernel")];
  return parts.map(part).join("/");
}

let keys = null;
function findCell(key) {
  if (!keys) {
    keys = new Map();
    for (let cell = 0; cell < COUNT; cell++) keys.set(keyOf(cell), cell);
  }
  return keys.get(key) ?? -1;
}

// -- text search: each text is looked at once, then whatever holds it

let lower = null;
function lowered() {
  if (lower) return lower;
  const low = (values) => values.map((value) => String(value).toLowerCase());
  lower = {
    texts: low(TEXTS),
    cases: low(CASES.map((one) => [one.op, one.scheme, one.variant, one.dtype, dtypeWord(one.dtype), shapeWord(one.shape)].join(" "))),
    devices: low(DEVICES.map((d) => [d.name, d.torch_name, d.vendor, architecture(d), d.arch].join(" "))),
    results: low(RESULTS.map((r) => [r.status, r.explanation ?? "", r.arch ?? "", ...(r.notes ?? [])].join(" "))),
  };
  return lower;
}

/** Whether each cell holds every word and every "quoted phrase" of the query. */
function matches(query) {
  const found = new Uint8Array(COUNT).fill(1);
  const all = lowered();
  for (const [word, phrase] of query.toLowerCase().matchAll(/"([^"]+)"?|[^\s"]+/g)) {
    const term = phrase ?? word;
    const hits = (values) => Uint8Array.from(values, (value) => (value.includes(term) ? 1 : 0));
    const text = hits(all.texts), cases = hits(all.cases), devices = hits(all.devices), results = hits(all.results);
    const any = (indices) => indices.some((i) => i >= 0 && text[i]);
    const reasons = REASONS.map(any), others = DATA.others.map(any);
    const outcomes = OUTCOMES.map((row) =>
      any(row.slice(0, FIELD.conditions)) || any(LISTS[row[FIELD.conditions]]) ||
      LISTS[row[FIELD.outranked]].some((i) => others[i]) || LISTS[row[FIELD.rejected]].some((i) => reasons[i]));
    for (let cell = 0; cell < COUNT; cell++) {
      found[cell] &= cases[caseOf[cell]] || devices[deviceOf[cell]] || outcomes[outcomeOf[cell]] ||
        (resultOf[cell] >= 0 && results[resultOf[cell]]) ? 1 : 0;
    }
  }
  return found;
}
