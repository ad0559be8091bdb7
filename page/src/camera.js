// The part of the picture that is shown: `x`, `y` at its middle, and `scale` in CSS pixels for a unit.

const MOST_ZOOM = 400; // beyond this, steps of the coordinates in a tile of the first level can be seen

export class Camera {
  // box: [x0, y0, x1, y1] of all points; changed: called after each change
  constructor(box, changed) {
    Object.assign(this, { box, changed, width: 1, height: 1, x: 0, y: 0, scale: 1 });
  }

  resize(width, height) {
    const was = this.whole();
    Object.assign(this, { width: Math.max(width, 1), height: Math.max(height, 1) });
    this.scale *= this.whole() / was;
    this.changed();
  }

  // The scale at which all points are shown.
  whole() {
    const [x0, y0, x1, y1] = this.box;
    return 0.92 * Math.min(this.width / Math.max(x1 - x0, 1e-30), this.height / Math.max(y1 - y0, 1e-30));
  }

  reset() {
    const [x0, y0, x1, y1] = this.box;
    this.place((x0 + x1) / 2, (y0 + y1) / 2, 1);
  }

  // zoom: how many times larger than the whole
  place(x, y, zoom) {
    const [x0, y0, x1, y1] = this.box;
    this.x = Math.min(Math.max(x, x0), x1);
    this.y = Math.min(Math.max(y, y0), y1);
    this.scale = this.whole() * Math.min(Math.max(zoom, 0.5), MOST_ZOOM);
    this.changed();
  }

  get zoom() {
    return this.scale / this.whole();
  }

  // Move by pixels of the screen, whose y goes down.
  pan(dx, dy) {
    this.place(this.x - dx / this.scale, this.y + dy / this.scale, this.zoom);
  }

  // Zoom by a factor; what is at pixel (px, py) stays there.
  zoomAt(factor, px = this.width / 2, py = this.height / 2) {
    const [x, y] = this.toData(px, py);
    const zoom = Math.min(Math.max(this.zoom * factor, 0.5), MOST_ZOOM);
    const real = zoom / this.zoom;
    this.place(x + (this.x - x) / real, y + (this.y - y) / real, zoom);
  }

  toData(px, py) {
    return [this.x + (px - this.width / 2) / this.scale, this.y - (py - this.height / 2) / this.scale];
  }

  toScreen(x, y) {
    return [this.width / 2 + (x - this.x) * this.scale, this.height / 2 - (y - this.y) * this.scale];
  }

  // [x0, y0, x1, y1] of what is shown
  shown() {
    const [x0, y1] = this.toData(0, 0);
    const [x1, y0] = this.toData(this.width, this.height);
    return [x0, y0, x1, y1];
  }
}
