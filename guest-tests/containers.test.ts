// The daemon in a container and its clients in others: what the Dockerfile makes, run as docs/containers.md
// says.

import { randomBytes } from "node:crypto";
import { chmodSync, chownSync, mkdirSync, readdirSync } from "node:fs";
import path from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { MiB } from "../src/base/units.ts";
import { type Engine, findEngine, isProgram } from "./containers/engine.ts";
import { buildImages, CLIENT_PROGRAMS, type Images } from "./containers/images.ts";
import { type Box, DAEMON_USER, NBD_PORT, TestNetwork } from "./containers/network.ts";
import { checkPromises, promisesIn, promisesScript } from "./containers/promises.ts";
import { Chain, checkClean, checkForErrors, compareImages, lettersOnDisk } from "./harness/chain.ts";
import { later, PATIENCE_MS } from "./harness/patience.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { run } from "./harness/tool.ts";

const LONG = process.env["STRATA_LONG"] === "1";
const DISK_BYTES = 128 * MiB;
const URI = `nbd://strata/virtio0`;
const SERVE = ["--port", String(NBD_PORT), "--bind", "0.0.0.0", "--insecure"];

let engine: Engine | string = "the search for an engine has failed";
let images: Images;

beforeAll(async () => {
  const missing = CLIENT_PROGRAMS.filter((program) => !isProgram(program));
  engine = missing.length > 0 ? `missing programs: ${missing.join(", ")}` : await findEngine();
  if (typeof engine === "string") {
    console.warn(`tests in containers are skipped: ${engine}`);
    return;
  }
  images = await buildImages(engine, `strata-test-${randomBytes(4).toString("hex")}`);
});

afterAll(async () => {
  if (typeof engine === "string") return;
  if (!engine.isOurs) {
    const docker = engine.client.container.dockerode;
    for (const name of images?.names ?? []) await docker.getImage(name).remove({ force: true });
  }
  await engine.stop();
});

beforeEach((context) => context.skip(typeof engine === "string", String(engine)));

interface Place {
  readonly network: TestNetwork;
  /** Folder of the images; the daemon's user owns it. */
  readonly disks: string;
  /** Folder that clients see as /scratch. */
  readonly scratch: string;
}

async function newPlace(): Promise<Place> {
  const directory = scratchDirectory("onDisk");
  const disks = path.join(directory, "disks");
  const scratch = path.join(directory, "scratch");
  for (const each of [disks, scratch]) mkdirSync(each);
  giveAway(disks);
  return { network: await TestNetwork.make(engine as Engine, images), disks, scratch };
}

/** Everything in the folder becomes the daemon's. */
function giveAway(disks: string): void {
  for (const each of [".", ...readdirSync(disks)])
    chownSync(path.join(disks, each), DAEMON_USER, DAEMON_USER);
}

async function newChain(disks: string, layers: number, seed: number): Promise<Chain> {
  const chain = await Chain.build(disks, { layers, bytes: DISK_BYTES, seed, bytesPerLayer: 8 * MiB });
  giveAway(disks);
  return chain;
}

/** The name of a layer as `strata serve` calls it, and its file in the container. */
const fileOf = (letter: string) => `file-${letter}.img`;

/** fio's words: a job that checks what it writes to a part of the disk. */
function fio(uri: string, offset: number, bytes: number, seed: number, ...more: readonly string[]): string[] {
  const what = [
    "--name=verify",
    "--ioengine=nbd",
    `--uri=${uri}`,
    "--thread=1",
    "--rw=randrw",
    "--iodepth=16",
  ];
  const where = [`--offset=${offset}`, `--size=${bytes}`, "--bsrange=512-128k", `--randseed=${seed}`];
  const checks = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--output-format=terse"];
  return ["fio", ...what, ...where, ...checks, ...more];
}

/** Waits until something is so; the test's patience is the limit. */
async function until(condition: () => boolean | Promise<boolean>, missing: string): Promise<void> {
  const deadline = performance.now() + PATIENCE_MS;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(`waited in vain: ${missing}`);
    await pause(50);
  }
}

/** A client that keeps a connection busy, and beside it a program that logs what it was promised. */
class BusyClient {
  readonly ended: Promise<unknown>;
  readonly #log: string;
  #words = "";

  constructor(client: Box, scratch: string, offset: number) {
    this.#log = path.join(scratch, "log");
    // It writes the same places again and again, and fio cannot tell its rounds apart: others verify.
    const busy = fio(URI, offset + 64 * MiB, 16 * MiB, 7, "--time_based", "--runtime=3600", "--verify=0");
    const script = promisesScript(URI, offset, "/scratch/log");
    const work = [client.run(...busy), client.run("busybox", "sh", "-c", script)];
    const fail = (error: unknown) => {
      this.#words = String(error);
    };
    this.ended = Promise.all(work.map((each) => each.then(() => undefined, fail)));
  }

  /** How much has been promised so far. */
  get promises(): number {
    return promisesIn(this.#log);
  }

  /** Waits until this much has been promised, since the client began. */
  async promised(count: number): Promise<void> {
    await until(() => {
      if (this.#words !== "") throw new Error(`the client has ended: ${this.#words}`);
      return this.promises >= count;
    }, `there are ${this.promises} promises of ${count}`);
  }
}

describe("the image", () => {
  it("runs as somebody without rights on a read-only root, is healthy, and makes and serves a disk", async () => {
    const { network, scratch } = await newPlace();
    const volume = await network.volume();
    const maker = await network.task({ images: volume, command: ["create", "disk.qcow2", "64M"] });
    expect(maker).toMatchObject({ ExitCode: 0 });
    const began = performance.now();
    const daemon = await network.daemon({
      images: volume,
      command: ["serve", "disk.qcow2", ...SERVE],
      publish: true,
    });
    console.log(`the container serves its disk after ${Math.round(performance.now() - began)} ms`);
    const look = `const { readFileSync, writeFileSync } = require("node:fs");
      console.log(readFileSync("/proc/1/status", "utf8"));
      try { writeFileSync("/app/new", ""); } catch (error) { console.log(error.code); }`;
    const told = await daemon.run("node", "-e", look);
    for (const line of [
      /^Uid:\t1000\t1000/m,
      /^CapEff:\t0+$/m,
      /^CapBnd:\t0+$/m,
      /^NoNewPrivs:\t1$/m,
      /^EROFS$/m,
    ]) {
      expect(told).toMatch(line);
    }
    await until(
      async () => (await daemon.state()).Health?.Status === "healthy",
      "the container is not healthy",
    );
    expect(await daemon.run("strata", "chain")).toContain("disk");
    // From this machine, through the published port.
    const list = JSON.parse(
      await run("nbdinfo", "--json", "--list", `nbd://localhost:${daemon.port(NBD_PORT)}`),
    );
    expect(list.exports[0]).toMatchObject({ "export-name": "virtio0", "export-size": 64 * MiB });
    const client = await network.client(scratch);
    await client.run("qemu-io", "-f", "raw", "-c", "write -P 5 1M 3M", "-c", "read -P 5 1M 3M", URI);
    expect(await daemon.stop()).toMatchObject({ ExitCode: 0 });
  });

  it("serves a unix socket in a volume, also under another user, with the reference's command line", async () => {
    const { network, disks, scratch } = await newPlace();
    await run("qemu-img", "create", "-q", "-f", "qcow2", path.join(disks, "disk.qcow2"), "64M");
    const sockets = path.join(scratch, "sockets");
    mkdirSync(sockets);
    chmodSync(sockets, 0o777);
    chmodSync(disks, 0o777);
    chmodSync(path.join(disks, "disk.qcow2"), 0o666);
    const daemon = await network.daemon({
      images: disks,
      user: "4711:4711",
      volumes: { [sockets]: "/sockets" },
      entrypoint: "strata-storage-daemon",
      command: [
        ...["--blockdev", "qcow2,node-name=disk,file.driver=file,file.filename=/images/disk.qcow2"],
        ...["--nbd-server", "addr.type=unix,addr.path=/sockets/nbd"],
        ...["--export", "nbd,id=virtio0,node-name=disk,name=virtio0,writable=on"],
        ...["--pidfile", "/sockets/ready"],
      ],
    });
    await until(() => readdirSync(sockets).includes("ready"), "the daemon is not ready");
    const client = await network.client(scratch, { [sockets]: "/sockets" });
    await client.run(...fio("nbd+unix:///virtio0?socket=/sockets/nbd", 0, 16 * MiB, 3));
    expect(await daemon.stop()).toMatchObject({ ExitCode: 0 });
    expect(readdirSync(sockets)).toEqual([]);
    await checkClean(path.join(disks, "disk.qcow2"));
  });
});

describe("clients in another container", () => {
  it("copy, convert, compare, write and verify while two images are merged into the top", async () => {
    const { network, disks, scratch } = await newPlace();
    const chain = await newChain(disks, 4, 11);
    const before = await chain.copyOf(chain.top);
    const daemon = await network.daemon({ images: disks, command: ["serve", fileOf(chain.top), ...SERVE] });
    const client = await network.client(scratch, { [disks]: "/before" });
    const info = JSON.parse(await client.run("nbdinfo", "--json", URI));
    expect(info.exports[0]).toMatchObject({
      "export-size": DISK_BYTES,
      can_multi_conn: true,
      can_trim: true,
    });
    const merge = later(daemon.run("strata", "stream", "--base", fileOf("A"), "--speed", "4M"));
    await client.run("nbdcopy", "--connections=4", URI, "copy.raw");
    const raws = ["qemu-img", "compare", "-f", "raw", "-F", "raw"];
    await client.run(...raws, `/before/${path.basename(before)}`, "copy.raw");
    await client.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", URI, "copy.qcow2");
    await client.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "copy.qcow2", "copy.raw");
    await client.run(...fio(URI, 0, 32 * MiB, 5));
    await merge;
    await client.run(...fio(URI, 0, 32 * MiB, 5, "--verify_only=1"));
    await client.run("nbdcopy", URI, "after.raw");
    expect(await daemon.stop()).toMatchObject({ ExitCode: 0 });
    expect(await lettersOnDisk(chain.file(chain.top))).toBe("A D");
    await compareImages(chain.file(chain.top), path.join(scratch, "after.raw"), "qcow2");
    await checkClean(chain.file(chain.top));
  });

  it("work and verify over a long line, beside a merge", async () => {
    const delayMs = 20;
    const { network, disks, scratch } = await newPlace();
    const chain = await newChain(disks, 3, 12);
    const daemon = await network.daemon({ images: disks, command: ["serve", fileOf(chain.top), ...SERVE] });
    const client = await network.client(scratch);
    const byKernel = await client.delay(2 * delayMs);
    if (!byKernel) await network.proxy(delayMs);
    console.log(`packets are delayed by ${byKernel ? "netem" : "a proxy: this kernel has no netem"}`);
    const uri = byKernel ? URI : URI.replace("strata", "far");
    const began = performance.now();
    await client.run("nbdinfo", "--json", uri);
    // A handshake takes several turns; a delay that is not there would fail the test, a slow machine would
    // not.
    expect(performance.now() - began).toBeGreaterThan(4 * 2 * delayMs);
    const merge = later(daemon.run("strata", "stream"));
    await client.run(...fio(uri, 0, 8 * MiB, 9, "--iodepth=64"));
    await merge;
    await client.run("nbdcopy", "--requests=64", uri, "far.raw");
    expect(await daemon.stop()).toMatchObject({ ExitCode: 0 });
    expect(await lettersOnDisk(chain.file(chain.top))).toBe(chain.top);
    await compareImages(chain.file(chain.top), path.join(scratch, "far.raw"), "qcow2");
    await checkClean(chain.file(chain.top));
  });
});

describe("a client that is cut off", () => {
  const ways: [string, (client: Box) => Promise<void>][] = [
    ["is killed", (client) => client.kill()],
    ["stands still", (client) => client.pause()],
    ["loses its network", (client) => client.disconnect()],
  ];

  it.each(ways)("and %s harms nobody else, and what it flushed is there", async (_, cut) => {
    const { network, disks, scratch } = await newPlace();
    const chain = await newChain(disks, 3, 13);
    const daemon = await network.daemon({ images: disks, command: ["serve", fileOf(chain.top), ...SERVE] });
    const lost = await network.client(scratch);
    const other = await network.client(scratch);
    const busy = new BusyClient(lost, scratch, 0);
    await busy.promised(5);
    const merge = later(daemon.run("strata", "stream", "--speed", "16M"));
    const verified = later(other.run(...fio(URI, 96 * MiB, 16 * MiB, 21)));
    await busy.promised(10);
    await cut(lost);
    await verified;
    await merge;
    await other.run(...fio(URI, 96 * MiB, 16 * MiB, 21, "--verify_only=1"));
    expect(await daemon.run("strata", "jobs")).toBeDefined();
    expect(await daemon.state()).toMatchObject({ Status: "running" });
    // The lost connection is still open here in two of the three ways; it must not hold up the end.
    expect(await daemon.stop()).toMatchObject({ ExitCode: 0 });
    await lost.end();
    await busy.ended;
    await checkPromises(chain.file(chain.top), 0, busy.promises);
    expect(await lettersOnDisk(chain.file(chain.top))).toBe(chain.top);
    await checkClean(chain.file(chain.top));
  });

  it("goes on where it was when it only stood still", async () => {
    const { network, disks, scratch } = await newPlace();
    const chain = await newChain(disks, 2, 14);
    const daemon = await network.daemon({ images: disks, command: ["serve", fileOf(chain.top), ...SERVE] });
    const client = await network.client(scratch);
    const busy = new BusyClient(client, scratch, 0);
    const verified = later(client.run(...fio(URI, 96 * MiB, 16 * MiB, 31)));
    for (let round = 1; round <= (LONG ? 20 : 3); round++) {
      await busy.promised(5 * round);
      await client.pause();
      await daemon.run("strata", "jobs");
      await client.resume();
    }
    await verified;
    await busy.promised(busy.promises + 5);
    expect(await daemon.stop()).toMatchObject({ ExitCode: 0 });
    await checkClean(chain.file(chain.top));
  });
});

describe("SIGTERM", () => {
  it("ends the daemon in its time of grace, with clients at work and a merge half way; nothing flushed is lost", async () => {
    const { network, disks, scratch } = await newPlace();
    const chain = await newChain(disks, 4, 15);
    const serve = { images: disks, command: ["serve", fileOf(chain.top), ...SERVE] };
    const daemon = await network.daemon(serve);
    const client = await network.client(scratch);
    const busy = new BusyClient(client, scratch, 0);
    await daemon.run("strata", "stream", "--speed", "1M", "--no-wait");
    await busy.promised(20);
    const ended = await daemon.stop();
    expect({ ...ended, log: await daemon.log() }).toMatchObject({ Status: "exited", ExitCode: 0 });
    await client.end();
    await busy.ended;
    expect(await checkForErrors(chain.file(chain.top))).toBe(0);
    expect(await lettersOnDisk(chain.file(chain.top))).toBe("A B C D");
    await checkPromises(chain.file(chain.top), 0, busy.promises);
    await network.daemon(serve);
    const again = await network.client(scratch);
    await again.run(...fio(URI, 96 * MiB, 16 * MiB, 41));
  });
});
