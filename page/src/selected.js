// The selection: how many cells, of which values, their markers, and their table.

import { categoryColour, readColour, toCss } from "./colours.js";
import { count, csvField, find, make, plural, save, short } from "./elements.js";
import { toValue } from "./filters.js";
import { countSelected, listSelected } from "./selection.js";

const ROWS = 12; // of a composition
const TOP = 25; // markers

export class SelectionPanel {
  constructor(page, service) {
    Object.assign(this, { page, service, place: find("selection"), column: null });
  }

  // Called whenever the selection, the filters or the colours have changed.
  async show() {
    const { page } = this;
    this.stop?.abort();
    if (!page.polygon.length) {
      this.total = 0;
      const text = "Draw around cells with the lasso (or Shift and drag) to select them, or select what is shown.";
      const all = make("button", { type: "button", id: "select-view", text: "Select what is shown", click: () => this.selectView() });
      this.place.replaceChildren(make("p", { class: "soft", text }), all);
      return;
    }
    const { signal } = (this.stop = new AbortController());
    const note = make("p", { id: "counting", text: "Counting…" });
    this.place.replaceChildren(note);
    try {
      const column = await this.chooseColumn();
      const { total, counts } = await countSelected(page.picture, column?.number ?? null, signal, (done, all) => {
        if (done % 10 === 0) note.textContent = `Counting… ${count(done)} of ${count(all)} tiles`;
      });
      this.total = total;
      this.draw(total, counts, column);
    } catch (error) {
      if (error.name !== "AbortError") note.textContent = error.message;
    }
  }

  selectView() {
    const { width, height } = this.page.camera;
    this.page.select([1, 1, width - 1, 1, width - 1, height - 1, 1, height - 1]);
  }

  // The column of the composition: the chosen one, or that of the colours, or the first with categories.
  async chooseColumn() {
    const { columns } = this.page.index;
    const wanted = this.column ?? this.page.colouring.column ?? this.page.index.first;
    const order = [...columns.filter(({ number }) => number === wanted), ...columns];
    for (const { number } of order) {
      const column = await this.page.tiles.column(number).catch(() => null); // of too many values
      if (column?.kind === "categories") return { ...column, number };
    }
    return null;
  }

  draw(total, counts, column) {
    const { page } = this;
    const parts = [make("p", {}, make("strong", { id: "selected", text: plural(total, "cell") }), " selected")];
    if (column && total) parts.push(this.composition(total, counts, column));
    const buttons = [make("button", { type: "button", id: "clear", text: "Clear", click: () => page.setPolygon([]) })];
    if (total) {
      buttons.unshift(make("button", { type: "button", id: "save-cells", text: "Save CSV", click: () => this.saveCells() }));
      if (page.index.service) buttons.unshift(make("button", { type: "button", id: "find-markers", text: "Markers", click: () => this.markers() }));
    }
    this.answers = make("div", { id: "markers" });
    this.place.replaceChildren(...parts, make("div", { class: "buttons" }, ...buttons), this.answers);
    find("status").textContent = `${plural(total, "cell")} selected`;
  }

  composition(total, counts, column) {
    const select = make("select", { id: "composition-column", "aria-label": "Composition by", change: () => ((this.column = Number(select.value)), this.show()) });
    for (const { name, number } of this.page.index.columns) {
      const known = this.page.tiles.columns.get(number);
      if (known?.kind !== "numbers") select.append(make("option", { value: number, text: name }));
    }
    select.value = column.number;
    const sorted = [...counts].sort((one, other) => other[1] - one[1]);
    const rows = sorted.slice(0, ROWS).map(([code, n]) => {
      const isMissing = code === column.missing;
      const bar = make("span", { class: "share", colour: toCss(isMissing ? readColour("missing") : categoryColour(code)) });
      bar.style.width = `${(100 * n) / sorted[0][1]}%`;
      const name = isMissing ? "(no value)" : column.categories[code];
      return make(
        "tr",
        {},
        make("td", {}, name, bar),
        make("td", { class: "right", text: count(n) }),
        make("td", { class: "right", text: `${((100 * n) / total).toFixed(1)}%` }),
      );
    });
    const more = sorted.length > ROWS ? make("p", { class: "soft", text: `and ${count(sorted.length - ROWS)} more values` }) : null;
    const head = [column.name, "Cells", "Share"].map((text, k) => make("th", { scope: "col", text, class: k ? "right" : "" }));
    const table = make("table", { id: "composition" }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
    return make("div", {}, select, table, more);
  }

  // Genes that differ between the selection and all other cells, the most certain changes first.
  async markers() {
    const { signal } = (this.asking = new AbortController());
    const stop = make("button", { type: "button", text: "Stop", click: () => this.asking.abort() });
    this.answers.replaceChildren(make("p", {}, "Comparing with all other cells… ", stop));
    const place = this.answers;
    try {
      const body = { first: this.chosen(), top: TOP };
      const { columns } = await this.service.json("api/compare", { body, signal });
      const genes = columns.gene.map((gene, k) =>
        make(
          "tr",
          {},
          make("td", {}, make("button", { type: "button", class: "link", text: gene, click: () => this.page.colouring.toGene(gene) })),
          make("td", { class: "right", text: short(columns.lfc_mean[k]) }),
          make("td", { class: "right", text: short(columns.proba_de[k]) }),
        ),
      );
      const head = ["Gene", "log2 fold change", "Probability"].map((text, k) => make("th", { scope: "col", text, class: k ? "right" : "" }));
      place.replaceChildren(
        make("h3", { text: "Selected cells against all others" }),
        make("div", { class: "table" }, make("table", { id: "marker-table" }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...genes))),
      );
    } catch (error) {
      place.replaceChildren(...(error.name === "AbortError" ? [] : [make("p", { text: error.message })]));
    }
  }

  // The selected cells, for the server.
  chosen() {
    const { polygon, colouring } = this.page;
    const corners = polygon.filter((_, k) => k % 2 === 0).map((x, k) => [x, polygon[2 * k + 1]]);
    const where = colouring.conditions();
    return where.length ? { polygon: corners, where } : { polygon: corners };
  }

  // The table of the selected cells: all columns from the service; from files, what the page knows of them.
  async saveCells() {
    const { page } = this;
    const button = find("save-cells");
    button.disabled = true;
    try {
      if (page.index.service) {
        const columns = page.index.columns.map(({ name }) => name);
        const body = { ...this.chosen(), ...(columns.length ? { columns } : {}) };
        const response = await this.service.ask("api/library", { body, accept: "text/csv" });
        save(await response.blob(), `${page.index.name}.selection.csv`, "text/csv");
      } else save(await this.listAsText(), `${page.index.name}.selection.csv`, "text/csv");
    } catch (error) {
      page.failTile(error, "");
    }
    button.disabled = false;
  }

  async listAsText() {
    const { index, tiles, picture, cell } = this.page;
    const columns = await Promise.all(index.columns.map(({ number }) => tiles.column(number)));
    const cells = await listSelected(picture, index.columns.map(({ number }) => number), new AbortController().signal, () => {});
    const lines = [[...(index.names ? ["cell"] : []), "x", "y", ...columns.map(({ name }) => name)]];
    for (const { tile, place, x, y, codes } of cells) {
      const values = codes.map((code, k) => {
        if (code === columns[k].missing) return "";
        return columns[k].kind === "numbers" ? toValue(columns[k], code) : columns[k].categories[code];
      });
      lines.push([...(index.names ? [(await cell.names(tile))[place]] : []), x, y, ...values]);
    }
    return lines.map((line) => `${line.map(csvField).join(",")}\n`).join("");
  }
}
