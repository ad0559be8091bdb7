// The page of an atlas: opens the tiles, and connects the picture with what is around it.

import { Camera } from "./camera.js";
import { CellPanel } from "./cell.js";
import { Colouring } from "./colouring.js";
import { count, find, plural, save } from "./elements.js";
import { simplify } from "./geometry.js";
import { listen } from "./gestures.js";
import { showLabels } from "./labels.js";
import { readLink, writeLink } from "./link.js";
import { drawMarks } from "./marks.js";
import { Picture } from "./picture.js";
import { Points } from "./points.js";
import { Search } from "./search.js";
import { SelectionPanel } from "./selected.js";
import { Service } from "./service.js";
import { Tiles } from "./tiles.js";

const say = (text) => (find("status").textContent = text);

// Say a sentence above the picture; empty: nothing any more. isLasting: until it is over, without a button to close it.
function show(sentence, isLasting = false) {
  find("banner").hidden = !sentence;
  find("banner-text").textContent = sentence;
  find("dismiss").hidden = isLasting;
}

function showAway(isAway) {
  show(isAway ? "The server does not answer. This page goes on when it is back." : "", isAway);
  if (!isAway) say("The server is back.");
}

// Open the page anew if the server has another atlas now; the address holds the view.
async function compareIdentity(service, index) {
  const now = await service.json("tiles/index.json");
  if (now.identity !== index.identity) location.reload();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  find("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

function fail(error) {
  if (error.name === "AbortError") return;
  show(error.message);
}

class Page {
  constructor(service, index) {
    this.index = index;
    this.link = readLink();
    this.marks = { drawing: [], cell: null, neighbours: [] };
    this.theme = this.link.theme;
    this.polygon = this.link.lasso;
    this.isLasso = false;
    this.labelsOn = this.link.labels;
    const canvas = find("canvas");
    this.tiles = new Tiles(service, index, () => this.picture.wake(), (error, key) => this.failTile(error, key));
    this.camera = new Camera(this.tiles.box, () => this.moved());
    this.picture = new Picture(canvas, new Points(canvas), this.tiles, this.camera, (n) => this.showDrawn(n));
    this.colouring = new Colouring(this);
    this.selection = new SelectionPanel(this, service);
    this.cell = new CellPanel(this, service);
    this.search = new Search(this, service);
  }

  async start() {
    this.tiles.load(0, "points").catch(() => {}); // soon: whatever the colours are, these are needed
    new ResizeObserver(() => this.resize()).observe(find("stage"));
    this.resize();
    this.camera.reset();
    if (this.link.at.length === 3) this.camera.place(...this.link.at);
    this.listen();
    await this.colouring.start(this.link);
    this.setPolygon(this.polygon);
    this.cell.show(null);
  }

  resize() {
    const { clientWidth, clientHeight } = find("stage");
    const ratio = Math.min(devicePixelRatio || 1, 2);
    Object.assign(find("canvas"), { width: clientWidth * ratio, height: clientHeight * ratio });
    this.camera.resize(clientWidth, clientHeight);
  }

  moved() {
    this.picture.move();
    this.drawAbove();
    clearTimeout(this.writing);
    this.writing = setTimeout(() => this.writeLink(), 250);
  }

  // What is drawn above the points.
  drawAbove() {
    drawMarks(find("marks"), this.camera, { ...this.marks, polygon: this.polygon });
    find("labels").hidden = !this.labelsOn;
    if (this.labelsOn) showLabels(find("labels"), this.colouring.shownLabels(), this.camera);
  }

  // Say how many points are drawn, if these are not all.
  showDrawn(n) {
    const all = this.index.starts.at(-1);
    const said = n < all ? `${count(n)} of ${count(all)} cells drawn` : "";
    if (find("progress").textContent !== said) find("progress").textContent = said; // else it is laid out for each frame
  }

  writeLink() {
    const { x, y, zoom } = this.camera;
    writeLink({
      at: [x, y, zoom],
      ...this.colouring.toLink(),
      lasso: this.polygon,
      labels: this.labelsOn,
      theme: this.theme,
    });
  }

  // The shown cells in a polygon of data coordinates [x, y, x, y, ...] are selected; empty: none.
  setPolygon(polygon) {
    this.polygon = polygon;
    this.applyState();
    this.writeLink();
  }

  // Filters or selection have changed.
  applyState() {
    this.picture.setState(this.colouring.allowed(), this.polygon);
    this.drawAbove();
    this.selection.show();
  }

  select(pixels) {
    const corners = [];
    for (let k = 0; k < pixels.length; k += 2) corners.push(...this.camera.toData(pixels[k], pixels[k + 1]));
    this.setPolygon(simplify(corners).map((value) => Number(value.toPrecision(8))));
  }

  selectView() {
    const { width, height } = this.camera;
    this.select([0, 0, width, 0, width, height, 0, height]);
  }

  failTile(error, key) {
    fail(error);
    if (key.startsWith("g")) this.colouring.toColumn();
  }

  setLasso(isLasso) {
    this.isLasso = isLasso;
    find("lasso").setAttribute("aria-pressed", isLasso);
    find("stage").classList.toggle("is-lasso", isLasso);
  }

  listen() {
    const { camera } = this;
    const stage = find("stage");
    const clear = () => {
      this.setLasso(false);
      this.setPolygon([]);
      this.cell.show(null);
      say("Nothing is selected.");
    };
    listen(stage, {
      pan: (dx, dy) => camera.pan(dx, dy),
      zoomAt: (factor, px, py) => camera.zoomAt(factor, px, py),
      reset: () => camera.reset(),
      pick: (px, py, reach) => this.cell.pick(this.picture.nearest(px, py, reach)),
      lasso: (pixels) => this.select(pixels),
      drawing: (pixels) => {
        this.marks.drawing = pixels;
        drawMarks(find("marks"), camera, { ...this.marks, polygon: this.polygon });
      },
      isLasso: () => this.isLasso,
      toggleLasso: () => this.setLasso(!this.isLasso),
      selectView: () => this.selectView(),
      clear,
    });
    const click = (id, action) => find(id).addEventListener("click", action);
    click("lasso", () => this.setLasso(!this.isLasso));
    click("zoom-in", () => camera.zoomAt(1.5));
    click("zoom-out", () => camera.zoomAt(1 / 1.5));
    click("reset", () => camera.reset());
    click("save-picture", () => this.savePicture());
    click("help", () => find("help-box").showModal());
    click("show-labels", () => {
      this.labelsOn = !this.labelsOn;
      find("show-labels").setAttribute("aria-pressed", this.labelsOn);
      this.drawAbove();
      this.writeLink();
    });
    click("theme", () => {
      this.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      setTheme(this.theme);
      this.colouring.refresh();
      this.drawAbove();
      this.writeLink();
    });
    click("copy-link", async () => {
      this.writeLink();
      try {
        await navigator.clipboard.writeText(location.href);
        say("The link is copied.");
        find("copy-link").textContent = "Copied";
        setTimeout(() => (find("copy-link").textContent = "Copy link"), 1500);
      } catch {
        fail(new Error("This browser does not let a page copy: copy the address of the page, which holds the view."));
      }
    });
    find("show-labels").setAttribute("aria-pressed", this.labelsOn);
  }

  // The points as they are on the canvas, with names of categories where they are shown.
  savePicture() {
    const from = find("canvas");
    const copy = Object.assign(document.createElement("canvas"), { width: from.width, height: from.height });
    const paper = copy.getContext("2d");
    const ratio = from.width / this.camera.width;
    const style = getComputedStyle(document.documentElement);
    paper.drawImage(from, 0, 0);
    Object.assign(paper, { font: `600 ${13 * ratio}px sans-serif`, textAlign: "center", textBaseline: "middle" });
    Object.assign(paper, { strokeStyle: style.getPropertyValue("--page"), fillStyle: style.getPropertyValue("--ink") });
    paper.lineWidth = 4 * ratio;
    for (const label of this.labelsOn ? find("labels").children : []) {
      if (label.style.visibility === "hidden") continue;
      const box = label.getBoundingClientRect();
      const stage = find("stage").getBoundingClientRect();
      const place = [(box.x + box.width / 2 - stage.x) * ratio, (box.y + box.height / 2 - stage.y) * ratio];
      paper.strokeText(label.textContent, ...place);
      paper.fillText(label.textContent, ...place);
    }
    copy.toBlob((blob) => save(blob, `${this.index.name}.png`, "image/png"), "image/png");
  }
}

async function open() {
  const { theme } = readLink();
  setTheme(theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  const service = new Service(showAway);
  find("dismiss").addEventListener("click", () => show(""));
  try {
    const index = await service.json("tiles/index.json");
    document.title = index.name;
    find("name").textContent = index.name;
    find("size").textContent = plural(index.n_cells, "cell");
    const without = index.n_cells - index.starts.at(-1);
    if (without) find("size").textContent += `, ${count(without)} of them without coordinates`;
    find("left-out").hidden = !index.left_out;
    find("left-out").textContent = index.left_out ?? "";
    service.away = (isAway) => {
      showAway(isAway);
      if (!isAway) compareIdentity(service, index).catch(fail);
    };
    await new Page(service, index).start();
  } catch (error) {
    fail(error);
  }
}

open();
