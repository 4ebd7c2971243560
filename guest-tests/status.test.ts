// What foreign clients see of the server: block status, sizes, several exports, flushes, copies in and out.

import { openSync, readSync } from "node:fs";
import path from "node:path";
import { expect, it } from "vitest";
import { NbdClient } from "../nbd/client.ts";
import { Prng } from "../src/base/prng.ts";
import { KiB, MiB } from "../src/base/units.ts";
import { Chain, compareImages } from "./harness/chain.ts";
import { IS_REFERENCE, nbdServerArguments, startDaemon } from "./harness/daemon.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { exportArguments, serveChain } from "./harness/serve.ts";
import { run, runToFailure } from "./harness/tool.ts";

interface MapEntry {
  readonly start: number;
  readonly length: number;
  readonly depth: number;
  readonly present: boolean;
  readonly zero: boolean;
  readonly data: boolean;
}

/** A value per piece of the disk, neighbours with one value joined. */
type Stretch = [offset: number, bytes: number, value: string];

function joined(pieces: Iterable<Stretch>): Stretch[] {
  const result: Stretch[] = [];
  for (const [offset, bytes, value] of pieces) {
    const last = result.at(-1);
    if (last !== undefined && last[2] === value) last[1] += bytes;
    else result.push([offset, bytes, value]);
  }
  return result;
}

async function mapOfImage(file: string): Promise<MapEntry[]> {
  return JSON.parse(await run("qemu-img", "map", "-U", "--output=json", "-f", "qcow2", file)) as MapEntry[];
}

async function mapOfExport(
  uri: string,
  context?: string,
): Promise<{ offset: number; length: number; type: number }[]> {
  const map = context === undefined ? "--map" : `--map=${context}`;
  return JSON.parse(await run("nbdinfo", map, "--json", uri)) as {
    offset: number;
    length: number;
    type: number;
  }[];
}

it.each([1, 2, 3])("nbdinfo --map agrees with qemu-img map, also after a merge: seed %i", async (seed) => {
  const { chain, daemon, uri } = await serveChain({
    seed,
    bytes: 40 * MiB + 512,
    options: "cluster_size=16k",
  });
  const same = async () => {
    // The reference has the tables of a finished merge in its memory only, until somebody flushes.
    if (IS_REFERENCE) await run("qemu-io", "-f", "raw", "-c", "flush", uri);
    const told = (await mapOfExport(uri)).map(({ offset, length, type }): Stretch => {
      return [offset, length, `${(type & 1) === 0 ? "data" : "hole"} ${(type & 2) === 0 ? "" : "zero"}`];
    });
    const truth = (await mapOfImage(chain.file("E"))).map((entry): Stretch => {
      return [entry.start, entry.length, `${entry.data ? "data" : "hole"} ${entry.zero ? "zero" : ""}`];
    });
    expect(joined(told)).toEqual(joined(truth));
  };
  await same();
  await daemon.qmp.execute("block-stream", { "job-id": "merge", device: "D", "base-node": "B" });
  await daemon.qmp.waitForEnd("merge");
  await same();
  await daemon.qmp.execute("block-stream", { "job-id": "rest", device: "E" });
  await daemon.qmp.waitForEnd("rest");
  await same();
});

it("qemu:allocation-depth tells which layer holds the data", async () => {
  const directory = scratchDirectory();
  const chain = await Chain.build(directory, { bytes: 32 * MiB });
  const daemon = await startDaemon(directory, [
    ...nbdServerArguments(directory),
    ...chain.nodeArguments(),
    ...exportArguments("E", "disk", "writable=on,allocation-depth=on"),
  ]);
  const told = (await mapOfExport(daemon.uri("disk"), "qemu:allocation-depth")).map(
    ({ offset, length, type }): Stretch => [offset, length, String(type)],
  );
  const truth = (await mapOfImage(chain.file("E"))).map(
    (entry): Stretch => [entry.start, entry.length, String(entry.present ? entry.depth + 1 : 0)],
  );
  expect(joined(told)).toEqual(joined(truth));
  expect(new Set(told.map(([, , depth]) => depth))).toEqual(new Set(["0", "1", "2", "3", "4", "5"]));
});

it("copies in and out with nbdcopy, qemu-img and qemu-io", async () => {
  let copy = "";
  const { directory, chain, daemon, uri } = await serveChain({
    bytes: 32 * MiB + 512,
    before: async (built) => {
      copy = await built.copyOf("E");
    },
  });
  const out = path.join(directory, "out.raw");
  await run("nbdcopy", uri, out);
  await run("cmp", copy, out);
  await run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, path.join(directory, "converted.raw"));
  await run("cmp", copy, path.join(directory, "converted.raw"));
  // Something else altogether goes in: shifted by a sector, so that no cluster stays what it was.
  const other = path.join(directory, "other.raw");
  const shift = ["bs=512", "skip=1", `if=${copy}`, `of=${other}`];
  await run("qemu-img", "dd", "-f", "raw", "-O", "raw", ...shift);
  await run("qemu-img", "resize", "-q", "-f", "raw", other, String(chain.bytes));
  await run("nbdcopy", "--flush", other, uri);
  await compareImages(uri, other);
  await run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", copy, uri);
  await compareImages(uri, copy);
  await run(
    "qemu-io",
    "-f",
    "raw",
    "-c",
    "write -P 7 1000 70000",
    "-c",
    "read -P 7 1000 70000",
    "-c",
    "flush",
    uri,
  );
  await run(
    "qemu-io",
    "-f",
    "raw",
    "-c",
    "discard 64k 64k",
    "-c",
    "write -z 200k 100k",
    "-c",
    "read -P 0 200k 100k",
    uri,
  );
  await daemon.quit();
  await run("qemu-img", "check", "-q", chain.file("E"));
});

it("qemu-img bench: many requests, also with flushes between", async () => {
  const { chain, daemon, uri } = await serveChain({ bytes: 64 * MiB });
  const bench = ["bench", "-q", "-f", "raw", "-d", "64"];
  await run("qemu-img", ...bench, "-c", "4000", uri);
  await run("qemu-img", ...bench, "-c", "4000", "-w", "--pattern=165", "--flush-interval=500", uri);
  await run(
    "qemu-img",
    ...bench,
    "-c",
    "100",
    "-s",
    String(MiB),
    "-S",
    String(MiB / 2),
    "-w",
    "-o",
    "512",
    uri,
  );
  await daemon.quit();
  await run("qemu-img", "check", "-q", chain.file("E"));
});

it("tells its abilities, sizes and names", async () => {
  const directory = scratchDirectory();
  const chain = await Chain.build(directory, { bytes: 8 * MiB + 512 });
  const other = path.join(directory, "other.raw");
  await run("qemu-img", "create", "-q", "-f", "raw", other, "3M");
  const daemon = await startDaemon(directory, [
    ...nbdServerArguments(directory),
    ...chain.nodeArguments(),
    ...["--blockdev", `driver=raw,node-name=other,file.driver=file,file.filename=${other}`],
    ...exportArguments("E", "system"),
    ...exportArguments("E", "system to look at", "writable=off,description=read only"),
    ...exportArguments("other", "data"),
  ]);
  const list = `nbd+unix:///?socket=${daemon.nbdSocket}`;
  const { exports } = JSON.parse(await run("nbdinfo", "--list", "--json", list)) as {
    exports: Record<string, unknown>[];
  };
  const told = exports.map((each) => [each["export-name"], each["export-size"], each["is_read_only"]]);
  told.sort(([one], [other]) => (String(one) < String(other) ? -1 : 1));
  expect(told).toEqual([
    ["data", 3 * MiB, false],
    ["system", 8 * MiB + 512, false],
    ["system to look at", 8 * MiB + 512, true],
  ]);
  expect(exports.find((each) => each["is_read_only"])?.["description"]).toBe("read only");
  for (const ability of [
    "can_flush",
    "can_fua",
    "can_trim",
    "can_zero",
    "can_multi_conn",
    "can_df",
    "can_cache",
  ]) {
    expect(exports.find((each) => each["export-name"] === "system")).toMatchObject({ [ability]: true });
  }
  expect(await runToFailure("nbdinfo", "--size", daemon.uri("nobody"))).toMatch(/nobody/);
});

it("a read-only export shows what is written through the other one, and refuses every write", async () => {
  const directory = scratchDirectory();
  const chain = await Chain.build(directory, { bytes: 8 * MiB });
  const daemon = await startDaemon(directory, [
    ...nbdServerArguments(directory),
    ...chain.nodeArguments(),
    ...exportArguments("E", "writer"),
    ...exportArguments("E", "reader", "writable=off"),
  ]);
  const writer = await NbdClient.connect(daemon.uri("writer"));
  const reader = await NbdClient.connect(daemon.uri("reader"));
  for (let at = 0; at < 8 * MiB; at += 700 * KiB) {
    await writer.write(at, Buffer.alloc(5000, at / KiB + 1));
    expect(await reader.read(at, 5000)).toEqual(Buffer.alloc(5000, at / KiB + 1));
  }
  // The reference answers EINVAL; the protocol wants EPERM.
  const code = IS_REFERENCE ? "EINVAL" : "EPERM";
  await expect(reader.write(0, Buffer.alloc(512))).rejects.toMatchObject({ code });
  await expect(reader.writeZeroes(0, 512)).rejects.toMatchObject({ code });
  await expect(reader.trim(0, 512)).rejects.toMatchObject({ code });
  await expect(reader.flush()).resolves.toBeUndefined();
  expect(await runToFailure("qemu-io", "-f", "raw", "-c", "write 0 512", daemon.uri("reader"))).toMatch(
    /read.only|Permission denied/i,
  );
});

it("a flush on one connection covers the writes answered on all others", async () => {
  const { directory, chain, daemon, uri } = await serveChain({ bytes: 24 * MiB, base: "raw" });
  const prng = new Prng(9);
  const clients = await Promise.all([1, 2, 3, 4].map(() => NbdClient.connect(uri)));
  const written = new Map<number, Buffer>();
  for (let round = 0; round < 40; round++) {
    const writes = clients.slice(1).map(async (client) => {
      const data = prng.fill(Buffer.alloc(512 * prng.between(1, 40)));
      const offset = 32 * KiB * prng.below((24 * MiB) / (32 * KiB));
      if (written.has(offset)) return;
      written.set(offset, data);
      await client.write(offset, data);
    });
    await Promise.all(writes);
    await clients[0]!.flush();
  }
  await daemon.kill();
  const now = path.join(directory, "now.raw");
  await run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", chain.file("E"), now);
  const file = openSync(now, "r");
  for (const [offset, data] of written) {
    const found = Buffer.alloc(data.length);
    readSync(file, found, 0, data.length, offset);
    expect(found.equals(data), `write at ${offset}`).toBe(true);
  }
});

it("serves over TCP too, to both address families of a name", async () => {
  const directory = scratchDirectory();
  const chain = await Chain.build(directory, { bytes: 8 * MiB, layers: 2 });
  const copy = await chain.copyOf("B");
  const daemon = await startDaemon(directory, [...chain.nodeArguments()]);
  const data = { host: "localhost", port: String(20000 + (process.pid % 20000)) };
  await daemon.qmp.execute("nbd-server-start", { addr: { type: "inet", data } });
  const settings = { type: "nbd", id: "export", "node-name": "B", name: "disk" };
  await daemon.qmp.execute("block-export-add", settings);
  await compareImages(`nbd://localhost:${data.port}/disk`, copy);
  await compareImages(`nbd://127.0.0.1:${data.port}/disk`, copy);
});
