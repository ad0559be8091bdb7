// Polygons: which points are inside, and fewer corners for a line drawn by hand.

// Whether (x, y) is in a polygon [x, y, x, y, ...], as tile_order.py decides it.
export function isInside(x, y, polygon) {
  let odd = false;
  for (let k = 0, before = polygon.length - 2; k < polygon.length; before = k, k += 2) {
    const y1 = polygon[k + 1];
    const y2 = polygon[before + 1];
    if (y1 > y !== y2 > y && x < ((polygon[before] - polygon[k]) * (y - y1)) / (y2 - y1) + polygon[k]) odd = !odd;
  }
  return odd;
}

export function boxOf(polygon) {
  const xs = polygon.filter((_, k) => k % 2 === 0);
  const ys = polygon.filter((_, k) => k % 2 === 1);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

// At most `most` corners of a line, those that matter most (Visvalingam and Whyatt 1993: least triangles go first).
export function simplify(polygon, most = 120) {
  const points = [];
  for (let k = 0; k < polygon.length; k += 2) points.push([polygon[k], polygon[k + 1]]);
  while (points.length > most) {
    let least = Infinity;
    let place = 0;
    points.forEach(([x, y], k) => {
      const [ax, ay] = points.at(k - 1);
      const [bx, by] = points[(k + 1) % points.length];
      const area = Math.abs((ax - x) * (by - y) - (bx - x) * (ay - y));
      if (area < least) [least, place] = [area, k];
    });
    points.splice(place, 1);
  }
  return points.flat();
}
