// What `npm install` gives people: the packed files, and the two programs behind links.

import { mkdirSync, readdirSync, symlinkSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import packageJson from "../package.json" with { type: "json" };
import { scratchDirectory } from "./harness/scratch.ts";
import { run } from "./harness/tool.ts";

const CHECKOUT = path.resolve(import.meta.dirname, "..");

async function unpacked(): Promise<{ bin: string; tree: string }> {
  const directory = scratchDirectory();
  await run(path.join(CHECKOUT, "scripts/build"));
  await run("npm", "pack", "--silent", "--pack-destination", directory, CHECKOUT);
  const archive = readdirSync(directory).find((name) => name.endsWith(".tgz"))!;
  await run("tar", "-xzf", path.join(directory, archive), "-C", directory);
  const tree = path.join(directory, "package");
  symlinkSync(path.join(CHECKOUT, "node_modules"), path.join(tree, "node_modules"));
  const bin = path.join(directory, "bin");
  mkdirSync(bin);
  for (const [name, file] of Object.entries(packageJson.bin))
    symlinkSync(path.join(tree, file), path.join(bin, name));
  return { bin, tree };
}

describe("the npm package", () => {
  it("holds what its two programs need, and no tests", async () => {
    const { bin, tree } = await unpacked();
    expect(await run(path.join(bin, "strata"), "--version")).toContain(packageJson.version);
    const daemon = path.join(bin, "strata-storage-daemon");
    expect(await run(daemon, "--version")).toContain(packageJson.version);
    expect(await run("find", tree, "-name", "*.test.*", "-o", "-name", "testing")).toBe("");
  });

  it("reads with sixteen threads, unless the user says otherwise", async () => {
    const { bin } = await unpacked();
    const disk = path.join(bin, "disk.raw");
    await run("qemu-img", "create", "-q", "-f", "raw", disk, "1M");
    const threads = async (...environment: string[]) => {
      // The pool is made at its first use; what it is at the end is what the program had.
      const probe = "data:text/javascript,import fs from 'node:fs';process.on('exit',()=>console.error(";
      const count = "'threads',fs.readdirSync('/proc/self/task').length))";
      const info = [path.join(bin, "strata"), "info", disk];
      const said = await run(
        "sh",
        "-c",
        `env "$@" 2>&1`,
        "sh",
        ...environment,
        `NODE_OPTIONS=--import="${probe}${count}"`,
        ...info,
      );
      return Number(/threads (\d+)/.exec(said)![1]);
    };
    expect((await threads()) - (await threads("UV_THREADPOOL_SIZE=4"))).toBe(12);
  });
});
