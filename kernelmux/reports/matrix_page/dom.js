// Elements are made with their text as text: nothing here reads markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false && child !== "") element.append(child);
  }
  return element;
}

const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const byId = (id) => document.getElementById(id);

/** A link out, for https alone: a link of another kind is shown as text. */
function outside(link, text) {
  if (!link) return null;
  if (!/^https:\/\//.test(link)) return h("code", {}, link);
  return h("a", {href: link, rel: "noreferrer noopener", target: "_blank"}, text ?? shorter(link));
}

function shorter(link) {
  const [, repo, kind, rest] = /^https:\/\/github\.com\/([^/]+\/[^/]+)\/(pull|issues|blob|tree)\/([^?#]+)/.exec(link) ?? [];
  if (kind === "pull" || kind === "issues") return `${repo} #${rest.split("/")[0]}`;
  if (kind) return `${repo}: ${rest.split("/").slice(-2).join("/")}`;
  const bare = link.replace(/^https:\/\/(www\.)?/, "");
  return bare.length > 58 ? `${bare.slice(0, 56)}…` : bare;
}

const count = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many ?? `${one}s`}`;

/** Three to four significant digits, as reports/words.py writes numbers. */
function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : size >= 100 ? value.toFixed(1) : size >= 1 ? value.toFixed(2) : value.toPrecision(3);
}

function bytes(value) {
  if (value === null || value === undefined) return "–";
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 1024]]) {
    if (value >= size) return `${Number((value / size).toPrecision(3))} ${unit}`;
  }
  return `${value} B`;
}
const yes = (value) => (value === null || value === undefined ? "–" : value ? "yes" : "no");

function table(caption, head, rows, right = []) {
  const aligned = (i) => (right.includes(i) ? "num" : null);
  return h("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": caption},
    h("table", {},
      h("caption", {}, caption),
      h("thead", {}, h("tr", {}, head.map((name, i) => h("th", {scope: "col", class: aligned(i)}, name)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, i) =>
        h(i ? "td" : "th", {scope: i ? null : "row", class: aligned(i)}, cell)))))));
}
