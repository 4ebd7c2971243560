// Bad input to the running daemon: each gets its own clear message, harms nothing else, and the daemon stays
// up.

import { copyFileSync, openSync, truncateSync, writeFileSync, writeSync } from "node:fs";
import { createServer } from "node:net";
import path from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { NbdClient } from "../nbd/client.ts";
import { KiB, MiB } from "../src/base/units.ts";
import { Chain, checkForErrors } from "./harness/chain.ts";
import {
  type Daemon,
  IS_REFERENCE,
  nbdServerArguments,
  startDaemon,
  startRefused,
} from "./harness/daemon.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { exportArguments, serveChain } from "./harness/serve.ts";
import { HeldImage, run, runToFailure } from "./harness/tool.ts";

let directory = "";
let daemon: Daemon;

/** An idle daemon with an NBD server. */
async function startIdle(): Promise<void> {
  directory = scratchDirectory();
  daemon = await startDaemon(directory, nbdServerArguments(directory));
}

function image(name: string): string {
  return path.join(directory, name);
}

async function createImage(name: string, ...options: string[]): Promise<string> {
  await run("qemu-img", "create", "-q", "-f", "qcow2", ...options, image(name), "16M");
  return image(name);
}

function open(filename: string, more: Record<string, unknown> = {}): Promise<unknown> {
  const file = { driver: "file", filename };
  return daemon.qmp.execute("blockdev-add", { driver: "qcow2", "node-name": "disk", file, ...more });
}

/** The words of the error; the daemon is well afterwards. */
async function refusal(promise: Promise<unknown>): Promise<string> {
  const words = await promise.then(
    () => "it was accepted",
    (error: Error) => error.message,
  );
  expect(await daemon.isAlive()).toBe(true);
  return words;
}

function patch(filename: string, offset: number, ...bytes: number[]): void {
  const file = openSync(filename, "r+");
  writeSync(file, Buffer.from(bytes), 0, bytes.length, offset);
}

describe("images that cannot be opened", () => {
  beforeEach(startIdle);

  it("a missing image", async () => {
    expect(await refusal(open(image("none.img")))).toMatch(/^Could not open '.*none\.img': No such file/);
  });

  it("a missing backing file, named with the image that wants it", async () => {
    await createImage("top.img", "-u", "-b", "gone.img", "-F", "qcow2");
    expect(await refusal(open(image("top.img")))).toMatch(/backing file.*gone\.img'?: No such file/);
  });

  it("a chain that bites its tail", async () => {
    await createImage("one.img", "-u", "-b", "two.img", "-F", "qcow2");
    await createImage("two.img", "-u", "-b", "one.img", "-F", "qcow2");
    expect(await refusal(open(image("one.img")))).toMatch(IS_REFERENCE ? /lock/ : /cycle/);
    // Without the lock of a writer the reference goes round for ever.
    if (!IS_REFERENCE) expect(await refusal(open(image("one.img"), { "read-only": true }))).toMatch(/cycle/);
  });

  it("another format than stated", async () => {
    writeFileSync(image("raw.img"), Buffer.alloc(MiB));
    expect(await refusal(open(image("raw.img")))).toMatch(/^Image is not in qcow2 format/);
    await createImage("top.img", "-u", "-b", "raw.img", "-F", "qcow2");
    expect(await refusal(open(image("top.img")))).toMatch(/backing file.*Image is not in qcow2 format/);
  });

  it("a directory, an empty file, half a header", async () => {
    expect(await refusal(open(directory))).toMatch(/Is a directory|not a regular file/);
    writeFileSync(image("empty.img"), "");
    expect(await refusal(open(image("empty.img")))).toMatch(/^Image is not in qcow2 format|short|header/);
    truncateSync(await createImage("half.img"), 50);
    expect(await refusal(open(image("half.img")))).toMatch(/header/);
  });

  const ABSURD: [name: string, offset: number, bytes: number[], words: RegExp][] = [
    ["version 9", 4, [0, 0, 0, 9], /version 9/],
    ["clusters of 2^64 bytes", 20, [0, 0, 0, 64], /^Unsupported cluster size/],
    ["a disk of 2^63 bytes", 24, [0x7f, 255, 255, 255, 255, 255, 255, 255], /^Image is too big|size/],
    ["an L1 table of 2^31 entries", 36, [0x7f, 255, 255, 255], /L1 table too large/],
    ["an L1 table at an odd place", 40, [0, 0, 0, 0, 0, 0, 0, 19], /L1 table offset invalid/],
    ["a refcount table of 2^31 clusters", 56, [0x7f, 255, 255, 255], /^Reference count table too large/],
    ["a refcount table at an odd place", 48, [0, 0, 0, 0, 0, 0, 0, 19], /^Reference count table offset/],
    ["refcounts of 2^32 bits", 96, [0, 0, 0, 32], /^Reference count entry width too large/],
    ["an unknown feature", 72, [0x80, 0, 0, 0, 0, 0, 0, 0], /^Unsupported qcow2 feature/],
    ["an image marked corrupt", 79, [2], /corrupt/],
    ["an external data file", 79, [4], /data.file/],
    ["encryption", 35, [1], /encrypt/i],
    ["2^31 snapshots", 60, [0x7f, 255, 255, 255], /^Snapshot table too large/],
    ["a header of 16 bytes", 100, [0, 0, 0, 16], /^qcow2 header too short/],
    [
      "a backing name of 2^31 bytes",
      8,
      [0, 0, 0, 0, 0, 0, 2, 0, 0x7f, 255, 255, 255],
      /^Backing file name too long/,
    ],
  ];

  it("header fields that cannot be, each by its name, all by one daemon", async () => {
    const whole = await createImage("whole.img");
    const filename = image("absurd.img");
    for (const [name, offset, bytes, words] of ABSURD) {
      copyFileSync(whole, filename);
      patch(filename, offset, ...bytes);
      expect(await refusal(open(filename)), name).toMatch(words);
      // Nothing is left open or locked: another program may have it.
      copyFileSync(whole, filename);
      await run("qemu-io", "-f", "qcow2", "-c", "write -q 0 512", filename);
    }
  });

  // The reference takes what is missing at the end of a file for zeros.
  it.skipIf(IS_REFERENCE)("tables that the file is too short for", async () => {
    const whole = await createImage("whole.img");
    await run("qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 1M", whole);
    // Header, refcount table, refcount block, L1, L2: one cluster each.
    for (const clusters of [1, 3]) {
      const cut = image(`cut-${clusters}.img`);
      copyFileSync(whole, cut);
      truncateSync(cut, clusters * 64 * KiB);
      expect(await refusal(open(cut))).toMatch(/table/);
    }
  });
});

describe("images that go wrong while they are served", () => {
  beforeEach(startIdle);

  async function serve(filename: string): Promise<NbdClient> {
    await open(filename, { discard: "unmap" });
    const settings = { type: "nbd", id: "export", "node-name": "disk", name: "disk", writable: true };
    await daemon.qmp.execute("block-export-add", settings);
    return NbdClient.connect(daemon.uri("disk"));
  }

  // The reference takes what is missing at the end of a file for zeros.
  it.skipIf(IS_REFERENCE)(
    "an L2 table past the end of the file: the guest gets an error for what it maps",
    async () => {
      const filename = await createImage("disk.img");
      await run("qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 1M", filename);
      patch(filename, 3 * 64 * KiB, 0x80, 0, 0, 0x7f, 0, 0, 0, 0);
      const client = await serve(filename);
      await expect(client.read(0, 512)).rejects.toMatchObject({ code: "EIO" });
      await expect(client.write(0, Buffer.alloc(512))).rejects.toMatchObject({ code: "EIO" });
      expect(await daemon.isAlive()).toBe(true);
    },
  );

  it.each([
    ["the refcount table", 1],
    ["a refcount block", 2],
    ["the L1 table", 3],
    ["an L2 table", 4],
  ])(
    "a data cluster that overlaps %s: the write is refused and the table stays whole",
    async (_what, cluster) => {
      const filename = await createImage("disk.img");
      await run(
        "qemu-io",
        "-f",
        "qcow2",
        "-c",
        "write -q -P 1 0 64k",
        "-c",
        "write -q -P 2 64k 64k",
        filename,
      );
      const entry = Buffer.alloc(8);
      entry.writeBigUInt64BE((1n << 63n) | BigInt(cluster * 64 * KiB));
      patch(filename, 4 * 64 * KiB, ...entry);
      const client = await serve(filename);
      expect(await client.read(64 * KiB, 512)).toEqual(Buffer.alloc(512, 2));
      await expect(client.write(0, Buffer.alloc(4096, 0xee))).rejects.toMatchObject({ code: "EIO" });
      expect(await daemon.isAlive()).toBe(true);
      await daemon.quit();
      // The table was not written over: what it maps is there.
      const copy = image("copy.raw");
      await run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", filename, copy);
      const second = { offset: 64 * KiB, bytes: 64 * KiB, fill: 2 };
      await run(
        "qemu-io",
        "-f",
        "raw",
        "-r",
        "-c",
        `read -q -P ${second.fill} ${second.offset} ${second.bytes}`,
        copy,
      );
    },
  );

  it("an entry that points between two clusters", async () => {
    const filename = await createImage("disk.img");
    await run("qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 128k", filename);
    patch(filename, 4 * 64 * KiB, 0x80, 0, 0, 0, 0, 5, 2, 0);
    const client = await serve(filename);
    await expect(client.read(0, 512)).rejects.toMatchObject({ code: "EIO" });
    expect(await daemon.isAlive()).toBe(true);
  });
});

describe("what somebody else has", () => {
  beforeEach(startIdle);

  it("an image that qemu-io writes", async () => {
    const filename = await createImage("disk.img");
    const holder = await HeldImage.hold(filename);
    expect(await refusal(open(filename))).toMatch(/^Failed to get (shared )?"write" lock/);
    await holder.release();
    await open(filename);
  });

  it("an image that another daemon writes; and ours is protected from qemu-img", async () => {
    const { chain } = await serveChain({ bytes: 4 * MiB, bytesPerLayer: 256 * KiB });
    expect(await refusal(open(chain.file("E")))).toMatch(/^Failed to get (shared )?"write" lock/);
    expect(await startRefused(chain.linkedArguments("other"))).toMatch(/lock\nIs another process using/);
    for (const letter of ["A", "C", "E"]) {
      const words = await runToFailure(
        "qemu-io",
        "-f",
        chain.format(letter),
        "-c",
        "write 0 512",
        chain.file(letter),
      );
      expect(words).toMatch(/Failed to get "(write|consistent read)" lock/);
    }
    expect(await runToFailure("qemu-img", "check", chain.file("E"))).toMatch(
      /Failed to get shared "write" lock/,
    );
    await run("qemu-img", "check", "-q", "-U", chain.file("E"));
    // A backing image may be read by others.
    await run("qemu-img", "check", "-q", chain.file("C"));
  });

  it("a port, and a directory that is not there", async () => {
    const taken = createServer();
    await new Promise<void>((resolve) => taken.listen(0, "127.0.0.1", resolve));
    const { port } = taken.address() as { port: number };
    const words = await startRefused([
      "--nbd-server",
      `addr.type=inet,addr.host=127.0.0.1,addr.port=${port}`,
    ]);
    expect(words).toMatch(/Address already in use/);
    expect(words).toContain(String(port));
    await daemon.qmp.execute("nbd-server-stop");
    const start = (address: unknown) => refusal(daemon.qmp.execute("nbd-server-start", { addr: address }));
    const data = { host: "127.0.0.1", port: String(port) };
    expect(await start({ type: "inet", data })).toMatch(/Address already in use/);
    const nowhere = { type: "unix", data: { path: image("nowhere/nbd.sock") } };
    expect(await start(nowhere)).toMatch(/^Failed to bind socket to .*nowhere.*: No such file or directory/);
    await new Promise((resolve) => taken.close(resolve));
    await daemon.qmp.execute("nbd-server-start", { addr: { type: "inet", data } });
  });
});

describe("streams that make no sense", () => {
  let chain: Chain;
  const SLOW = 64 * KiB;

  beforeEach(async () => {
    directory = scratchDirectory();
    chain = await Chain.build(directory, { bytes: 4 * MiB, bytesPerLayer: MiB, base: "raw" });
    const nodes = [...chain.nodeArguments(), ...exportArguments("E", "disk")];
    daemon = await startDaemon(directory, [...nbdServerArguments(directory), ...nodes]);
  });

  function stream(args: Record<string, unknown>): Promise<string> {
    return refusal(daemon.qmp.execute("block-stream", { "job-id": "job", ...args }));
  }

  // The reference does nothing and calls it done.
  it.skipIf(IS_REFERENCE)("into raw: it has no backing link", async () => {
    expect(await stream({ device: "A" })).toMatch(/raw.*backing/);
  });

  it("onto a base that nobody knows", async () => {
    expect(await stream({ device: "E", base: "nowhere.img" })).toMatch(
      /^Can't find 'nowhere.img' in the backing/,
    );
    expect(await stream({ device: "E", "base-node": "nowhere" })).toMatch(/node-name='nowhere'/);
    expect(await stream({ device: "nowhere" })).toMatch(/nowhere/);
  });

  it("onto a base that is above the top, or the top itself", async () => {
    expect(await stream({ device: "C", "base-node": "D" })).toBe("Node 'D' is not a backing image of 'C'");
    expect(await stream({ device: "C", "base-node": "C" })).toBe("Node 'C' is not a backing image of 'C'");
    expect(await stream({ device: "C", "base-node": "B", base: "file-B.img" })).toMatch(
      /cannot be specified/,
    );
  });

  it("over a part that another job holds, which the message names", async () => {
    await daemon.qmp.execute("block-stream", {
      "job-id": "first",
      device: "D",
      "base-node": "B",
      speed: SLOW,
    });
    expect(await stream({ device: "E", "base-node": "A" })).toMatch(/is busy: .*stream/);
    expect(await stream({ device: "C", "base-node": "A" })).toMatch(/is busy: .*stream/);
    expect(await stream({ device: "D", "base-node": "A" })).toMatch(/is busy: .*stream/);
    const again = refusal(daemon.qmp.execute("block-stream", { "job-id": "first", device: "B" }));
    expect(await again).toBe("Job ID 'first' already in use");
    await daemon.qmp.execute("block-job-cancel", { device: "first" });
    await daemon.qmp.waitForEnd("first");
    for (const letter of ["B", "C", "D"]) await checkForErrors(chain.file(letter));
  });

  it("jobs that are not there", async () => {
    const ask = (command: string) => refusal(daemon.qmp.execute(command, { device: "nobody" }));
    expect(await ask("block-job-pause")).toBe("Block job 'nobody' not found");
    expect(await ask("block-job-cancel")).toBe("Block job 'nobody' not found");
    expect(await refusal(daemon.qmp.execute("job-cancel", { id: "nobody" }))).toBe("Job not found");
  });
});

describe("what QMP does not understand", () => {
  beforeEach(startIdle);

  const WRONG: [text: string, errorClass: string, words: RegExp][] = [
    [`{"execute":"frobnicate"}`, "CommandNotFound", /^The command frobnicate has not been found$/],
    [`{"execute":"query-jobs","arguments":{"bogus":1}}`, "GenericError", /^Parameter 'bogus' is unexpected$/],
    [
      `{"execute":"block-stream","arguments":{"device":5}}`,
      "GenericError",
      /^Invalid parameter type for 'device'/,
    ],
    [
      `{"execute":"block-stream","arguments":{"device":"E","speed":"x"}}`,
      "GenericError",
      /'speed', expected: int/,
    ],
    [`{"execute":"block-stream"}`, "GenericError", /^Parameter 'device' is missing$/],
    [`{"execute":5}`, "GenericError", /execute/],
    [`{"execute":"query-jobs","arguments":[]}`, "GenericError", /arguments/],
    [`{"no":"command"}`, "GenericError", /./],
    [`[1,2,3]`, "GenericError", /object/],
    [`{"execute": nonsense }`, "GenericError", /JSON/],
    [
      `{"execute":"blockdev-add","arguments":{"driver":"vmdk2","node-name":"x"}}`,
      "GenericError",
      /^(Invalid parameter|Parameter 'driver' does not accept value) 'vmdk2'$/,
    ],
    [
      `{"execute":"blockdev-add","arguments":{"driver":"qcow2","node-name":"x","file":"nowhere"}}`,
      "GenericError",
      /nowhere/,
    ],
    [
      `{"execute":"blockdev-add","arguments":{"driver":"file","node-name":"1 bad name","filename":"/x"}}`,
      "GenericError",
      /1 bad name/,
    ],
  ];

  it("gets an error of the right class, in the right words, and the next one its own", async () => {
    for (const [text, errorClass, words] of WRONG) {
      const { error } = (await daemon.qmp.exchange(text)) as { error: { class: string; desc: string } };
      expect(error, text).toMatchObject({ class: errorClass, desc: expect.stringMatching(words) });
      expect(await daemon.isAlive()).toBe(true);
    }
  });
});

describe("command lines that are refused", () => {
  it.each([
    [["--bogus"], /--bogus/],
    [
      ["--blockdev", "driver=qcow2,node-name=a,file.driver=file,file.filename=/x,bogus=1"],
      /'bogus' is unexpected/,
    ],
    [["--blockdev", "driver=nothing,node-name=a"], /nothing/],
    [["--export", "type=nbd,id=e,node-name=nowhere"], /NBD server not running|nowhere/],
    [["--chardev", "nothing,id=c"], /nothing/],
    [["--monitor", "chardev=nowhere"], /nowhere/],
    [["--object", "nothing,id=o"], /nothing/],
  ])("%s", async (args, words) => {
    expect(await startRefused(args)).toMatch(words);
  });
});
