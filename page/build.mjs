// Build the page: `npm run build` writes ../engine/service/page, `node build.mjs FOLDER` another folder.
import { build } from "esbuild";
import { cp, mkdir, rm, writeFile, readFile } from "node:fs/promises";

const here = new URL(".", import.meta.url).pathname;
const out = process.argv[2] ?? `${here}../engine/service/page`;
await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });
await build({
  entryPoints: [`${here}src/page.js`],
  absWorkingDir: here,
  outfile: `${out}/page.js`,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
});
for (const name of ["index.html", "page.css"]) await cp(`${here}src/${name}`, `${out}/${name}`);
const license = await readFile(`${here}node_modules/twgl.js/LICENSE.md`, "utf8");
await writeFile(`${out}/LICENSES.txt`, `page.js contains twgl.js, https://twgljs.org:\n\n${license}`);
