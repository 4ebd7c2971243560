// kill -9 in the middle of a merge and around its end, while a guest writes and flushes; and SIGTERM.
//
// After each kill -9: the chain opens, and is the old one or the new one; no image has errors; every write
// that a flush had promised is there; our daemon opens the chain again, repairs what leaked, and streaming
// again completes. SIGTERM: it ends in time with code 0, whatever its clients do; then every write that was
// answered is there, no image has leaks, and none is marked as in use.

import { readFileSync } from "node:fs";
import { createConnection } from "node:net";
import { expect, it, onTestFinished } from "vitest";
import { Prng } from "../src/base/prng.ts";
import { KiB, MiB } from "../src/base/units.ts";
import { Chain, checkClean, checkForErrors, compareImages, lettersOnDisk } from "./harness/chain.ts";
import { type Daemon, IS_REFERENCE } from "./harness/daemon.ts";
import { later, within } from "./harness/patience.ts";
import { RecordingWriter } from "./harness/recording-writer.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { serveAgain } from "./harness/serve.ts";

/** STRATA_KILL_SEED repeats one round; STRATA_KILL_ROUNDS makes it more of them. */
const ONE_SEED = process.env["STRATA_KILL_SEED"];
const ROUNDS = Number(process.env["STRATA_KILL_ROUNDS"] ?? (process.env["STRATA_LONG"] === "1" ? 500 : 20));
const ROUNDS_PER_TEST = 10;

/** How long the end may take after SIGTERM: a second for its clients, the rest for a busy machine. */
const TERM_MS_MAX = 8_000;

const DISK = 12 * MiB + 512;

const MERGES = [
  { top: "E", base: "A", merged: "A E" },
  { top: "D", base: "B", merged: "A B D E" },
  { top: "E", base: undefined, merged: "E" },
  { top: "D", base: "A", merged: "A D E" },
] as const;
type Merge = (typeof MERGES)[number];

const seeds =
  ONE_SEED === undefined ? Array.from({ length: ROUNDS }, (_, round) => round + 1) : [Number(ONE_SEED)];
const groups: { seeds: number[]; name: string }[] = [];
for (let at = 0; at < seeds.length; at += ROUNDS_PER_TEST) {
  const some = seeds.slice(at, at + ROUNDS_PER_TEST);
  groups.push({ seeds: some, name: `${some[0]} to ${some.at(-1)}` });
}

const WAYS = [
  { what: "keeps every promise when it is killed during a merge", round: killedMerge },
  { what: "ends in peace and in time on SIGTERM under load", round: endedMerge },
];
const tests = WAYS.flatMap((way) => groups.map((group) => ({ ...way, ...group })));

it.each(tests)("$what: seeds $name", async ({ seeds: some, round }) => {
  const template = await Chain.build(scratchDirectory(), {
    bytes: DISK,
    bytesPerLayer: 2 * MiB,
    base: "raw",
  });
  const copy = await template.copyOf("E");
  for (const seed of some) {
    try {
      await round(template, copy, seed);
    } catch (error) {
      throw new Error(`round with STRATA_KILL_SEED=${seed} failed: ${(error as Error).message}`, {
        cause: error,
      });
    }
  }
});

/** A copy of the chain, served, with a guest that writes already; and the merge that shall begin. */
async function writtenTo(template: Chain, seed: number) {
  const prng = new Prng(seed);
  const merge = MERGES[seed % MERGES.length]!;
  const chain = await template.cloneTo(scratchDirectory());
  const { daemon, uri } = await serveAgain(chain, { byLinks: IS_REFERENCE });
  const writer = await RecordingWriter.connect(uri, prng);
  const writing = writer.run();
  await writer.afterWrites(prng.below(20));
  return { prng, merge, chain, daemon, uri, writer, writing };
}

/** One round; gives how many flushes were answered before the kill. */
async function killedMerge(template: Chain, copy: string, seed: number): Promise<number> {
  const { prng, merge, chain, daemon, writer, writing } = await writtenTo(template, seed);
  if (prng.chance(0.5)) await killInTheMiddle(daemon, merge, writer, prng);
  else await killAroundTheEnd(daemon, merge, writer, prng);
  await writing;

  const left = await lettersOnDisk(chain.file("E"));
  expect([merge.merged, "A B C D E"]).toContain(left);
  for (const letter of left.split(" ")) if (letter !== "A") await checkForErrors(chain.file(letter));
  const found = await chain.copyOf("E");
  expect(writer.brokenPromises(readFileSync(found), readFileSync(copy))).toEqual([]);
  await streamAgain(chain, merge, found);
  return writer.flushed;
}

async function endedMerge(template: Chain, copy: string, seed: number): Promise<void> {
  const { prng, merge, chain, daemon, uri, writer, writing } = await writtenTo(template, seed);
  await stream(daemon, merge, prng.chance(0.5) ? 0 : 512 * KiB * 2 ** prng.below(5));
  if (prng.chance(0.5)) await deafPeer(daemon, new URL(uri).pathname.replace(/^\/+/, ""));
  await writer.afterWrites(prng.below(120));
  process.kill(daemon.pid, "SIGTERM");
  const ending = await within(daemon.ended, () => `it does not end\n${daemon.output}`, TERM_MS_MAX);
  expect(ending).toEqual({ code: 0, signal: null });
  // Its requests came to an end with an error; which, is not what this is about.
  await writing.catch(() => undefined);
  writer.promiseAnswered();

  const left = await lettersOnDisk(chain.file("E"));
  expect([merge.merged, "A B C D E"]).toContain(left);
  for (const letter of left.split(" ")) {
    if (letter === "A") continue;
    await checkClean(chain.file(letter));
    expect(markOf(chain.file(letter))).not.toBe(IN_USE);
  }
  const found = await chain.copyOf("E");
  expect(writer.brokenPromises(readFileSync(found), readFileSync(copy))).toEqual([]);
}

/** Asks for more than a socket holds, and neither takes the replies nor goes away. */
async function deafPeer(daemon: Daemon, exportName: string): Promise<void> {
  const socket = createConnection({ path: daemon.nbdSocket, allowHalfOpen: true });
  onTestFinished(() => void socket.destroy());
  socket.on("error", () => {});
  socket.pause();
  const option = Buffer.alloc(4 + 16);
  option.writeUInt32BE(3, 0);
  option.write("IHAVEOPT", 4);
  option.writeUInt32BE(1, 12);
  option.writeUInt32BE(Buffer.byteLength(exportName), 16);
  const read = Buffer.alloc(28);
  read.writeUInt32BE(0x25609513, 0);
  read.writeUInt32BE(MiB, 24);
  const requests = Array.from({ length: 8 }, () => read);
  await new Promise((resolve) =>
    socket.write(Buffer.concat([option, Buffer.from(exportName), ...requests]), resolve),
  );
}

const IN_USE = 1;

/** The state in the header's mark of use; undefined where it has none. */
function markOf(file: string): number | undefined {
  const at = readFileSync(file).subarray(0, 4096).indexOf("STRA");
  return at < 0 ? undefined : readFileSync(file)[at + 8];
}

/** Slowly enough that the job is still copying when the daemon dies. */
async function killInTheMiddle(
  daemon: Daemon,
  merge: Merge,
  writer: RecordingWriter,
  prng: Prng,
): Promise<void> {
  await stream(daemon, merge, 512 * KiB * 2 ** prng.below(5));
  await writer.afterWrites(prng.below(120));
  await kill(daemon, writer);
}

/** At one of the steps of the job's end, a few turns later. */
async function killAroundTheEnd(
  daemon: Daemon,
  merge: Merge,
  writer: RecordingWriter,
  prng: Prng,
): Promise<void> {
  const { qmp } = daemon;
  const step = prng.pick(["waiting", "pending", "concluded", "null"]);
  const reached = later(qmp.waitForStatus("merge", step));
  await stream(daemon, merge, 0);
  await reached;
  if (prng.chance(0.5)) await writer.afterWrites(prng.below(4));
  else for (let turns = prng.below(20); turns > 0; turns--) await new Promise(setImmediate);
  await kill(daemon, writer);
}

/** What was answered before, but not read by us yet, does not count as promised. */
async function kill(daemon: Daemon, writer: RecordingWriter): Promise<void> {
  const dead = daemon.kill();
  writer.abandon();
  await dead;
}

async function stream(daemon: Daemon, merge: Merge, speed: number): Promise<void> {
  const nodes = (await daemon.qmp.execute("query-named-block-nodes", { flat: true })) as Record<
    string,
    string
  >[];
  const node = nodes.find(
    (each) =>
      each["drv"] !== "file" &&
      String(each["file"]).includes(`file-${merge.top}.img`) &&
      !String(each["file"]).startsWith("json:"),
  );
  await daemon.qmp.execute("block-stream", {
    "job-id": "merge",
    device: node!["node-name"],
    speed,
    ...(merge.base === undefined ? {} : { base: `file-${merge.base}.img` }),
  });
}

async function streamAgain(chain: Chain, merge: Merge, expected: string): Promise<void> {
  const again = await serveAgain(chain, { byLinks: true });
  await stream(again.daemon, merge, 0);
  await again.daemon.qmp.waitForEnd("merge");
  await compareImages(again.uri, expected);
  await again.daemon.quit();
  expect(await lettersOnDisk(chain.file("E"))).toBe(merge.merged);
  // The reference does not look for leaks when it opens an image.
  for (const letter of new Set([merge.top, "E"])) {
    if (IS_REFERENCE) await checkForErrors(chain.file(letter));
    else await checkClean(chain.file(letter));
  }
  await compareImages(chain.file("E"), expected, "qcow2");
}
