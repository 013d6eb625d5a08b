// The page: its state, the filters, the link that restores both.

const KINDS = [CHOSEN, LIVE, COMPILED].filter((kind) => kindOf.includes(kind));
const KIND_NAMES = {[CHOSEN]: "What runs", [LIVE]: "Measured", [COMPILED]: "Compiled"};
const SHOWS = {
  [CHOSEN]: [["", "every cell"], ["changes", "where M changes the choice"], ["none", "where no kernel runs"], ["conditional", "with conditions"], ["failed", "where the choice failed"]],
  [LIVE]: [["", "every cell"], ["failed", "what failed"], ["slow", "below 50% of the roofline"], ["nograph", "no CUDA graph"], ["varies", "not the same bits again"]],
  [COMPILED]: [["", "every cell"], ["failed", "what failed"], ["spills", "with spills"]],
};
const SINGLE = ["op", "scheme", "dtype", "arch", "m", "show", "by", "q"];
const MANY = ["backend", "word"];

const blank = (kind = KINDS[0]) => ({
  kind, op: "", scheme: "", dtype: "", arch: "", m: "", show: "", q: "", by: MODES[kind]?.[0][0] ?? "backend",
  backend: new Set(), word: new Set(), cell: -1,
});
let state = blank();
let searched = {q: "", found: null};
let lastM = null;

// -- filters

const SHOW = {
  none: (cell) => said(cell, "kernel") === null,
  conditional: (cell) => conditions(cell).length > 0,
  failed: (cell) => RED.has(resultAt(cell)?.status) || liveTrouble(cell),
  slow: (cell) => resultAt(cell)?.roofline_percent < 50,
  nograph: (cell) => resultAt(cell)?.capture === false,
  varies: (cell) => resultAt(cell)?.deterministic === false,
  spills: (cell) => resultAt(cell)?.spills > 0,
  changes: (cell) => changing().has(`${caseOf[cell]}|${deviceOf[cell]}`),
};

let changed = null;
/** Questions whose answer depends on M. */
function changing() {
  if (changed) return changed;
  changed = new Set();
  const first = new Map();
  for (let cell = 0; cell < COUNT; cell++) {
    if (kindOf[cell] !== CHOSEN) continue;
    const key = `${caseOf[cell]}|${deviceOf[cell]}`, kernel = said(cell, "kernel");
    if (!first.has(key)) first.set(key, kernel); else if (first.get(key) !== kernel) changed.add(key);
  }
  return changed;
}

/** Cells to show; and how many each chip would show, given all other filters. */
function filtered(state) {
  const pass = new Uint8Array(COUNT), backends = new Map(), words = new Map();
  if (state.q !== searched.q) searched = {q: state.q, found: state.q.trim() ? matches(state.q) : null};
  const caseGood = Uint8Array.from(CASES, (one) => (!state.op || one.op === state.op) && (!state.scheme || one.scheme === state.scheme) && (!state.dtype || (one.dtype ?? "") === state.dtype) ? 1 : 0);
  const deviceGood = Uint8Array.from(DEVICES, (device) => (!state.arch || architecture(device) === state.arch ? 1 : 0));
  const m = state.m === "" ? null : Number(state.m), show = SHOW[state.show];
  const backendGood = BACKEND_OF.map(({name}) => !state.backend.size || state.backend.has(name)), plain = new Int32Array(OUTCOMES.length);
  const wordIn = (word) => !state.word.size || state.word.has(word), evidenceGood = EVIDENCE_OF.map(wordIn);
  const add = (counts, name, n) => counts.set(name, (counts.get(name) ?? 0) + n);
  let shown = 0, all = 0;
  for (let cell = 0; cell < COUNT; cell++) {
    if (kindOf[cell] !== state.kind) continue;
    all++;
    if (!caseGood[caseOf[cell]] || !deviceGood[deviceOf[cell]] || (m !== null && mOf[cell] !== m)) continue;
    if (searched.found && !searched.found[cell]) continue;
    if (show && !show(cell)) continue;
    const outcome = outcomeOf[cell], ran = resultOf[cell] >= 0;
    const wordGood = ran ? wordIn(wordOf(cell)) : evidenceGood[outcome];
    if (backendGood[outcome] && wordGood) { pass[cell] = 1; shown++; }
    if (!ran) { plain[outcome]++; continue; }
    if (wordGood) add(backends, backendOf(cell).name, 1);
    if (backendGood[outcome]) add(words, wordOf(cell), 1);
  }
  plain.forEach((n, outcome) => {
    if (n && evidenceGood[outcome]) add(backends, BACKEND_OF[outcome].name, n);
    if (n && backendGood[outcome]) add(words, EVIDENCE_OF[outcome], n);
  });
  return {pass, shown, all, backends, words};
}

// -- the link: filters and the open cell, as the part after #

function toHash() {
  const found = new URLSearchParams(), plain = blank(state.kind);
  if (state.kind !== KINDS[0]) found.set("view", DATA.kinds[state.kind]);
  for (const name of SINGLE) if (state[name] !== plain[name]) found.set(name, state[name]);
  for (const name of MANY) if (state[name].size) found.set(name, [...state[name]].join(","));
  if (state.cell >= 0) found.set("cell", keyOf(state.cell));
  return hashText(found);
}
const hashText = (found) => `#${String(found).replaceAll("%2F", "/").replaceAll("%2C", ",").replaceAll("%3D", "=")}`;
const cellHref = (cell) => hashText(new URLSearchParams({...(kindOf[cell] === KINDS[0] ? {} : {view: DATA.kinds[kindOf[cell]]}), cell: keyOf(cell)}));

function fromHash() {
  const given = new URLSearchParams(location.hash.slice(1));
  const kind = DATA.kinds.indexOf(given.get("view") ?? "");
  const cell = given.has("cell") ? findCell(given.get("cell")) : -1;
  const next = blank(cell >= 0 ? kindOf[cell] : KINDS.includes(kind) ? kind : KINDS[0]);
  for (const name of SINGLE) if (given.has(name)) next[name] = given.get(name);
  for (const name of MANY) if (given.get(name)) next[name] = new Set(given.get(name).split(","));
  if (!MODES[next.kind].some(([mode]) => mode === next.by)) next.by = MODES[next.kind][0][0];
  if (!SHOWS[next.kind].some(([show]) => show === next.show)) next.show = "";
  for (const name of ["op", "scheme", "dtype", "arch", "m"]) if (!choices(next.kind, name).includes(next[name])) next[name] = "";
  next.backend = new Set([...next.backend].filter((name) => BACKENDS.has(name) || name === NO_BACKEND.name));
  next.word = new Set([...next.word].filter((word) => word in WORDS));
  next.cell = cell;
  return next;
}

const known = new Map();
/** The values that the cells of a kind have for a filter. */
function choices(kind, name) {
  if (!known.has(kind)) {
    const cases = new Uint8Array(CASES.length), devices = new Uint8Array(DEVICES.length), ms = new Set();
    let last = -1;
    for (let cell = 0; cell < COUNT; cell++) {
      if (kindOf[cell] !== kind) continue;
      cases[caseOf[cell]] = devices[deviceOf[cell]] = 1;
      if (mOf[cell] !== last) ms.add(last = mOf[cell]);
    }
    const of = (field) => [...new Set(CASES.filter((_, i) => cases[i]).map((one) => one[field] ?? ""))].sort();
    known.set(kind, {
      op: of("op"), scheme: of("scheme"), dtype: of("dtype"), m: [...ms].sort((a, b) => a - b).map(String),
      arch: [...new Set(DEVICES.filter((_, i) => devices[i]).map(architecture))].sort((a, b) => (Number(a) || 1000) - (Number(b) || 1000)),
    });
  }
  return known.get(kind)[name];
}

let settled = "";
function remember(push) {
  const hash = toHash();
  if (hash === settled) return;
  settled = hash;
  const url = hash === "#" ? location.pathname + location.search : hash;
  try { history[push ? "pushState" : "replaceState"](null, "", url); } catch { location.replace(hash); }
}

// -- controls

function options(select, name, all) {
  const values = choices(state.kind, name).filter((value) => value !== "");
  select.replaceChildren(h("option", {value: ""}, all), ...values.map((value) => h("option", {value}, name === "dtype" ? dtypeWord(value) : value)));
  select.closest("label").hidden = values.length < 2;
}

function controls() {
  options(byId("op"), "op", "all");
  options(byId("scheme"), "scheme", "all");
  options(byId("dtype"), "dtype", "all");
  options(byId("arch"), "arch", "all");
  byId("show").replaceChildren(...SHOWS[state.kind].map(([value, name]) => h("option", {value}, name)));
  const ms = choices(state.kind, "m");
  radios("m", [["", "all"], ...ms.map((m) => [m, m])]);
  byId("m").closest("fieldset").hidden = ms.length < 2;
  radios("by", MODES[state.kind]);
  if (KINDS.length > 1) radios("view", KINDS.map((kind) => [DATA.kinds[kind], KIND_NAMES[kind]]));
  byId("view").closest("fieldset").hidden = KINDS.length < 2;
  byId("word-title").textContent = state.kind === CHOSEN ? "Evidence" : "Result";
}

function radios(name, pairs) {
  byId(name).replaceChildren(...pairs.map(([value, text]) => h("label", {}, h("input", {type: "radio", name, value}), h("span", {}, text))));
}

function chips(name, entries) {
  const root = byId(name), focused = root.contains(document.activeElement) ? document.activeElement.dataset.value : null;
  root.replaceChildren(...entries.map(({value, look, code: letters, n, text, title}) =>
    h("button", {type: "button", class: n || state[name].has(value) ? "filter" : "filter zero", "data-value": value, "aria-pressed": String(state[name].has(value)), title},
      h("i", {class: `tile ${look}`, "aria-hidden": "true"}, letters), h("span", {}, text), h("small", {}, n.toLocaleString("en")))));
  if (focused) [...root.children].find((button) => button.dataset.value === focused)?.focus();
}

const order = {};
function chipOrder({kind}, found) {
  if (!order[kind]) {
    const {backends, words} = found.shown === found.all ? found : filtered(blank(kind));
    const place = Object.keys(WORDS);
    order[kind] = {
      backends: [...backends.keys()].sort((a, b) => (a === NO_BACKEND.name) - (b === NO_BACKEND.name) || backends.get(b) - backends.get(a)),
      words: [...words.keys()].sort((a, b) => place.indexOf(a) - place.indexOf(b)),
    };
  }
  return order[kind];
}

function sync() {
  for (const name of ["op", "scheme", "dtype", "arch", "show"]) byId(name).value = state[name];
  if (byId("q").value !== state.q) byId("q").value = state.q;
  const chosen = {m: state.m, by: state.by, view: DATA.kinds[state.kind]};
  for (const [name, value] of Object.entries(chosen)) for (const input of byId(name).querySelectorAll("input")) input.checked = input.value === value;
  const plain = blank(state.kind), asked = [...SINGLE.filter((name) => name !== "by" && state[name] !== plain[name]).map((name) => `${name}: ${state[name]}`),
    ...MANY.filter((name) => state[name].size).map((name) => `${name}: ${[...state[name]].join(" or ")}`)];
  byId("asked").textContent = asked.length ? `Shown are cells with ${asked.join("; ")}.` : "";
  byId("reset").disabled = !asked.length;
}

function say(text) { byId("status").textContent = text; }

// -- the page

const grid = new Grid(byId("grid"), {
  onOpen: (slot, byKey) => { if (slot.length) open(pick(slot), {push: true, focus: byKey}); },
  onFocus: (slot) => { if (state.cell >= 0 && slot.length) open(pick(slot), {push: false, focus: false}); },
});

/** Of a tile's cells the one at the token count looked at last. */
const pick = (slot) => slot.find((cell) => mOf[cell] === lastM) ?? slot[0];

let drawnKind = null;
function render() {
  if (drawnKind !== state.kind) {
    drawnKind = state.kind;
    grid.build(state.kind);
    controls();
    byId("about").textContent = LAYOUT[state.kind].about;
  }
  const found = filtered(state);
  grid.show(found.pass, state.by);
  const {backends, words} = chipOrder(state, found);
  const backendLook = (name) => BACKENDS.get(name) ?? NO_BACKEND;
  chips("backend", backends.map((name) => ({value: name, look: backendLook(name).look, code: backendLook(name).code, n: found.backends.get(name) ?? 0, text: name})));
  chips("word", words.map((word) => ({value: word, look: `w-${wordLook(word).look}`, code: wordLook(word).code, n: found.words.get(word) ?? 0, text: wordName(word), title: wordLook(word).means})));
  sync();
  byId("nothing").hidden = found.shown > 0;
  say(found.shown === found.all ? count(found.all, "cell") : `${found.shown.toLocaleString("en")} of ${count(found.all, "cell")}`);
}

function change(values) {
  state = {...state, ...values};
  render();
  if (state.cell >= 0) grid.mark(state.cell);
  remember(false);
}

function open(cell, {push = false, focus = false} = {}) {
  if (kindOf[cell] !== state.kind) { state = {...blank(kindOf[cell]), q: "", cell}; render(); }
  const was = state.cell;
  state.cell = cell;
  lastM = mOf[cell];
  const at = grid.mark(cell);
  const slot = at ? (kindOf[cell] === LIVE ? grid.rows[at[0]].slots.flat().filter((other) => deviceOf[other] === deviceOf[cell]) : grid.rows[at[0]].slots[at[1]]) : [cell];
  const panel = byId("cell"), scrolled = panel.scrollTop;
  byId("cell-body").replaceChildren(...explanation(cell, {siblings: slot, onCell: (other) => again(other), href: cellHref}).flat().filter(Boolean));
  panel.hidden = false;
  document.body.classList.add("opened");
  if (at && grid.rows[at[0]].seen) {
    grid.moved(at, false);
    if (was < 0) grid.reveal(grid.tile(at), seen(grid.tile(at)) ? "nearest" : "center");
  }
  panel.scrollTop = was >= 0 && caseOf[was] === caseOf[cell] && deviceOf[was] === deviceOf[cell] ? scrolled : 0;
  if (focus) byId("cell-title").focus({preventScroll: true});
  remember(push && was < 0);
}

const seen = (tile) => { const at = tile.getBoundingClientRect(); return at.bottom > 0 && at.top < innerHeight && at.right > 0 && at.left < byId("grid").getBoundingClientRect().right; };

/** Another cell from within the explanation: the focus stays on what was pressed. */
function again(cell) {
  const place = document.activeElement?.getAttribute?.("href");
  open(cell, {push: true});
  const link = [...byId("cell-body").querySelectorAll("a")].find((a) => a.getAttribute("href") === place);
  (link ?? byId("cell-title")).focus({preventScroll: true});
}

function shut() {
  state.cell = -1;
  byId("cell").hidden = true;
  byId("cell-body").replaceChildren();
  document.body.classList.remove("opened");
  grid.mark(-1);
}

function close() {
  if (state.cell < 0) return;
  shut();
  remember(false);
  grid.tile(grid.at)?.focus({preventScroll: true});
}

function restore() {
  settled = location.hash || "#";
  state = fromHash();
  const cell = state.cell;
  state.cell = -1;
  render();
  if (new URLSearchParams(location.hash.slice(1)).has("cell") && cell < 0) say("The linked cell is not in this matrix.");
  if (cell >= 0) open(cell); else shut();
}

// -- light and dark

const THEMES = ["auto", "light", "dark"];
function theme(next) {
  document.documentElement.dataset.theme = next;
  byId("theme").textContent = {auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark"}[next];
  byId("theme").setAttribute("aria-label", `Colours: ${next}. Press for ${THEMES[(THEMES.indexOf(next) + 1) % 3]}`);
}
function storedTheme() { try { return localStorage.getItem("kernelmux-theme"); } catch { return null; } }
function nextTheme() {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % 3];
  try { localStorage.setItem("kernelmux-theme", next); } catch { /* a page from a file may have no storage */ }
  theme(next);
}

// -- a tip for the mouse; the same words are the tile's label

function tip(event) {
  const tile = event.target.closest?.(".tile"), box = byId("tip");
  const slot = tile?.at ? grid.slot(tile.at) : [];
  if (!slot.length) { box.hidden = true; return; }
  const one = CASES[caseOf[slot[0]]];
  box.replaceChildren(h("b", {}, `${one.op} on ${DEVICES[deviceOf[slot[0]]].name}`), h("span", {class: "note"}, caseWords(one)),
    ...stretches(slot).slice(0, 8).map((range) => h("span", {class: "line"}, h("i", {class: `tile ${TILES[state.by](range.from)[1]}`}, TILES[state.by](range.from)[0]),
      h("span", {}, `${span(range)}: `, h("code", {}, said(range.from, "kernel") ?? "no kernel"), ` ${answer(range.from)}`))));
  box.hidden = false;
  const at = tile.getBoundingClientRect(), width = box.offsetWidth, height = box.offsetHeight;
  const below = at.bottom + 8 + height < innerHeight;
  box.style.left = `${Math.max(8, Math.min(innerWidth - width - 8, at.left - 40))}px`;
  box.style.top = `${below ? at.bottom + 8 : Math.max(8, at.top - height - 8)}px`;
}

// -- wiring

let waiting = 0;
byId("q").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => change({q: byId("q").value}), 60); });
for (const name of ["op", "scheme", "dtype", "arch", "show"]) byId(name).addEventListener("change", (event) => change({[name]: event.target.value}));
for (const name of ["m", "by"]) byId(name).addEventListener("change", (event) => change({[name]: event.target.value}));
byId("view").addEventListener("change", (event) => { close(); change(blank(DATA.kinds.indexOf(event.target.value))); });
for (const name of MANY) {
  byId(name).addEventListener("click", (event) => {
    const value = event.target.closest("button")?.dataset.value;
    if (value === undefined) return;
    const next = new Set(state[name]);
    if (!next.delete(value)) next.add(value);
    change({[name]: next});
  });
}
byId("reset").addEventListener("click", () => { const {kind, by, cell} = state; change({...blank(kind), by, cell}); byId("q").focus(); });
byId("close").addEventListener("click", close);
byId("theme").addEventListener("click", nextTheme);
byId("filters").addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", () => { if ((location.hash || "#") !== settled) restore(); });
addEventListener("popstate", () => { if ((location.hash || "#") !== settled) restore(); });
addEventListener("beforeprint", () => grid.finish(Infinity));
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.cell >= 0) { event.preventDefault(); close(); }
  if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName)) { event.preventDefault(); byId("q").focus(); }
});
byId("grid").addEventListener("mouseover", tip);
byId("grid").addEventListener("mouseleave", () => { byId("tip").hidden = true; });
byId("grid").addEventListener("scroll", () => { byId("tip").hidden = true; }, {passive: true});

const stored = storedTheme();
theme(THEMES.includes(stored) ? stored : "auto");
if (KINDS.length) restore(); else { byId("nothing").hidden = false; say("0 cells"); }

// When the first picture stands, the page can be used; what a test and the benchmark read.
requestAnimationFrame(() => requestAnimationFrame(() => { document.documentElement.dataset.readyMs = performance.now().toFixed(0); }));
