// Foreign NBD clients against the server, over a disk in memory: what they read, write and report must be
// right. Needs nbdinfo, nbdcopy, qemu-img, qemu-io and fio; a missing one fails its test by name.

import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { NbdServer } from "../nbd/server.ts";
import { MemoryBackend, type Pace } from "../nbd/testing/memory-backend.ts";
import { Prng } from "../src/base/prng.ts";
import { KiB, MiB } from "../src/base/units.ts";

const SIZE = 64 * MiB;

/**
 * Runs a program; its output, or an error that says how it failed. The server of this process goes on
 * meanwhile.
 */
function run(program: string, ...args: string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    let errors = "";
    child.stdout.on("data", (text) => {
      output += text;
    });
    child.stderr.on("data", (text) => {
      errors += text;
    });
    child.on("error", (error) => reject(new Error(`${program} cannot be run: ${error.message}`)));
    child.on("close", (code) => {
      if (code === 0) resolve(output);
      else reject(new Error(`${program} ${args.join(" ")}: exit ${code}\n${output}${errors}`));
    });
  });
}

const paces: [string, Pace][] = [
  ["at once", (operation) => operation()],
  ["later", (operation) => new Promise((resolve) => setImmediate(resolve)).then(operation)],
];

describe.each(paces)("backend finishes %s", (_, pace) => {
  const directory = mkdtempSync(join(tmpdir(), "nbd-clients-"));
  const path = join(directory, "socket");
  const uri = `nbd+unix:///disk?socket=${path}`;
  const file = (name: string) => join(directory, name);
  const server = new NbdServer();
  let backend: MemoryBackend;

  beforeAll(async () => {
    await server.listen({ path });
  });

  afterAll(async () => {
    expect(await server.close(5_000)).toBe(true);
    rmSync(directory, { recursive: true, force: true });
  });

  async function freshDisk(readOnly = false): Promise<void> {
    for (const name of server.exportNames()) await server.removeExport(name, "hard");
    backend = new MemoryBackend({ size: SIZE, pace, readOnly, description: "under test" });
    server.addExport({ name: "disk", backend });
    server.addExport({ name: "other", backend: new MemoryBackend({ size: 512 }) });
  }

  it("nbdinfo tells size, flags, block sizes, contexts and the list of exports", async () => {
    await freshDisk();
    const { exports } = JSON.parse(await run("nbdinfo", "--json", uri));
    expect(exports[0]).toMatchObject({
      "export-name": "disk",
      "export-size": SIZE,
      description: "under test",
      is_read_only: false,
      can_multi_conn: true,
      can_flush: true,
      can_fua: true,
      can_trim: true,
      can_zero: true,
      can_fast_zero: true,
      can_df: true,
      can_cache: true,
      block_size_minimum: 1,
      block_size_preferred: 4096,
      block_size_maximum: 32 * MiB,
      contexts: ["base:allocation", "qemu:allocation-depth"],
    });
    const list = JSON.parse(await run("nbdinfo", "--json", "--list", uri));
    expect(list.exports.map((one: Record<string, unknown>) => one["export-name"])).toEqual(["disk", "other"]);
    await freshDisk(true);
    expect(JSON.parse(await run("nbdinfo", "--json", uri)).exports[0].is_read_only).toBe(true);
  });

  it("nbdcopy copies in and out with many requests and connections, and keeps holes", async () => {
    await freshDisk();
    const image = Buffer.alloc(SIZE);
    const prng = new Prng(1);
    for (let i = 0; i < 40; i++) {
      const at = prng.below(SIZE - MiB);
      image.fill(prng.between(1, 255), at, at + prng.between(1, MiB));
    }
    writeFileSync(file("in.img"), image);
    await run("nbdcopy", "--connections=4", "--requests=64", file("in.img"), uri);
    expect(backend.bytes.equals(image)).toBe(true);
    await run("nbdcopy", "--connections=4", "--requests=64", uri, file("out.img"));
    expect(readFileSync(file("out.img")).equals(image)).toBe(true);
    const map = JSON.parse(await run("nbdinfo", "--json", "--map", uri)) as Record<string, number>[];
    for (const extent of map) {
      const { offset, length, type } = extent as { offset: number; length: number; type: number };
      if ((type & 2) !== 0)
        expect(image.subarray(offset, offset + length).every((byte) => byte === 0)).toBe(true);
    }
    expect(map.reduce((sum, extent) => sum + extent["length"]!, 0)).toBe(SIZE);
    expect(map.some((extent) => extent["type"] === 3)).toBe(true);
  });

  it("qemu-img converts, compares and maps; its map agrees with nbdinfo's", async () => {
    await freshDisk();
    const image = Buffer.alloc(SIZE);
    new Prng(2).fill(image.subarray(3 * MiB + 512, 3 * MiB + 512 + 300 * KiB));
    image.fill(7, 40 * MiB, 50 * MiB);
    writeFileSync(file("q.img"), image);
    await run("qemu-img", "convert", "-n", "-W", "-f", "raw", "-O", "raw", file("q.img"), uri);
    expect(backend.bytes.equals(image)).toBe(true);
    await run("qemu-img", "compare", "-f", "raw", "-F", "raw", file("q.img"), uri);
    await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, file("q.qcow2"));
    await run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", file("q.qcow2"), uri);
    const qemu = JSON.parse(await run("qemu-img", "map", "--output=json", "-f", "raw", uri)) as Record<
      string,
      number
    >[];
    const info = JSON.parse(await run("nbdinfo", "--json", "--map", uri)) as Record<string, number>[];
    expect(qemu.map(({ start, length, zero }) => [start, length, zero])).toEqual(
      info.map(({ offset, length, type }) => [offset, length, type === 3]),
    );
  });

  it("qemu-io writes, zeroes, discards and flushes with extended headers", async () => {
    await freshDisk();
    const commands = [
      "write -P 5 1M 3M",
      "read -P 5 1M 3M",
      "write -z 2M 64k",
      "read -P 0 2M 64k",
      "write -z -u 2560k 128k",
      "read -P 5 2688k 64k",
      "discard 3M 512k",
      "write -f -P 9 1 511",
      "read -P 9 1 511",
      "read -P 0 512 512",
      "write -P 3 67108352 512",
      "flush",
    ];
    const output = await run("qemu-io", "-f", "raw", ...commands.flatMap((command) => ["-c", command]), uri);
    expect(output).not.toMatch(/failed|error|Pattern verification/i);
    expect(backend.bytes[2 * MiB]).toBe(0);
    expect(backend.bytes[SIZE - 1]).toBe(3);
    expect(backend.count("fua")).toBeGreaterThan(0);
  });

  it("qemu-img bench runs deep queues of reads and writes", async () => {
    await freshDisk();
    // 900 steps of 70001 bytes stay inside the disk; qemu-img bench itself fails at the end of a disk.
    for (const args of [[], ["-w", "--flush-interval=100"], ["-w", "-o", "512", "-s", "70001"]]) {
      await run("qemu-img", "bench", "-c", "900", "-d", "64", "-f", "raw", ...args, uri);
    }
    expect(backend.count("flush")).toBeGreaterThan(10);
  });

  it("fio verifies random reads, writes and trims of 512 B to 256 KiB over four connections", async () => {
    await freshDisk();
    const job = [
      "--name=verify",
      "--ioengine=nbd",
      `--uri=${uri}`,
      "--rw=randrw",
      "--bsrange=512-256k",
      "--bs_unaligned=0",
      "--iodepth=32",
      "--numjobs=4",
      `--size=${SIZE / 4}`,
      `--offset_increment=${SIZE / 4}`,
      "--verify=crc32c",
      "--verify_fatal=1",
      "--verify_state_save=0",
      "--randseed=7",
      "--output-format=terse",
    ];
    await run("fio", ...job);
    const trims = job.map((arg) => (arg === "--rw=randrw" ? "--rw=randtrim" : arg));
    await run("fio", ...trims.filter((arg) => !arg.startsWith("--verify")));
    expect(backend.count("trim")).toBeGreaterThan(100);
  });
});
