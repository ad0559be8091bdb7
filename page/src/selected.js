// The selection: how many cells, of which values, their markers, and their table.

import { categoryColour, readColour, toCss } from "./colours.js";
import { count, csvField, find, make, makeButton, makeLink, makeTable, plural, save, short } from "./elements.js";
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
      const all = makeButton("select-view", "Select what is shown", () => this.page.selectView());
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
    const buttons = [makeButton("clear", "Clear", () => page.setPolygon([]))];
    if (total) buttons.unshift(makeButton("save-cells", "Save CSV", () => this.saveCells()));
    if (total && page.index.service) buttons.unshift(makeButton("find-markers", "Markers", () => this.markers()));
    this.answers = make("div", { id: "markers" });
    this.place.replaceChildren(...parts, make("div", { class: "buttons" }, ...buttons), this.answers);
    find("status").textContent = `${plural(total, "cell")} selected`;
  }

  composition(total, counts, column) {
    const change = () => {
      this.column = Number(select.value);
      this.show();
    };
    const select = make("select", { id: "composition-column", "aria-label": "Composition by", change });
    for (const { name, number } of this.page.index.columns) {
      const isNumbers = this.page.tiles.columns.get(number)?.kind === "numbers";
      if (!isNumbers) select.append(make("option", { value: number, text: name }));
    }
    select.value = column.number;
    const sorted = [...counts].sort((one, other) => other[1] - one[1]);
    const rows = sorted.slice(0, ROWS).map(([code, n]) => {
      const isMissing = code === column.missing;
      const colour = toCss(isMissing ? readColour("missing") : categoryColour(code));
      const bar = make("span", { class: "share", colour });
      bar.style.width = `${(100 * n) / sorted[0][1]}%`;
      const name = isMissing ? "(no value)" : column.categories[code];
      return [[name, bar], count(n), `${((100 * n) / total).toFixed(1)}%`];
    });
    const left = sorted.length - ROWS;
    const more = left > 0 ? make("p", { class: "soft", text: `and ${plural(left, "more value")}` }) : null;
    return make("div", {}, select, makeTable([column.name, "Cells", "Share"], rows, 1, "composition"), more);
  }

  // Genes that differ between the selection and all other cells, the most certain changes first.
  async markers() {
    const { signal } = (this.asking = new AbortController());
    const stop = makeButton("stop", "Stop", () => this.asking.abort());
    this.answers.replaceChildren(make("p", {}, "Comparing with all other cells… ", stop));
    const place = this.answers;
    try {
      const body = { first: this.chosen(), top: TOP };
      const { columns } = await this.service.json("api/compare", { body, signal });
      const rows = columns.gene.map((gene, k) => [
        makeLink(gene, () => this.page.colouring.toGene(gene)),
        short(columns.lfc_mean[k]),
        short(columns.proba_de[k]),
      ]);
      place.replaceChildren(
        make("h3", { text: "Selected cells against all others" }),
        makeTable(["Gene", "log2 fold change", "Probability"], rows, 1, "marker-table"),
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
    const numbers = index.columns.map(({ number }) => number);
    const columns = await Promise.all(numbers.map((number) => tiles.column(number)));
    const cells = await listSelected(picture, numbers, new AbortController().signal, () => {});
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
