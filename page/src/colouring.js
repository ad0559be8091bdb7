// What the points are coloured by: a column, or the decoded expression of a gene; and the filters of all columns.

import { categoryPalette, numberPalette, readColour } from "./colours.js";
import { find, make } from "./elements.js";
import { allowedCodes, fromText, toCondition, toText } from "./filters.js";
import { placeLabels } from "./labels.js";
import { showLegend } from "./legend.js";

const TOP = Math.log1p(10_000); // what code 65,534 of a gene stands for

export class Colouring {
  constructor(page) {
    Object.assign(this, { page, tiles: page.tiles, picture: page.picture, filters: new Map(), labels: [] });
    this.gene = null;
    this.column = null; // number
    const select = find("colour");
    select.append(make("option", { value: "", text: "one colour" }));
    for (const { name, number } of page.index.columns) select.append(make("option", { value: number, text: name }));
    select.addEventListener("change", () => this.toColumn(select.value === "" ? null : Number(select.value)));
  }

  get columns() {
    return this.page.index.columns;
  }

  number(name) {
    return this.columns.find((column) => column.name === name)?.number ?? null;
  }

  // Colour as a link says; without one, as the server proposes.
  async start(link) {
    for (const [name, text] of Object.entries(link.filters)) {
      const number = this.number(name);
      const filter = number === null ? null : fromText(await this.tiles.column(number), text);
      if (filter) this.filters.set(number, filter);
    }
    if (link.gene && this.page.index.service) await this.toGene(link.gene);
    else await this.toColumn(link.column ? this.number(link.column) : this.page.index.first);
  }

  // Colour by a column of this number; null: all points in one colour; undefined: by the column before.
  async toColumn(number = this.column) {
    try {
      const column = number === null ? null : await this.tiles.column(number);
      Object.assign(this, { gene: null, column: number });
      this.show(number === null ? null : `c${number}`, column);
    } catch (error) {
      this.page.failTile(error, "");
      find("colour").value = this.column ?? "";
    }
  }

  async toGene(gene) {
    // the range of the colours is that of the first tile, which is a sample of all cells
    try {
      find("legend").replaceChildren(make("p", { class: "soft", text: `Decoding ${gene}…` }));
      const codes = await this.tiles.load(0, `g${gene}`);
      const sorted = Uint16Array.from(codes).sort();
      const highest = sorted[Math.floor(0.995 * (sorted.length - 1))] || sorted.at(-1);
      const value = (code) => (code * TOP) / 65534;
      this.gene = gene;
      this.show(`g${gene}`, {
        name: gene,
        kind: "numbers",
        missing: 65535,
        n_missing: 0,
        low: 0,
        high: TOP,
        shown: [0, value(highest)],
        unit: "log1p of counts per 10,000",
      });
    } catch (error) {
      this.page.failTile(error, "");
      await this.toColumn();
    }
  }

  show(key, column) {
    this.shown = { key, column };
    this.refresh();
    this.placeNames(key, column);
    this.page.applyState();
    this.page.writeLink();
  }

  // Colours and legend, also after the theme has changed.
  refresh() {
    const { key, column } = this.shown;
    const select = find("colour");
    select.querySelector("#gene")?.remove();
    if (this.gene) select.append(make("option", { id: "gene", value: "gene", text: this.gene }));
    select.value = this.gene ? "gene" : (this.column ?? "");
    if (!column) {
      const rgba = new Uint8Array(1024);
      rgba.set([...readColour("c4"), 255]);
      find("legend").replaceChildren();
      this.picture.setColouring({ key, isNumber: false, steps: [0, 0, -1], rgba });
    } else {
      const isNumber = column.kind === "numbers";
      const toCode = (value) => ((value - column.low) * 65534) / (column.high - column.low || 1);
      const [first, last] = isNumber ? column.shown.map(toCode) : [0, 0];
      const steps = [first, last > first ? 1 / (last - first) : 0, column.missing];
      const rgba = isNumber ? numberPalette() : categoryPalette(column.categories.length);
      this.picture.setColouring({ key, isNumber, steps, rgba });
      this.showLegend();
    }
    this.showFilters();
  }

  showLegend() {
    const { column } = this.shown;
    const number = this.gene ? null : this.column;
    const changed = number === null ? null : (filter) => this.setFilter(number, filter);
    const legend = find("legend");
    const { id, dataset } = legend.contains(document.activeElement) ? document.activeElement : {};
    showLegend(legend, column, this.filters.get(number), changed);
    const again = id ? `#${id}` : dataset?.code ? `[data-code="${dataset.code}"]` : null;
    if (again) legend.querySelector(again)?.focus(); // where the keyboard was before
  }

  async placeNames(key, column) {
    this.labels = [];
    this.page.drawAbove();
    if (column?.kind !== "categories") return;
    try {
      const [, codes] = await Promise.all([this.tiles.load(0, "points"), this.tiles.load(0, key)]);
      if (this.shown.key !== key) return;
      this.labels = placeLabels(this.tiles, column, codes);
      this.page.drawAbove();
    } catch {} // names are missing then; the error is shown where the picture needs the same tile
  }

  // The names of the categories that are shown: the same array until labels or filters change.
  shownLabels() {
    const hidden = this.filters.get(this.column)?.hidden;
    if (this.known?.[0] !== this.labels || this.known[1] !== hidden) {
      const shown = hidden ? this.labels.filter(({ code }) => !hidden.has(code)) : this.labels;
      this.known = [this.labels, hidden, shown];
    }
    return this.known[2];
  }

  // filter: null: the column hides nothing
  setFilter(number, filter) {
    if (filter) this.filters.set(number, filter);
    else this.filters.delete(number);
    if (this.shown.column && !this.gene) this.showLegend();
    this.showFilters();
    this.page.applyState();
    this.page.writeLink();
  }

  // The filters of columns whose legend is not shown.
  showFilters() {
    const others = [...this.filters.keys()].filter((number) => this.gene || number !== this.column);
    find("filters").replaceChildren(
      ...others.map((number) =>
        make("button", {
          type: "button",
          class: "chip",
          text: `✕ only some of ${this.tiles.columns.get(number).name}`,
          "aria-label": `Show all of ${this.tiles.columns.get(number).name}`,
          click: () => this.setFilter(number, null),
        }),
      ),
    );
  }

  // Which codes of which columns are shown.
  allowed() {
    const entries = [...this.filters];
    return new Map(entries.map(([number, filter]) => [number, allowedCodes(this.tiles.columns.get(number), filter)]));
  }

  // The filters as conditions for the server.
  conditions() {
    return [...this.filters].map(([number, filter]) => toCondition(this.tiles.columns.get(number), filter));
  }

  toLink() {
    const filters = {};
    for (const [number, filter] of this.filters) {
      const column = this.tiles.columns.get(number);
      filters[column.name] = toText(column, filter);
    }
    return { column: this.columns.find(({ number }) => number === this.column)?.name, gene: this.gene, filters };
  }
}
