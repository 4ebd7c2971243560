// Merges over every kind of qcow2 image, while a guest writes: an intermediate merge, then everything into
// the top.

import { readFileSync, rmSync } from "node:fs";
import { expect, it } from "vitest";
import { Prng } from "../src/base/prng.ts";
import { KiB, MiB } from "../src/base/units.ts";
import { type Chain, checkClean, compareImages, lettersOnDisk, linksOnDisk } from "./harness/chain.ts";
import { RecordingWriter } from "./harness/recording-writer.ts";
import { serveChain } from "./harness/serve.ts";
import { run } from "./harness/tool.ts";

interface Kind {
  readonly name: string;
  readonly options: string;
  readonly bytes?: number;
  /** Layers with compressed clusters. */
  readonly packed?: string;
}

const KINDS: readonly Kind[] = [
  { name: "version 2", options: "compat=0.10" },
  { name: "clusters of 512 bytes", options: "cluster_size=512", bytes: 3 * MiB + 512 },
  { name: "clusters of 2 MiB", options: "cluster_size=2M" },
  { name: "subclusters", options: "extended_l2=on,cluster_size=128k" },
  { name: "small subclusters", options: "extended_l2=on,cluster_size=16k" },
  { name: "refcounts of 1 bit", options: "refcount_bits=1" },
  { name: "refcounts of 64 bits", options: "refcount_bits=64,cluster_size=4k" },
  { name: "lazy refcounts", options: "lazy_refcounts=on" },
  { name: "zlib clusters", options: "cluster_size=64k", packed: "ACD" },
  { name: "zstd clusters", options: "compression_type=zstd", packed: "BCD" },
  { name: "a disk of odd length", options: "cluster_size=64k", bytes: 5 * MiB + 3 * 512 },
];

it.each(KINDS)("merges $name", async ({ options, bytes = 8 * MiB + 512, packed = "" }) => {
  const copies: string[] = [];
  const { chain, daemon, uri } = await serveChain({
    options,
    bytes,
    bytesPerLayer: Math.min(bytes / 6, MiB),
    seed: 7,
    before: async (built: Chain) => {
      for (const letter of packed) await built.compress(letter);
      for (const letter of ["D", "E"]) copies.push(await built.copyOf(letter));
    },
  });
  const [copyOfD, copyOfE] = copies as [string, string];
  const { qmp } = daemon;
  const writer = await RecordingWriter.connect(uri, new Prng(7));
  writer.run();
  await qmp.execute("block-stream", { "job-id": "one", device: "D", "base-node": "B", speed: 512 * KiB });
  await writer.afterWrites(60);
  await qmp.hurry("one");
  await qmp.waitForEnd("one");
  expect(await lettersOnDisk(chain.file("E"))).toBe("A B D E");
  await qmp.execute("block-stream", { "job-id": "two", device: "E", speed: 512 * KiB });
  await writer.afterWrites(60);
  await qmp.hurry("two");
  await qmp.waitForEnd("two");
  await writer.finish();
  const now = `${copyOfE}.now`;
  await run("nbdcopy", uri, now);
  expect(writer.brokenPromises(readFileSync(now), readFileSync(copyOfE))).toEqual([]);
  await daemon.quit();

  await compareImages(chain.file("D"), copyOfD, "qcow2");
  for (const letter of ["D", "E"]) await checkClean(chain.file(letter));
  for (const letter of ["A", "B", "C", "D"]) rmSync(chain.file(letter));
  expect(await linksOnDisk(chain.file("E"))).toEqual(["file-E.img"]);
  await compareImages(chain.file("E"), now, "qcow2");
});
