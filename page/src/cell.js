// The chosen cell: what it is, and its neighbours.

import { find, make, makeButton, makeLink, makeTable, plural, short } from "./elements.js";
import { toValue } from "./filters.js";
import { isPlaced } from "./marks.js";

const K = 30;

export class CellPanel {
  constructor(page, service) {
    Object.assign(this, { page, service, place: find("cell") });
  }

  // A cell that was clicked, as [tile, place]; null: none is there.
  async pick(picked) {
    if (!picked) return this.show(null);
    const [tile, place] = picked;
    const [x, y] = this.page.tiles.place(tile, place);
    await this.show({ x, y, tile, place });
  }

  // Choose a cell by its name, and move the view to it.
  async find(name) {
    const cell = this.page.index.service
      ? await this.service.json(`tiles/cell?name=${encodeURIComponent(name)}`)
      : await this.findInFiles(name);
    const { camera } = this.page;
    if (isPlaced(cell)) camera.place(cell.x, cell.y, Math.max(camera.zoom, 4));
    await this.show(cell);
  }

  // Without a service: go through the names of all tiles.
  async findInFiles(name) {
    const { index, tiles } = this.page;
    for (let tile = 0; index.names && tile < index.boxes.length; tile++) {
      const place = (await this.names(tile)).indexOf(name);
      if (place < 0) continue;
      const [x, y] = tiles.place(tile, place, await tiles.load(tile, "points"));
      return { x, y, tile, place };
    }
    const why = index.names ? "" : "; names of cells are not in this folder";
    throw new Error(`No column and no cell has the name ${name}${why}.`);
  }

  names(tile) {
    this.kept ??= new Map();
    const path = `tiles/names/${tile}.json?v=${this.page.index.identity}`;
    if (!this.kept.has(tile)) this.kept.set(tile, this.service.json(path));
    return this.kept.get(tile);
  }

  // Name and values of a cell: from the service, or from the files of its tile.
  async read(cell) {
    const { index, tiles } = this.page;
    if (cell.values) return cell;
    if (index.service) return { ...cell, ...(await this.service.json(`tiles/cells/${cell.tile}/${cell.place}`)) };
    const values = [];
    for (const { name, number } of index.columns) {
      const column = await tiles.column(number);
      const code = (await tiles.load(cell.tile, `c${number}`))[cell.place];
      const known = column.kind === "numbers" ? short(toValue(column, code)) : column.categories[code];
      values.push([name, code === column.missing ? null : known]);
    }
    return { ...cell, name: index.names ? (await this.names(cell.tile))[cell.place] : null, values };
  }

  // cell: { x, y } with tile and place, or with name and values (x and y null: it has no coordinates); null: none
  async show(cell) {
    const { page } = this;
    Object.assign(page.marks, { cell, neighbours: [] });
    page.drawAbove();
    this.current = cell;
    if (!cell) {
      this.place.replaceChildren(make("p", { class: "soft", text: "Click a point to see which cell it is." }));
      return;
    }
    try {
      const known = await this.read(cell);
      if (this.current !== cell) return;
      this.current = known;
      this.draw(known);
      find("status").textContent = `Cell ${known.name ?? ""}`;
    } catch (error) {
      page.failTile(error, "");
    }
  }

  draw(cell) {
    const rows = cell.values.map(([name, value]) =>
      make("tr", {}, make("th", { scope: "row", text: name }), make("td", { text: value ?? "(no value)" })),
    );
    const content = [make("table", {}, make("tbody", {}, ...rows))];
    if (!isPlaced(cell)) content.unshift(make("p", { class: "soft", text: "It has no place in the picture." }));
    if (cell.name) content.unshift(make("p", {}, make("strong", { id: "cell-name", text: cell.name })));
    if (this.page.index.service) {
      const near = make("div", { id: "neighbours" });
      content.push(makeButton("find-neighbours", `${K} nearest cells`, () => this.neighbours(cell, near)), near);
    }
    this.place.replaceChildren(...content);
  }

  async neighbours(cell, place) {
    place.replaceChildren(make("p", { class: "soft", text: "Searching…" }));
    try {
      const { neighbours } = await this.service.json(`tiles/neighbours/${cell.cell}?k=${K}`);
      if (this.current !== cell) return;
      Object.assign(this.page.marks, { cell, neighbours });
      this.page.drawAbove();
      const { shown, columns } = this.page.colouring;
      const column = shown.column?.kind === "categories" ? shown.column.name : columns[0]?.name;
      const value = ({ values }) => values.find(([name]) => name === column)?.[1] ?? "";
      const choose = (near) => makeLink(near.name, () => this.show(near));
      const rows = neighbours.map((near) => [choose(near), value(near), short(near.distance)]);
      place.replaceChildren(
        make("h3", { text: `${plural(neighbours.length, "neighbour")} in latent space` }),
        makeTable(["Cell", column ?? "", "Distance"], rows, 2),
      );
    } catch (error) {
      place.replaceChildren(make("p", { text: error.message }));
    }
  }
}

