// fio works on the disk during the whole of each merge, and finds nothing wrong; nor does a comparison of
// what it left alone with a copy made before.

import { expect, it } from "vitest";
import { MiB } from "../src/base/units.ts";
import { checkClean, compareImages, lettersOnDisk } from "./harness/chain.ts";
import { differences, FioRun, type Piece } from "./harness/fio.ts";
import { later } from "./harness/patience.ts";
import { serveAgain, serveChain } from "./harness/serve.ts";
import { run } from "./harness/tool.ts";

const DISK = 128 * MiB;

const MERGES = [
  { top: "E", base: "A", left: "A E", seed: 11, where: "inMemory" },
  { top: "D", base: "B", left: "A B D E", seed: 12, where: "inMemory" },
  { top: "D", base: "A", left: "A D E", seed: 13, where: "onDisk" },
  { top: "E", base: undefined, left: "E", seed: 14, where: "inMemory" },
] as const;

it.each(MERGES)("fio during the merge of $top onto $base", async ({ top, base, left, seed, where }) => {
  let copy = "";
  const { directory, chain, daemon, uri } = await serveChain({
    bytes: DISK,
    bytesPerLayer: 24 * MiB,
    seed,
    where,
    base: seed % 2 === 0 ? "raw" : "qcow2",
    before: async (built) => {
      copy = await built.copyOf("E");
    },
  });
  const done = { written: [] as Piece[], trimmed: [] as Piece[] };
  const guest = (run: number) =>
    new FioRun({ directory, uri, diskBytes: DISK, seed: 100 * seed + run, bytesPerJob: 12 * MiB });
  let fio = guest(0);
  let working = later(fio.work());
  const target = base === undefined ? {} : { "base-node": base };
  const speed = 10 * MiB;
  await daemon.qmp.execute("block-stream", { "job-id": "merge", device: top, speed, ...target });
  const merged = later(daemon.qmp.waitForEnd("merge"));
  let isOver = false;
  merged.finally(() => {
    isOver = true;
  });
  let runs = 1;
  for (;;) {
    await working;
    done.written.push(...fio.written());
    done.trimmed.push(...fio.trimmed());
    if (isOver) break;
    fio = guest(runs++);
    working = later(fio.work());
    // Without its limit the job has several chunks in flight.
    if (runs === 3) await daemon.qmp.hurry("merge");
  }
  const ended = await merged;
  expect(ended.event).toBe("BLOCK_JOB_COMPLETED");
  expect(await lettersOnDisk(chain.file("E"))).toBe(left);

  await fio.verify();
  await daemon.quit();
  for (const letter of left.split(" ")) if (letter !== "A") await checkClean(chain.file(letter));
  const now = await chain.copyOf("E");
  expect(differences(copy, now, done, DISK)).toEqual([]);

  const again = await serveAgain(chain, { byLinks: true });
  await fio.verify(again.uri);
  await compareImages(again.uri, now);
  await again.daemon.quit();
});

it("notices a single wrong sector, wherever it is", async () => {
  let copy = "";
  const { directory, chain, daemon, uri } = await serveChain({
    bytes: 16 * MiB,
    before: async (built) => {
      copy = await built.copyOf("E");
    },
  });
  const fio = new FioRun({ directory, uri, diskBytes: chain.bytes, seed: 3, bytesPerJob: MiB });
  await fio.work();
  await fio.verify();
  const done = { written: fio.written(), trimmed: fio.trimmed() };
  const written = done.written[0]!.offset;
  const trimmed = done.trimmed[0]!.offset;
  const alone = chain.bytes - 512;
  const flip = (offset: number) => run("qemu-io", "-f", "raw", "-c", `write -P 0x5a ${offset} 512`, uri);
  await flip(written);
  await expect(fio.verify()).rejects.toThrow(/verify/);
  await flip(trimmed);
  await flip(alone);
  await daemon.quit();
  expect(differences(copy, await chain.copyOf("E"), done, chain.bytes)).toEqual([trimmed, alone]);
});
