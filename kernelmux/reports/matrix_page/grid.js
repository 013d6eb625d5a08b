// The heat map: an ARIA grid whose rows the browser lays out only when they come into sight.

const CODE_ROOM = 12; // strips of a tile that changes over M, at most

const HEADS = 300, LINE = 25; // pixels above the first row at least, and of a row
const NOTHING = [];
const byM = (slot) => (slot.every((cell, i) => i === 0 || mOf[slot[i - 1]] <= mOf[cell]) ? slot : slot.sort((a, b) => mOf[a] - mOf[b]));

/** Cases that differ in dtype alone share a row where no place has both: each GPU has its own default. */
const rowOfCase = [CHOSEN, LIVE, COMPILED].map((kind) => {
  if (!kindOf.includes(kind)) return null;
  const bare = new Map(), group = CASES.map((one) => {
    const key = [one.op, one.scheme, one.variant, shapeWord(one.shape)].join("\n");
    if (!bare.has(key)) bare.set(key, bare.size);
    return bare.get(key);
  });
  const first = new Map(), apart = new Set();
  for (let cell = 0; cell < COUNT; cell++) {
    if (kindOf[cell] !== kind) continue;
    const one = caseOf[cell], place = group[one] * DEVICES.length + deviceOf[cell];
    const at = kind === CHOSEN ? place : `${place} ${mOf[cell]} ${said(cell, "kernel")}`;
    const before = first.get(at);
    if (before === undefined) first.set(at, one); else if (before !== one) apart.add(group[one]);
  }
  return CASES.map((_, i) => (apart.has(group[i]) ? bare.size + i : group[i]));
});

/** What a kind of cell has for rows and columns. */
const LAYOUT = {
  [CHOSEN]: {
    row: (cell) => rowOfCase[CHOSEN][caseOf[cell]], column: (cell) => deviceOf[cell], over: true,
    name: "Kernel by op and GPU", about: "What would be chosen: ops by GPU. A tile stands for every M shown.",
  },
  [LIVE]: {
    row: (cell) => `${rowOfCase[LIVE][caseOf[cell]]}|${said(cell, "kernel")}`, column: (cell) => `${deviceOf[cell]}|${mOf[cell]}`, over: false,
    name: "Result by kernel and M", about: "What was measured: kernels by M.",
  },
  [COMPILED]: {
    row: (cell) => `${rowOfCase[COMPILED][caseOf[cell]]}|${said(cell, "kernel")}`, column: (cell) => deviceOf[cell], over: true,
    name: "Compilation by kernel and GPU", about: "What the compilers made of each kernel, a GPU for each capability.",
  },
};

/** What a tile can show, by kind of cell: its letters and its look. */
const TILES = {
  backend: (cell) => {
    const {code, look} = backendOf(cell);
    return [code, look === "none" ? "none" : `${look} p-${said(cell, "evidence")}`];
  },
  evidence: (cell) => { const word = said(cell, "evidence") ?? "none", {code, look} = wordLook(word); return [code, `w-${look}`]; },
  result: (cell) => { const {code, look} = wordLook(wordOf(cell)); return [code, `w-${look}`]; },
  roofline: (cell) => {
    const result = resultAt(cell), percent = result?.roofline_percent;
    if (percent === null || percent === undefined || RED.has(result.status)) return TILES.result(cell);
    return [percent > 0 && percent < 0.5 ? "<1" : String(Math.round(percent)), `q${Math.max(0, Math.min(9, Math.floor(percent / 10)))}`];
  },
  registers: (cell) => {
    const result = resultAt(cell);
    if (result?.status !== "ok" || !result.registers) return TILES.result(cell);
    return [String(result.registers), result.spills ? "w-spills" : "w-ok"];
  },
};
const MODES = {
  [CHOSEN]: [["backend", "Backend"], ["evidence", "Evidence"]],
  [LIVE]: [["roofline", "% of roofline"], ["result", "Result"], ["backend", "Backend"]],
  [COMPILED]: [["registers", "Registers"], ["result", "Result"], ["backend", "Backend"]],
};

class Grid {
  constructor(root, {onOpen, onFocus}) {
    this.root = root;
    this.onOpen = onOpen;
    this.onFocus = onFocus;
    this.at = [0, 0];
    root.addEventListener("keydown", (event) => this.key(event));
    root.addEventListener("click", (event) => this.click(event));
    root.addEventListener("focusin", (event) => { if (event.target.at) this.moved(event.target.at, false); });
  }

  /** Make the rows and columns of a kind; which of them are seen, `show` says. */
  build(kind) {
    this.kind = kind;
    const layout = LAYOUT[kind], rows = new Map(), columns = new Map();
    for (let cell = 0; cell < COUNT; cell++) {
      if (kindOf[cell] !== kind) continue;
      const row = layout.row(cell), col = layout.column(cell);
      let into = rows.get(row), column = columns.get(col);
      if (!into) rows.set(row, into = {cell, found: [], cases: new Set()});
      if (!column) columns.set(col, column = {cell, i: columns.size});
      if (caseOf[cell] !== caseOf[into.cell]) into.cases.add(caseOf[cell]).add(caseOf[into.cell]);
      const slot = into.found[column.i];
      if (slot) slot.push(cell); else into.found[column.i] = [cell];
    }
    this.columns = this.ordered([...columns.values()]);
    this.rows = [...rows.values()];
    for (const row of this.rows) row.slots = this.columns.map(({i}) => byM(row.found[i] ?? NOTHING));
    this.rows.sort((a, b) => caseOf[a.cell] - caseOf[b.cell]); // stable: kernels of a case side by side
    this.at = [0, 0];
    this.draw();
  }

  /** Columns of one capability side by side: those with a number first, the others as they come. */
  ordered(columns) {
    const rank = new Map(), arch = ({cell}) => {
      const name = architecture(DEVICES[deviceOf[cell]]);
      if (!rank.has(name)) rank.set(name, Number(name) || 1000 + rank.size);
      return rank.get(name);
    };
    for (const column of columns) arch(column);
    return columns.sort((a, b) => arch(a) - arch(b) || deviceOf[a.cell] - deviceOf[b.cell] || mOf[a.cell] - mOf[b.cell]);
  }

  draw() {
    const live = this.kind === LIVE;
    this.root.classList.toggle("wide-tiles", this.kind !== CHOSEN);
    this.root.setAttribute("aria-label", LAYOUT[this.kind].name);
    this.root.setAttribute("aria-rowcount", this.rows.length + 2);
    this.root.setAttribute("aria-colcount", this.columns.length + 1);
    this.groups = h("div", {role: "row", class: "row groups", "aria-rowindex": 1});
    this.heads = this.columns.map(({cell}, i) => {
      const device = DEVICES[deviceOf[cell]];
      const name = live ? `M ${mOf[cell]}` : device.name;
      return h("div", {role: "columnheader", class: "col", "aria-colindex": i + 2, title: aboutDevice(device)}, h("span", {}, name));
    });
    const corner = h("div", {role: "columnheader", class: "corner", "aria-colindex": 1}, this.kind === CHOSEN ? "op" : "kernel");
    const names = h("div", {role: "row", class: "row names", "aria-rowindex": 2}, corner, this.heads);
    const body = h("div", {role: "rowgroup"}, this.rows.map((row, r) => {
      row.at = r;
      row.tiles = null;
      row.element = h("div", {role: "row", class: "row line", "aria-rowindex": r + 3}, this.rowHead(row, CASES[caseOf[row.cell]]));
      return row.element;
    }));
    this.blankRow = new DocumentFragment();
    this.blankRow.append(...this.columns.map((_, c) => h("div", {role: "gridcell", class: "tile", tabindex: -1, "aria-colindex": c + 2})));
    this.root.replaceChildren(h("div", {role: "rowgroup", class: "heads"}, this.groups, names), body);
  }

  rowHead(row, one) {
    const kernel = this.kind === CHOSEN ? "" : said(row.cell, "kernel") ?? "no kernel";
    const words = caseWords(one, row.cases.size < 2);
    const full = `${one.op}${words ? `, ${words}` : ""}${kernel ? `, ${kernel}` : ""}`;
    const shape = shapeWord(one.shape);
    const about = HEADER.ops?.find(({name}) => name === one.op)?.summary;
    return h("div", {role: "rowheader", class: "head", "aria-colindex": 1, "aria-label": full, title: [full, about, shape && `shape: ${shape}`].filter(Boolean).join("\n")},
      h("b", {class: "op"}, one.op), h("span", {class: "case"}, brief(kernel, one.op) || words), kernel && words ? h("span", {class: "case more"}, words) : null);
  }

  /** Show the cells of `pass`, tiles as `mode` paints them. */
  show(pass, mode) {
    this.mode = TILES[mode];
    this.version = (this.version ?? 0) + 1;
    const columnSeen = new Uint8Array(this.columns.length);
    let op = null;
    for (const row of this.rows) {
      row.shown = row.slots.map((slot) => (slot.every((cell) => pass[cell]) ? slot : slot.filter((cell) => pass[cell])));
      row.seen = false;
      for (let c = 0; c < row.shown.length; c++) if (row.shown[c].length) { row.seen = true; columnSeen[c] = 1; }
      if (row.element.hidden === row.seen) row.element.hidden = !row.seen;
      if (!row.seen) continue;
      const name = CASES[caseOf[row.cell]].op;
      row.element.classList.toggle("first", name !== op);
      op = name;
    }
    this.columns.forEach((column, c) => {
      column.seen = columnSeen[c] === 1;
      this.heads[c].hidden = !column.seen;
    });
    this.seenRows = this.rows.flatMap((row, r) => (row.seen ? [r] : []));
    this.seenColumns = this.columns.flatMap((column, c) => (column.seen ? [c] : []));
    this.group();
    this.root.style.setProperty("--columns", this.seenColumns.length);
    this.root.style.setProperty("--groups", this.starts.size);
    this.waiting = this.seenRows.map((r) => this.rows[r]);
    this.finish(Math.max(10, Math.ceil((innerHeight - HEADS) / LINE))); // those in sight; the others while nobody waits
    this.settle();
  }

  /** Draw so many of the rows that wait, and see to the others when nobody waits for anything. */
  finish(some) {
    clearTimeout(this.later);
    for (const row of this.waiting.splice(0, some)) this.ready(row);
    if (this.waiting.length) this.later = setTimeout(() => this.finish(25), 12);
  }

  /** A row with its tiles as they are to be now. */
  ready(row) {
    if (row.version === this.version) return;
    row.version = this.version;
    if (!row.tiles) {
      const made = this.blankRow.cloneNode(true);
      row.tiles = [...made.children];
      row.tiles.forEach((tile, c) => { tile.at = [row.at, c]; });
      row.element.append(made);
    }
    for (let c = 0; c < row.tiles.length; c++) this.paint(row, c);
  }

  paint(row, c) {
    const tile = row.tiles[c], slot = row.shown[c], seen = this.columns[c].seen;
    if (tile.hidden === seen) tile.hidden = !seen;
    if (!seen) return;
    const start = this.starts.has(c);
    const signature = `${start} ${slot.length ? `${slot[0]}:${slot.length}:${slot.at(-1)}` : ""}`;
    if (tile.signature === signature && tile.painted === this.mode) return;
    tile.signature = signature;
    tile.painted = this.mode;
    const looks = slot.map(this.mode);
    const mixed = looks.some((other) => other[0] !== looks[0][0] || other[1] !== looks[0][1]);
    const [code, look] = mixed ? most(looks) : looks[0] ?? ["", ""];
    const red = slot.some((cell) => RED.has(resultAt(cell)?.status) || liveTrouble(cell));
    const gone = row.slots[c].length ? "out" : "empty";
    tile.className = `tile ${slot.length ? look : gone}${mixed ? " mixed" : ""}${red ? " red" : ""}${slot.some(wasPicked) ? " pick" : ""}${start ? " start" : ""}`;
    tile.textContent = code;
    if (mixed) tile.style.setProperty("--strip", strip(looks)); else if (tile.hasAttribute("style")) tile.removeAttribute("style");
    tile.setAttribute("aria-label", slot.length ? describe(slot) : gone === "out" ? "filtered out" : "not in this matrix");
  }

  /** The row above the names: a capability, or a device, over the first of its columns. */
  group() {
    const names = this.seenColumns.map((c) => {
      const device = DEVICES[deviceOf[this.columns[c].cell]];
      return this.kind === LIVE ? device.name : architecture(device);
    });
    this.starts = new Set(this.seenColumns.filter((_, i) => names[i] !== names[i - 1]));
    const over = this.seenColumns.map((c, i) => {
      const start = this.starts.has(c), narrow = this.kind === CHOSEN;
      this.heads[c].classList.toggle("start", start);
      if (!start) return h("div", {role: "none", class: "group"});
      let wide = 1;
      while (names[i + wide] === names[i]) wide++;
      return h("div", {role: "columnheader", class: `group start${narrow && wide === 1 && names[i].length > 3 ? " tight" : ""}${narrow && wide === 1 && names[i].length > 4 ? " long" : ""}`, "aria-colindex": c + 2, "aria-colspan": wide, title: names[i]}, h("span", {}, names[i]));
    });
    this.groups.replaceChildren(h("div", {role: "columnheader", class: "corner", "aria-colindex": 1}, this.kind === LIVE ? "device" : "capability"), ...over);
  }

  tile([r, c]) {
    const row = this.rows[r];
    if (row?.seen) this.ready(row);
    return row?.tiles?.[c];
  }
  slot([r, c]) { return this.rows[r]?.shown[c] ?? []; }

  /** Exactly one tile can be reached with Tab: the last one looked at, or the first that is seen. */
  settle() {
    if (!this.seenRows.length) return;
    let [r, c] = this.at;
    if (!this.rows[r]?.seen) r = this.seenRows[0];
    if (!this.columns[c]?.seen) c = this.seenColumns[0];
    this.moved([r, c], false);
  }

  moved(at, focus) {
    const before = this.rows[this.at[0]]?.tiles?.[this.at[1]], tile = this.tile(at);
    if (before) before.tabIndex = -1;
    this.rows[this.at[0]]?.element.classList.remove("here");
    this.heads[this.at[1]]?.classList.remove("here");
    this.at = at;
    if (!tile) return;
    tile.tabIndex = 0;
    this.rows[at[0]].element.classList.add("here");
    this.heads[at[1]].classList.add("here");
    if (focus) {
      tile.focus({preventScroll: true});
      this.reveal(tile);
      this.onFocus(this.slot(at));
    }
  }

  /** Scroll so far that the tile is clear of the heads, which stay where they are. */
  reveal(tile, block = "nearest") {
    this.root.style.setProperty("--heads", `${this.root.firstChild.offsetHeight + 4}px`);
    tile.scrollIntoView({block, inline: block});
  }

  key(event) {
    if (!event.target.at || event.altKey || event.metaKey) return;
    const [r, c] = event.target.at, rows = this.seenRows, columns = this.seenColumns;
    const i = rows.indexOf(r), j = columns.indexOf(c), far = event.ctrlKey;
    const to = {
      ArrowUp: [far ? 0 : i - 1, j], ArrowDown: [far ? rows.length - 1 : i + 1, j],
      ArrowLeft: [i, far ? 0 : j - 1], ArrowRight: [i, far ? columns.length - 1 : j + 1],
      Home: [far ? 0 : i, 0], End: [far ? rows.length - 1 : i, columns.length - 1],
      PageUp: [i - 10, j], PageDown: [i + 10, j],
    }[event.key];
    if (to) {
      event.preventDefault();
      const clamp = (value, length) => Math.max(0, Math.min(length - 1, value));
      this.moved([rows[clamp(to[0], rows.length)], columns[clamp(to[1], columns.length)]], true);
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.onOpen(this.slot([r, c]), true);
    }
  }

  click(event) {
    const tile = event.target.closest?.(".tile");
    if (!tile) return;
    this.moved(tile.at, false);
    tile.focus({preventScroll: true});
    this.onOpen(this.slot(tile.at), false);
  }

  /** Mark the tile whose cell is open. */
  mark(cell) {
    this.marked?.removeAttribute("aria-selected");
    this.marked = null;
    for (const [r, row] of cell < 0 ? [] : this.rows.entries()) {
      if (CASES[caseOf[row.cell]].op !== CASES[caseOf[cell]].op) continue;
      const c = row.slots.findIndex((slot) => slot.includes(cell));
      if (c < 0) continue;
      this.marked = this.tile([r, c]) ?? null;
      this.marked?.setAttribute("aria-selected", "true");
      return [r, c];
    }
    return null;
  }
}

/** The look most cells have; the first of several. */
function most(looks) {
  const seen = new Map();
  let best = ["", ""], times = 0;
  for (const look of looks) {
    const key = look.join("\n"), n = (seen.get(key) ?? 0) + 1;
    seen.set(key, n);
    if (n > times) { best = look; times = n; }
  }
  return best;
}

/** The looks side by side, as a band along the tile's foot. */
function strip(looks) {
  const shown = looks.length > CODE_ROOM ? looks.filter((_, i) => i % Math.ceil(looks.length / CODE_ROOM) === 0) : looks;
  const step = 100 / shown.length;
  const stops = shown.map(([, look], i) => `var(--${look.split(" ")[0]}) ${(i * step).toFixed(1)}% ${((i + 1) * step).toFixed(1)}%`);
  return `linear-gradient(90deg, ${stops.join(", ")})`;
}

const RED_CHOICES = new Set();
for (let cell = 0; cell < COUNT; cell++) {
  if (kindOf[cell] === LIVE && RED.has(resultAt(cell)?.status)) {
    RED_CHOICES.add(`${WORK[caseOf[cell]]}|${deviceOf[cell]}|${mOf[cell]}|${said(cell, "kernel")}`);
  }
}
/** Whether the kernel chosen here failed when it was run here. */
const liveTrouble = (cell) => RED_CHOICES.size > 0 && RED_CHOICES.has(`${WORK[caseOf[cell]]}|${deviceOf[cell]}|${mOf[cell]}|${said(cell, "kernel")}`);

/** Whether a live cell is of the kernel that is chosen there; the others can run, no more. */
const wasPicked = (cell) => kindOf[cell] === LIVE && said(cell, "source") !== null && said(cell, "source") !== "accepted";

/** Neighbouring Ms with one answer as one entry: [{from, to, cell}]. */
function stretches(slot) {
  const found = [];
  for (const cell of slot) {
    const last = found.at(-1);
    if (last && alike(last.to, cell)) last.to = cell; else found.push({from: cell, to: cell});
  }
  return found;
}
function alike(one, other) {
  if (resultAt(one)?.status !== resultAt(other)?.status) return false;
  const a = OUTCOMES[outcomeOf[one]], b = OUTCOMES[outcomeOf[other]];
  return a === b || (a[FIELD.kernel] === b[FIELD.kernel] && a[FIELD.evidence] === b[FIELD.evidence]);
}
const span = ({from, to}) => (from === to ? `M ${mWord(from)}` : `M ${mWord(from)} to ${mWord(to)}`);

function answer(cell) {
  const result = resultAt(cell), backend = backendOf(cell).name;
  if (!result) return `${backend}${said(cell, "evidence") ? `, ${said(cell, "evidence")}` : ""}${liveTrouble(cell) ? ", failed here" : ""}`;
  const percent = typeof result.roofline_percent === "number" ? `, ${Math.round(result.roofline_percent)}% of the roofline` : "";
  return `${backend}, ${result.status}${percent}${wasPicked(cell) ? ", chosen here" : ""}`;
}

const describe = (slot) => stretches(slot).map((one) => `${span(one)}: ${answer(one.from)}`).join("; ");

function aboutDevice(device) {
  return [
    device.torch_name, `capability ${architecture(device)}`, device.sm_count ? count(device.sm_count, "SM") : "",
    device.memory_gb ? `${device.memory_gb} GB` : "", device.bandwidth_gbs ? `${number(device.bandwidth_gbs)} GB/s` : "", device.note ?? "",
  ].filter(Boolean).join(" · ");
}
