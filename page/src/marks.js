// What is drawn above the points: the lasso, the chosen cell and its neighbours.

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// drawing: pixels [x, y, ...]; polygon: coordinates [x, y, ...]; cell: { x, y } or null; neighbours: [{ x, y }]
export function drawMarks(svg, camera, { drawing, polygon, cell, neighbours }) {
  const shapes = [];
  if (drawing.length > 2) shapes.push(shape("polygon", { points: drawing.join(" ") }));
  else if (polygon.length) {
    const pixels = [];
    for (let k = 0; k < polygon.length; k += 2) pixels.push(...camera.toScreen(polygon[k], polygon[k + 1]));
    shapes.push(shape("polygon", { points: pixels.join(" ") }));
  }
  if (cell && isPlaced(cell)) {
    const [x, y] = camera.toScreen(cell.x, cell.y);
    for (const near of neighbours.filter(isPlaced)) {
      const [nx, ny] = camera.toScreen(near.x, near.y);
      shapes.push(shape("line", { x1: x, y1: y, x2: nx, y2: ny, class: "near" }));
      shapes.push(shape("circle", { cx: nx, cy: ny, r: 4 }));
    }
    shapes.push(shape("circle", { cx: x, cy: y, r: 9 }));
  }
  if (shapes.length || svg.childElementCount) svg.replaceChildren(...shapes);
}

// Whether a cell has a place in the picture.
export const isPlaced = ({ x, y }) => x !== null && y !== null;
