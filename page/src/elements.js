// Elements of the page; text is always put in as text, so that names in the data can't be markup.

// Make an element: attributes (functions are listeners, true and false set or leave out), then texts and elements in it.
export function make(tag, attributes = {}, ...content) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "text") element.textContent = value;
    else if (name === "colour") element.style.background = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...content.filter((each) => each !== null && each !== undefined));
  return element;
}

// A table: heads are texts; rows are lists of texts and elements. Columns from `right` on hold numbers.
export function makeTable(heads, rows, right, id) {
  const side = (k) => (k >= right ? "right" : false);
  const head = heads.map((text, k) => make("th", { scope: "col", class: side(k), text }));
  const body = rows.map((row) => make("tr", {}, ...row.map((each, k) => make("td", { class: side(k) }, ...[each].flat()))));
  const table = make("table", { id }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
  return make("div", { class: "table" }, table);
}

export const makeButton = (id, text, click) => make("button", { type: "button", id, text, click });

// A button that reads as a link.
export const makeLink = (text, click) => make("button", { type: "button", class: "link", text, click });

export const find = (id) => document.getElementById(id);

export const count = (n) => n.toLocaleString("en-US");

// A number in at most four digits.
export function short(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e5 || (size > 0 && size < 1e-3)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

export const plural = (n, one) => `${count(n)} ${one}${n === 1 ? "" : "s"}`;

// Let the reader save a text or a Blob as a file.
export function save(content, name, type) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  const link = make("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// A field of CSV: in quotes where needed; a text that a spreadsheet would run as a formula gets a ' before it.
export function csvField(value) {
  let text = String(value ?? "");
  if (typeof value === "string" && /^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(text) && Number.isNaN(Number(text))) {
    text = `'${text}`;
  }
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
