// The host fails: rules of a `blkdebug` node (the same as the reference's), and real file systems that are
// full, fail or become read-only. The guest hears errors as errors, jobs do what their policy says, and what
// was acknowledged and flushed is there afterwards. Needs root, loop devices and ext4 for the real ones.

import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { NbdClient } from "../nbd/client.ts";
import { KiB, MiB } from "../src/base/units.ts";
import { Chain, checkForErrors, compareImages, lettersOnDisk } from "./harness/chain.ts";
import {
  type Daemon,
  IS_REFERENCE,
  nbdServerArguments,
  startDaemon,
  startRefused,
} from "./harness/daemon.ts";
import { codeOf, expectPieces, fill, PIECE, piece } from "./harness/pieces.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { exportArguments } from "./harness/serve.ts";
import { run, runAnyhow } from "./harness/tool.ts";

// --- rules -------------------------------------------------------------------------------------------------

type Rules = string;
type Top = "qcow2" | "raw" | "none";

/** What each line of qemu-io says: "ok", or the words of the error. */
async function saidWith(rules: Rules, top: Top, commands: readonly string[]): Promise<string[]> {
  const directory = scratchDirectory();
  const base = path.join(directory, "base.img");
  const image = path.join(directory, "disk.img");
  await run("qemu-img", "create", "-q", "-f", "qcow2", base, "16M");
  await run("qemu-io", "-f", "qcow2", "-c", "write -q -P 9 0 1M", base);
  await run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image);
  if (top !== "qcow2") truncateSync(image, 8 * MiB);
  const node = `driver=blkdebug,node-name=dbg,image.driver=file,image.filename=${image},${rules}`;
  const daemon = await startDaemon(directory, [
    ...nbdServerArguments(directory),
    ...["--blockdev", node],
    ...(top === "none" ? [] : ["--blockdev", `driver=${top},node-name=disk,file=dbg`]),
    ...exportArguments(top === "none" ? "dbg" : "disk", "disk"),
  ]);
  const said: string[] = [];
  for (const command of commands) {
    const { stdout, stderr } = await runAnyhow("qemu-io", "-f", "raw", "-c", command, daemon.uri("disk"));
    const failure = /(?:failed|error): (.*)/.exec(stdout + stderr);
    said.push(failure?.[1] ?? "ok");
  }
  await daemon.qmp.execute("quit");
  await daemon.ended;
  if (top === "qcow2") await checkForErrors(image);
  return said;
}

const WORDS: Readonly<Record<string, string>> = {
  ok: "ok",
  EIO: "Input/output error",
  ENOSPC: "No space left on device",
  EPERM: "Operation not permitted",
};

const SECOND_STATE = "set-state.0.event=write_aio,set-state.0.state=1,set-state.0.new_state=2";

/** Rules (of inject-error.0, and further options behind a space), what stands above, requests and answers. */
const CASES: readonly (readonly [rules: string, top: Top, requests: string])[] = [
  ["event=write_aio,once=on", "qcow2", "write 1M 64k: EIO; write 1M 64k: ok; read 1M 4k: ok"],
  ["event=write_aio,errno=1,once=on", "qcow2", "write 1M 64k: EPERM"],
  ["event=write_aio,errno=122,once=on", "qcow2", "write 1M 64k: ENOSPC"],
  ["event=read_aio,once=on", "qcow2", "write 1M 64k: ok; read 1M 4k: EIO; read 1M 4k: ok"],
  ["event=cow_read,once=on", "qcow2", "write 4k 4k: EIO; write 4k 4k: ok"],
  ["event=cow_write,errno=28,once=on", "qcow2", "write 4k 4k: ENOSPC; write 4k 4k: ok; read -P 9 0 4k: ok"],
  ["event=cluster_alloc,errno=28,iotype=write,once=on", "qcow2", "write 1M 64k: ENOSPC; write 1M 64k: ok"],
  ["event=l2_alloc_write,errno=28,once=on", "qcow2", "write 1M 64k: ENOSPC; write 1M 64k: ok"],
  ["event=refblock_load,once=on", "qcow2", "write 1M 64k: EIO; write 1M 64k: ok"],
  ["event=flush_to_os,errno=28,iotype=write,once=on", "qcow2", "write -f 1M 64k: ENOSPC; write 2M 64k: ok"],
  [
    `event=write_aio,state=2,once=on ${SECOND_STATE}`,
    "qcow2",
    "write 1M 4k: ok; write 1M 4k: EIO; write 0 4k: ok",
  ],
  [
    "event=none,errno=28,iotype=write,sector=2048",
    "raw",
    "write 0 64k: ok; write 1M 512: ENOSPC; write 2M 1M: ok",
  ],
  ["event=write_aio,errno=28,once=on", "raw", "write 0 4k: ENOSPC; write 0 4k: ok"],
  ["event=pwritev,errno=28,once=on", "none", "write 0 4k: ENOSPC; write 0 4k: ok"],
  ["event=pwritev_zero,errno=28,once=on", "none", "write 0 4k: ok; write -z 0 4k: ENOSPC; write -z 0 4k: ok"],
  [
    "event=pwritev_done,iotype=read,once=on",
    "none",
    "read 0 4k: ok; write 0 4k: ok; read 0 4k: EIO; read 0 4k: ok",
  ],
  [
    "event=none,errno=28,iotype=write,sector=128 max-transfer=64k",
    "none",
    "write 0 64k: ok; write 0 128k: ENOSPC",
  ],
  ["event=none,errno=28,iotype=write-zeroes,once=on", "none", "write -z 0 64k: ENOSPC; write -z 0 64k: ok"],
];

describe("rules of blkdebug do what the reference's do", () => {
  it.each(CASES)("%s below %s: %s", async (rules, top, requests) => {
    const [injected = "", ...more] = rules.split(" ");
    const first = injected.split(",").map((option) => `inject-error.0.${option}`);
    const pairs = requests.split("; ").map((pair) => pair.split(": ") as [string, string]);
    const options = [...first, ...more].join(",").replace("64k", String(64 * KiB));
    const said = await saidWith(
      options,
      top,
      pairs.map(([command]) => command),
    );
    expect(said).toEqual(pairs.map(([, code]) => WORDS[code]));
  });

  it.each([
    ["align=3", "Cannot meet constraints with align 3"],
    ["max-transfer=99999999999", "Parameter 'max-transfer' expects int32_t"],
    ["max-transfer=-5", "Value '-5' is out of range for parameter 'max-transfer'"],
    ["inject-error.0.event=foo", "Parameter 'event' does not accept value 'foo'"],
    ["inject-error.0.errno=5", "Parameter 'inject-error.0.event' is missing"],
    ["set-state.0.event=none", "Parameter 'set-state.0.new_state' is missing"],
    ["take-child-perms.0=foo", "does not accept value 'foo'"],
    ["config=/does/not/exist", "No such file or directory"],
    ["foo=1", "Parameter 'foo' is unexpected"],
  ])("%s is refused", async (option, words) => {
    const image = path.join(scratchDirectory(), "disk.img");
    writeFileSync(image, Buffer.alloc(MiB));
    const node = `driver=blkdebug,node-name=dbg,image.driver=file,image.filename=${image},${option}`;
    expect(await startRefused(["--blockdev", node])).toContain(words);
  });

  // The reference hangs up on a client whose read has failed.
  it.skipIf(IS_REFERENCE)(
    "a configuration file, in a node that blockdev-add nests below an image",
    async () => {
      const directory = scratchDirectory();
      const filename = path.join(directory, "disk.img");
      const config = path.join(directory, "rules.conf");
      writeFileSync(config, '[inject-error]\nevent = "read_aio"\nerrno = "5"\nonce = "on"\n');
      await run("qemu-img", "create", "-q", "-f", "qcow2", filename, "16M");
      const daemon = await startDaemon(directory, nbdServerArguments(directory));
      const { qmp } = daemon;
      const file = { driver: "blkdebug", "node-name": "dbg", config, image: { driver: "file", filename } };
      await qmp.execute("blockdev-add", { driver: "qcow2", "node-name": "disk", file });
      await qmp.execute("block-export-add", { type: "nbd", id: "e", "node-name": "disk", writable: true });
      const client = await NbdClient.connect(daemon.uri("disk"));
      await client.write(0, Buffer.alloc(64 * KiB, 1));
      expect(await codeOf(client.read(0, 4 * KiB))).toBe("EIO");
      expect(await client.read(0, 4 * KiB)).toEqual(Buffer.alloc(4 * KiB, 1));
      const nodes = (await qmp.execute("query-named-block-nodes")) as Record<string, unknown>[];
      expect(nodes.map((node) => node["drv"])).toContain("blkdebug");
      await client.disconnect();
      await daemon.quit();
      await checkForErrors(filename);
    },
  );
});

// --- jobs --------------------------------------------------------------------------------------------------

describe("a merge whose base fails follows its policy as in the reference", () => {
  const stop = { action: "stop", ioStatus: "failed" };
  const noSpace = { action: "stop", ioStatus: "nospace" };
  const ends = { action: "report", error: "Input/output error" };
  it.each([
    ["report", 5, ends],
    ["enospc", 5, ends],
    ["auto", 5, ends],
    ["stop", 5, stop],
    ["stop", 28, noSpace],
    ["enospc", 28, noSpace],
    // A full quota is a lack of space: ours waits, the reference gives up.
    ["enospc", 122, IS_REFERENCE ? { ...ends, error: "Disk quota exceeded" } : noSpace],
    ["auto", 28, noSpace],
    ["ignore", 5, { action: "ignore", error: "Input/output error" }],
    // Nobody knows what there is to copy.
    ["stop", 5, stop, "l2_load"],
    ["enospc", 28, noSpace, "l2_load"],
  ] as const)(
    "on-error=%s and errno %i",
    async (policy, errno, expected: Record<string, string>, event?: string) => {
      const { daemon, chain, copy } = await mergeable(errno, event);
      const { qmp } = daemon;
      await qmp.execute("block-stream", { "job-id": "job", device: "top", "on-error": policy });
      const { data } = await qmp.waitFor((event) => event.event === "BLOCK_JOB_ERROR");
      expect(data).toEqual({ device: "job", operation: "read", action: expected["action"] });
      if (expected["action"] === "stop") {
        await qmp.waitForStatus("job", "paused");
        const [job] = (await qmp.execute("query-block-jobs")) as Record<string, unknown>[];
        expect(job).toMatchObject({ status: "paused", "io-status": expected["ioStatus"] });
        await qmp.execute("block-job-resume", { device: "job" });
        await qmp.waitForEnd("job");
        await compareImages(daemon.uri("top"), copy);
        await daemon.quit();
        expect(await lettersOnDisk(chain.file("B"))).toBe("B");
      } else {
        const ended = await qmp.waitFor((event) => event.event === "BLOCK_JOB_COMPLETED");
        expect(ended.data["error"]).toBe(expected["error"]);
        await compareImages(daemon.uri("top"), copy);
        await daemon.quit();
      }
      await checkForErrors(chain.file("B"));
    },
  );
});

/** [A] <- [B], where a read of A fails once: that of data, or what the event says. */
async function mergeable(errno: number, event = "read_aio") {
  const directory = scratchDirectory();
  const chain = await Chain.build(directory, { layers: 2, bytes: 16 * MiB, bytesPerLayer: 4 * MiB });
  const copy = await chain.copyOf("B");
  const injected = `inject-error.0.event=${event},inject-error.0.errno=${errno},inject-error.0.once=on`;
  const a = `driver=file,filename=${chain.file("A")}`.replaceAll(/(^|,)/g, "$1image.");
  const daemon = await startDaemon(directory, [
    ...nbdServerArguments(directory),
    ...["--blockdev", `driver=blkdebug,node-name=dbg,read-only=on,${a},${injected}`],
    ...["--blockdev", "driver=qcow2,node-name=A,read-only=on,file=dbg"],
    ...[
      "--blockdev",
      `driver=qcow2,node-name=top,file.driver=file,file.filename=${chain.file("B")},backing=A`,
    ],
    ...exportArguments("top", "top"),
  ]);
  return { daemon, chain, copy };
}

// --- file systems that fail --------------------------------------------------------------------------------

const missing = whatIsMissing();

function whatIsMissing(): string | undefined {
  if (process.getuid?.() !== 0) return "only root may mount";
  const tools = spawnSync("sh", ["-c", "command -v mkfs.ext4 e2fsck losetup && losetup -f"]);
  return tools.status === 0 ? undefined : "no ext4 tools or no loop device";
}

/** Says in the name of a skipped test why it is skipped. */
function real(name: string, test: () => Promise<void>, reason = missing): void {
  it.skipIf(reason !== undefined)(reason === undefined ? name : `${name} (skipped: ${reason})`, test);
}

interface Ext4 {
  readonly folder: string;
  /** Unmounts, repairs, and mounts it again. */
  again(): Promise<void>;
}

/** A mounted ext4 that becomes read-only when it meets an error; its own file is in `directory`. */
async function ext4(directory: string, bytes: number): Promise<Ext4> {
  const image = path.join(directory, "ext4.img");
  const folder = path.join(directory, "mnt");
  writeFileSync(image, "");
  truncateSync(image, bytes);
  mkdirSync(folder);
  await run("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,nodiscard", image);
  const mount = () => run("mount", "-o", "loop,errors=remount-ro", image, folder);
  await mount();
  onTestFinished(() => runAnyhow("umount", "--lazy", folder).then(() => undefined));
  const again = async () => {
    await run("umount", folder);
    // 1: errors were repaired.
    const { code, stdout } = await runAnyhow("e2fsck", "-fy", image);
    if (code > 1) throw new Error(`e2fsck ended with ${code}: ${stdout}`);
    await mount();
  };
  return { folder, again };
}

async function serve(folder: string): Promise<{ daemon: Daemon; client: NbdClient; file: string }> {
  const file = path.join(folder, "disk.img");
  if (!existsSync(file)) await run("qemu-img", "create", "-q", "-f", "qcow2", file, "64M");
  const directory = scratchDirectory();
  const daemon = await startDaemon(directory, [
    ...nbdServerArguments(directory),
    ...["--blockdev", `driver=qcow2,node-name=disk,file.driver=file,file.filename=${file}`],
    ...exportArguments("disk", "disk"),
  ]);
  return { daemon, client: await NbdClient.connect(daemon.uri("disk")), file };
}

describe("a file system of the host", () => {
  real("is full: the guest hears ENOSPC, and goes on once there is space", async () => {
    const { folder } = await ext4(scratchDirectory(), 64 * MiB);
    const filler = path.join(folder, "filler");
    writeFileSync(filler, Buffer.alloc(40 * MiB, 1));
    const { daemon, client, file } = await serve(folder);
    const { next, code } = await fill(client);
    expect(code).toBe("ENOSPC");
    expect(next).toBeGreaterThan(8);
    await expectPieces(client, next);
    rmSync(filler);
    expect(await fill(client, next, 80)).toEqual({ next: 80, code: "ok" });
    await client.flush();
    await expectPieces(client, 80);
    await client.disconnect();
    await daemon.quit();
    await checkForErrors(file);
  });

  real("becomes read-only: writes and flushes fail, reads go on, and what was flushed stays", async () => {
    const { folder, again } = await ext4(scratchDirectory(), 96 * MiB);
    const { daemon, client, file } = await serve(folder);
    await fill(client, 0, 8);
    await client.flush();
    await run("mount", "-o", "remount,abort", folder);
    expect(["EIO", "EPERM"]).toContain(await codeOf(client.write(8 * PIECE, piece(8))));
    // Even where the page cache took the write: nothing may be called durable that is not.
    const codes = [await codeOf(client.flush()), await codeOf(client.write(0, piece(0), { fua: true }))];
    expect(codes.includes("ok")).toBe(false);
    await expectPieces(client, 8);
    await client.disconnect();
    await daemon.kill();
    await again();
    await checkForErrors(file);
    const served = await serve(folder);
    await expectPieces(served.client, 8);
    expect(await fill(served.client, 8, 16)).toEqual({ next: 16, code: "ok" });
    await served.client.flush();
    await served.client.disconnect();
    await served.daemon.quit();
    await checkForErrors(file);
  });

  real("stands on a disk that cannot write: no flush says done, then or later", async () => {
    const directory = scratchDirectory();
    const small = path.join(directory, "small");
    mkdirSync(small);
    await run("mount", "-t", "tmpfs", "-o", "size=40m", "strata-test", small);
    onTestFinished(() => runAnyhow("umount", "--lazy", small).then(() => undefined));
    const { folder, again } = await ext4(small, 128 * MiB);
    const { daemon, client, file } = await serve(folder);
    await fill(client, 0, 8);
    await client.flush();
    // The disk below the file system has no space left; the file system does not know.
    const filler = path.join(small, "filler");
    spawnSync("dd", ["if=/dev/zero", `of=${filler}`, "bs=64k"]);
    await fill(client, 8, 64);
    const first = await codeOf(client.flush());
    expect(["EIO", "ENOSPC", "EPERM"]).toContain(first);
    // The kernel says once that it lost data, and "done" the next time: that must not reach the guest.
    for (let i = 0; i < 3; i++) expect(await codeOf(client.flush())).not.toBe("ok");
    await client.disconnect();
    await daemon.kill();
    rmSync(filler);
    await again();
    await checkForErrors(file);
    const served = await serve(folder);
    await expectPieces(served.client, 8);
    await served.client.disconnect();
    await served.daemon.quit();
  });

  real(
    "allows no larger file: the guest hears ENOSPC, and goes on under a larger limit",
    async () => {
      const { daemon, client, file } = await serve(scratchDirectory());
      const limit = (bytes: number | "unlimited") =>
        run("prlimit", "--pid", String(daemon.pid), `--fsize=${bytes}:unlimited`);
      await limit(4 * MiB);
      const { next, code } = await fill(client, 0, 40);
      expect(code).toBe("ENOSPC");
      await expectPieces(client, next);
      await limit("unlimited");
      expect(await fill(client, next, 40)).toEqual({ next: 40, code: "ok" });
      await client.flush();
      await client.disconnect();
      await daemon.quit();
      await checkForErrors(file);
    },
    IS_REFERENCE ? "the reference is ended by SIGXFSZ" : missing,
  );
});
