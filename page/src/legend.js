// The legend: what the colours mean, and which values are shown.

import { categoryColour, numberCss, readColour, toCss } from "./colours.js";
import { count, make, makeButton, short } from "./elements.js";

const SHOWN = 60; // categories at a time; the others are found by their names

// Draw the legend of a column into `place`. filter: of this column, or undefined; changed: called with a filter or null.
export function showLegend(place, column, filter, changed) {
  place.replaceChildren();
  if (column.kind === "numbers") showNumbers(place, column, filter, changed);
  else showCategories(place, column, filter?.hidden ?? new Set(), changed);
}

function showCategories(place, column, hidden, changed) {
  const items = column.categories.map((name, code) => ({ name, code, n: column.counts[code] }));
  if (column.n_missing) items.push({ name: "(no value)", code: column.missing, n: column.n_missing });
  const apply = (next) => changed(next.size ? { hidden: next } : null);
  const list = make("ul", { class: "legend" });
  const row = ({ name, code, n }) => {
    const colour = code === column.missing ? readColour("missing") : categoryColour(code);
    const change = () => {
      const next = new Set(hidden);
      if (!next.delete(code)) next.add(code);
      apply(next);
    };
    const label = make(
      "label",
      {},
      make("input", { type: "checkbox", checked: !hidden.has(code), "data-code": code, change }),
      make("span", { class: "swatch", colour: toCss(colour) }),
      make("span", { class: "name", text: name }),
      make("span", { class: "n", text: count(n) }),
    );
    const click = () => apply(new Set(items.map((each) => each.code).filter((each) => each !== code)));
    const attributes = { type: "button", class: "only", "aria-label": `Show only ${name}`, text: "only", click };
    return make("li", {}, label, make("button", attributes));
  };
  const sorted = column.counts.length > SHOWN ? [...items].sort((one, other) => other.n - one.n) : items;
  const fill = (text) => {
    const wanted = sorted.filter(({ name }) => name.toLowerCase().includes(text.toLowerCase()));
    list.replaceChildren(...wanted.slice(0, SHOWN).map(row));
    const left = wanted.length - SHOWN;
    if (left > 0) list.append(make("li", { class: "soft", text: `and ${count(left)} more: find them by name` }));
  };
  const hideAll = () => apply(new Set(items.map(({ code }) => code)));
  const buttons = [makeButton("show-all", "Show all", () => changed(null)), makeButton("hide-all", "Hide all", hideAll)];
  place.append(make("div", { class: "buttons" }, ...buttons));
  if (items.length > SHOWN) {
    const name = `Find a value of ${column.name}`;
    const input = () => fill(field.value);
    const field = make("input", { type: "search", "aria-label": name, placeholder: "Find a value", input });
    place.append(field);
  }
  fill("");
  place.append(list);
}

function showNumbers(place, column, filter, changed) {
  const [low, high] = column.shown;
  const said = `Colours from ${short(low)} to ${short(high)}`;
  const ends = [short(low), column.unit ?? "", short(high)].map((text) => make("span", { text }));
  place.append(
    make("div", { class: "bar", colour: numberCss(), role: "img", "aria-label": said }),
    make("div", { class: "ends" }, ...ends),
  );
  const missing = `${count(column.n_missing)} cells have no value.`;
  if (column.n_missing) place.append(make("p", { class: "soft", text: missing }));
  if (!changed) return;
  const fields = ["low", "high"].map((end) => {
    const value = filter ? filter[end] : "";
    return make("input", { type: "number", step: "any", id: `filter-${end}`, value, placeholder: short(column[end]) });
  });
  const apply = () => {
    const [from, to] = fields.map(({ value }) => value.trim());
    if (!from && !to) return changed(null);
    changed({ low: from ? Number(from) : column.low, high: to ? Number(to) : column.high });
  };
  fields.forEach((field) => field.addEventListener("change", apply));
  const names = ["Show from", "to"];
  place.append(make("div", { class: "range" }, ...fields.map((field, k) => make("label", {}, names[k], field))));
}
