// The colours of points: categories, and numbers from few to many. Those of the theme are CSS variables of the page.

// hsl to RGB (https://www.w3.org/TR/css-color-3/#hsl-color): hue in degrees, the others from 0 to 1
function fromHsl(hue, saturation, lightness) {
  const value = (n) => {
    const k = (n + hue / 30) % 12;
    const a = saturation * Math.min(lightness, 1 - lightness);
    return Math.round(255 * (lightness - a * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [value(0), value(8), value(4)];
}

export function readColour(name) {
  const text = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
}

export const isDark = () => getComputedStyle(document.documentElement).getPropertyValue("--scheme").trim() === "dark";

// The colour of a category: the eight of the theme, which are apart for every kind of sight; then hues as far apart as
// the golden angle puts them, in three shades. Names stand in the picture beside them.
export function categoryColour(k) {
  if (k < 8) return readColour(`c${k}`);
  const shade = isDark() ? [0.62, 0.78, 0.5][k % 3] : [0.42, 0.58, 0.3][k % 3];
  return fromHsl((k * 137.508) % 360, [0.75, 0.55, 0.9][k % 3], shade);
}

export const toCss = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

// A palette 256 wide, RGBA, for so many categories.
export function categoryPalette(n) {
  const rgba = new Uint8Array(1024 * Math.max(Math.ceil(n / 256), 1));
  for (let k = 0; k < n; k++) rgba.set([...categoryColour(k), 255], 4 * k);
  return rgba;
}

// A palette of 256 shades, from few to many.
export function numberPalette() {
  const stops = [0, 1, 2, 3, 4, 5].map((k) => readColour(`d${k}`));
  const rgba = new Uint8Array(1024);
  for (let k = 0; k < 256; k++) {
    const at = (k / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    const mixed = stops[low].map((value, channel) => value + (stops[low + 1][channel] - value) * (at - low));
    rgba.set([...mixed.map(Math.round), 255], 4 * k);
  }
  return rgba;
}

export const numberCss = () => {
  const rgba = numberPalette();
  const stops = [0, 51, 102, 153, 204, 255].map((k) => toCss(rgba.subarray(4 * k, 4 * k + 3)));
  return `linear-gradient(to right, ${stops.join(", ")})`;
};
