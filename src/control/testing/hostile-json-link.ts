import type { Prng } from "../../base/prng.ts";

/** A `json:` name that asks for what an image must not get, or that makes no sense. */
export function hostileJsonLink(prng: Prng, files: readonly string[]): string {
  const filename = prng.pick([...files, "/etc/passwd", "", "\0", 7, null, {}, ["x"], true]);
  const file = prng.pick<unknown>([
    { driver: "file", filename },
    { driver: "file", filename, locking: "off", "force-share": true },
    { driver: "file", filename, "read-only": false },
    { driver: "nbd", server: { type: "inet", host: "127.0.0.1", port: "10809" }, export: "x" },
    { driver: "http", url: "http://127.0.0.1/x" },
    { driver: "raw", file: { driver: "file", filename }, offset: prng.pick([0, -512, 512, 2 ** 60, "x"]) },
    { driver: "qcow2", file: { driver: "file", filename } },
    "top",
    7,
    null,
    [],
  ]);
  const options = prng.pick<unknown>([
    { driver: "qcow2", file },
    { driver: "qcow2", file, "read-only": false },
    { driver: "qcow2", file, backing: prng.pick<unknown>([null, "", "top", file, 7]) },
    { driver: "qcow2", file, "data-file": { driver: "file", filename: "/etc/passwd" } },
    { driver: "qcow2", file, "node-name": prng.pick<unknown>(["top", "", 7, "#block1", "x".repeat(99)]) },
    { driver: "raw", file, size: prng.pick<unknown>([512, 0, -1, 2 ** 60, "512", {}]) },
    { driver: "file", filename },
    { "file.driver": "file", "file.filename": filename, driver: "raw" },
    { driver: "qcow2", file, "l2-cache-size": prng.pick<unknown>([0, -1, 2 ** 52, "1M"]) },
    { driver: "nbd", host: "127.0.0.1" },
    { driver: 7 },
    { driver: "blkdebug", image: file },
    nested(prng.pick([3, 50, 200])),
    { [dotted(prng.pick([3, 100, 300]))]: 1, driver: "raw" },
    { "__proto__.x": 1, "constructor.prototype.x": 1, driver: "raw", file },
    [],
    7,
    null,
  ]);
  const text = JSON.stringify(options) ?? "";
  if (prng.chance(0.1)) return `json:${text.slice(0, prng.below(text.length + 1))}`;
  return `json:${text.slice(0, 1010)}`;
}

function nested(depth: number): unknown {
  let value: unknown = "x";
  for (let level = 0; level < depth; level++) value = { file: value };
  return value;
}

function dotted(depth: number): string {
  return Array.from({ length: depth }, () => "a").join(".");
}
