// Find a gene, a cell or a column by its name.

import { find, make } from "./elements.js";

export class Search {
  constructor(page, service) {
    Object.assign(this, { page, service });
    this.input = find("wanted");
    this.input.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.suggest(), 200);
    });
    find("search").addEventListener("submit", (event) => {
      event.preventDefault();
      this.find(this.input.value.trim());
    });
    if (!page.index.service) {
      this.input.placeholder = "Find a cell or a column";
      document.querySelector('label[for="wanted"]').textContent = this.input.placeholder;
    }
  }

  async genes(text) {
    if (!this.page.index.service) return [];
    const { genes } = await this.service.json(`api/genes?pattern=${encodeURIComponent(text)}`);
    return genes;
  }

  // Names that begin with, or hold, what is typed.
  async suggest() {
    const text = this.input.value.trim();
    if (!text) return find("found").replaceChildren();
    const has = (name) => name.toLowerCase().includes(text.toLowerCase());
    const columns = this.page.index.columns.map(({ name }) => name).filter(has);
    let genes = [];
    try {
      genes = await this.genes(text);
    } catch {} // typing goes on without suggestions
    if (this.input.value.trim() !== text) return;
    find("found").replaceChildren(...[...genes, ...columns].slice(0, 30).map((value) => make("option", { value })));
  }

  async find(text) {
    if (!text) return;
    const number = this.page.colouring.number(text);
    if (number !== null) return this.page.colouring.toColumn(number);
    try {
      const genes = await this.genes(text);
      const gene = genes.find((name) => name === text) ?? genes.find((name) => name.toLowerCase() === text.toLowerCase());
      if (gene !== undefined) return await this.page.colouring.toGene(gene);
      await this.page.cell.find(text);
    } catch (error) {
      this.page.failTile(error, "");
    }
  }
}
