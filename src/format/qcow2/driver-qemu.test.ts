// Images that QEMU made, with what only it makes: internal snapshots, compressed clusters. Written to by us
// under random requests, then judged by QEMU.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Prng } from "../../base/prng.ts";
import { MiB } from "../../base/units.ts";
import { MemoryFile } from "../../sys/memory-file.ts";
import { firstDifference, runModel } from "./testing/model-run.ts";
import { openImage, readAll } from "./testing/nodes.ts";

const hasQemu = (() => {
  try {
    execFileSync("qemu-img", ["--version"]);
    execFileSync("qemu-io", ["--version"]);
    return true;
  } catch {
    return false;
  }
})();

const folder = mkdtempSync(path.join(os.tmpdir(), "strata-qcow2-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function qemuImg(...args: string[]): string {
  return execFileSync("qemu-img", args, { cwd: folder, encoding: "utf8" });
}

function qemuIo(image: string, ...commands: string[]): void {
  const args = commands.flatMap((command) => ["-c", command]);
  execFileSync("qemu-io", [...args, image], { cwd: folder });
}

/** The disk of an image, or of one of its snapshots, as QEMU reads it. */
function diskOf(image: string, snapshot?: string): Buffer {
  const from = snapshot === undefined ? [] : ["-l", `snapshot.name=${snapshot}`];
  qemuImg("convert", "-f", "qcow2", ...from, "-O", "raw", image, "disk.raw");
  return readFileSync(path.join(folder, "disk.raw"));
}

interface Kind {
  readonly name: string;
  readonly size: number;
  readonly options: string;
  readonly compressed?: boolean;
  readonly snapshots?: boolean;
}

const KINDS: readonly Kind[] = [
  { name: "snapshots", size: 2 * MiB + 512, options: "cluster_size=4096", snapshots: true },
  { name: "snapshots, version 2", size: MiB, options: "compat=0.10,cluster_size=512", snapshots: true },
  {
    name: "snapshots, subclusters",
    size: 3 * MiB,
    options: "extended_l2=on,cluster_size=65536",
    snapshots: true,
  },
  {
    name: "snapshots, 64-bit refcounts",
    size: MiB,
    options: "refcount_bits=64,cluster_size=1024",
    snapshots: true,
  },
  { name: "compressed", size: 2 * MiB, options: "cluster_size=16384", compressed: true },
  { name: "compressed, zstd", size: 2 * MiB, options: "compression_type=zstd", compressed: true },
  {
    name: "compressed, subclusters",
    size: 2 * MiB,
    options: "extended_l2=on,cluster_size=32768",
    compressed: true,
  },
  {
    name: "compressed and snapshots",
    size: 2 * MiB,
    options: "cluster_size=4096",
    compressed: true,
    snapshots: true,
  },
];

function makeImage(kind: Kind, seed: number): void {
  const prng = new Prng(seed);
  const raw = Buffer.alloc(kind.size);
  for (let at = 0; at < kind.size; at += 4096) {
    if (prng.chance(0.6)) raw.fill(prng.between(1, 255), at, Math.min(kind.size, at + 4096));
  }
  writeFileSync(path.join(folder, "source.raw"), raw);
  const compress = kind.compressed === true ? ["-c"] : [];
  qemuImg(
    "convert",
    "-f",
    "raw",
    "-O",
    "qcow2",
    ...compress,
    "-o",
    kind.options,
    "source.raw",
    "image.qcow2",
  );
  if (kind.snapshots !== true) return;
  for (const name of ["one", "two"]) {
    qemuImg("snapshot", "-c", name, "image.qcow2");
    const at = () => 512 * prng.below(Math.floor(kind.size / 512) - 20);
    qemuIo(
      "image.qcow2",
      `write -P 0x${prng.between(16, 255).toString(16)} ${at()} 8k`,
      `write -z ${at()} 9k`,
    );
  }
}

describe.skipIf(!hasQemu)("an image that QEMU made", () => {
  for (const kind of KINDS) {
    it(`with ${kind.name} survives our writes, and so do its snapshots`, { timeout: 120_000 }, async () => {
      for (let seed = 1; seed <= 2; seed++) {
        makeImage(kind, seed);
        const content = diskOf("image.qcow2");
        const snapshots = kind.snapshots === true ? ["one", "two"] : [];
        const before = snapshots.map((name) => diskOf("image.qcow2", name));
        const host = MemoryFile.of(readFileSync(path.join(folder, "image.qcow2")));
        const { node } = await openImage(host, { readOnly: true });
        expect(firstDifference(await readAll(node), content), "read before any write").toBe(-1);

        const result = await runModel({ seed, image: { host, content }, batches: 15 });
        writeFileSync(path.join(folder, "image.qcow2"), host.content());
        expect(qemuImg("check", "-f", "qcow2", "image.qcow2")).toContain("No errors were found");
        expect(firstDifference(diskOf("image.qcow2"), result.content), "read by QEMU").toBe(-1);
        for (const [index, name] of snapshots.entries()) {
          // QEMU reads a snapshot with the length that the disk has now.
          const seen = diskOf("image.qcow2", name).subarray(0, content.length);
          expect(firstDifference(seen, before[index]!), `snapshot ${name}`).toBe(-1);
        }
      }
    });
  }
});

describe.skipIf(!hasQemu)("an image of ours", () => {
  it("is clean to QEMU, and reads the same there", { timeout: 120_000 }, async () => {
    for (let seed = 100; seed < 108; seed++) {
      const { host, content, backing } = await runModel({ seed });
      writeFileSync(path.join(folder, "ours.qcow2"), host.content());
      if (backing !== undefined) {
        writeFileSync(path.join(folder, "base.raw"), await readAll(backing));
        qemuImg("rebase", "-u", "-F", "raw", "-b", "base.raw", "ours.qcow2");
      }
      const { stdout } = checked("ours.qcow2");
      expect(stdout, `seed ${seed}`).toContain("No errors were found");
      writeFileSync(path.join(folder, "wanted.raw"), content);
      qemuImg("compare", "-f", "raw", "-F", "qcow2", "wanted.raw", "ours.qcow2");
    }
  });

  function checked(image: string): { stdout: string } {
    try {
      return { stdout: qemuImg("check", "-f", "qcow2", image) };
    } catch (error) {
      return { stdout: String((error as { stdout?: unknown }).stdout) };
    }
  }
});
