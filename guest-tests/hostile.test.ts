// Images and clients that mean harm, against the real programs: what they touch, what memory they cost, and
// that others go on being served. (By the million, in one process: `scripts/fuzz`.)

import { existsSync, mkdirSync, readFileSync } from "node:fs";
import net from "node:net";
import path from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { NbdClient } from "../nbd/client.ts";
import { GiB, KiB, MiB } from "../src/base/units.ts";
import {
  type Daemon,
  hmpArguments,
  IS_REFERENCE,
  nbdServerArguments,
  startDaemon,
} from "./harness/daemon.ts";
import { within } from "./harness/patience.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { Strata } from "./harness/strata-program.ts";
import { run, runAnyhow } from "./harness/tool.ts";

const IS_LONG = process.env["STRATA_LONG"] === "1";
const CHECKOUT = path.resolve(import.meta.dirname, "..");

/** An overlay with a link that nobody has looked at. */
async function overlay(file: string, link: string, format = "raw"): Promise<string> {
  await run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", link, "-F", format, file, "1M");
  return file;
}

/** The most memory that a process has had, in bytes. */
function peakBytes(pid: number): number {
  return Number(/^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]) * KiB;
}

async function connect(socketPath: string): Promise<net.Socket> {
  const socket = net.connect({ path: socketPath });
  socket.on("error", () => {});
  onTestFinished(() => {
    socket.destroy();
  });
  await new Promise((resolve) => socket.once("connect", resolve).once("error", resolve));
  return socket;
}

/** As `connect`; where the queue of a listening socket is full, it waits for room. */
async function connectInTurn(socketPath: string): Promise<net.Socket> {
  for (;;) {
    const socket = await connect(socketPath);
    if (!socket.destroyed && !socket.connecting && socket.readyState === "open") return socket;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Writes `bytes` bytes as fast as they are taken; false when the other end has closed. */
async function pour(socket: net.Socket, bytes: number, content: Buffer): Promise<boolean> {
  for (let sent = 0; sent < bytes && !socket.destroyed; sent += content.length) {
    if (socket.write(content)) continue;
    await new Promise<void>((resolve) => {
      const done = () => {
        socket.off("drain", done).off("close", done);
        resolve();
      };
      socket.on("drain", done).on("close", done);
    });
  }
  return !socket.destroyed;
}

async function serveDisk(directory: string, options = ""): Promise<Daemon> {
  const disk = path.join(directory, "disk.raw");
  await run("truncate", "-s", "64M", disk);
  const [server, address] = nbdServerArguments(directory);
  return startDaemon(directory, [
    ...["--blockdev", `raw,node-name=disk,file.driver=file,file.filename=${disk}`],
    ...[server!, `${address}${options}`],
    ...["--export", "nbd,id=export,node-name=disk,name=disk,writable=on"],
    ...hmpArguments(directory),
  ]);
}

/** Somebody who behaves still gets answers. */
async function checkServes(daemon: Daemon): Promise<void> {
  expect(await daemon.isAlive()).toBe(true);
  const client = await NbdClient.connect(daemon.uri("disk"));
  await client.read(0, 4096);
  await client.disconnect();
}

it.skipIf(IS_REFERENCE)(
  "serve: an image names files in its own folder, or where the user allows it",
  async () => {
    const directory = scratchDirectory();
    const strata = new Strata(directory);
    for (const name of ["disks", "bases"]) mkdirSync(path.join(directory, name));
    await run("truncate", "-s", "1M", `${directory}/bases/base.raw`);
    const disk = await overlay(`${directory}/disks/top.qcow2`, "../bases/base.raw");
    const { code, stderr } = await strata.run(["serve", disk]);
    expect([code, stderr]).toEqual([
      1,
      expect.stringMatching(/'.*top\.qcow2' names '\.\.\/bases\/base\.raw' .*--backing-root .*\/bases\n$/),
    ]);
    const served = await strata.serve(disk, "--backing-root", "bases");
    await run("nbdinfo", served.uri);
  },
);

it.skipIf(IS_REFERENCE || !existsSync("/usr/bin/strace"))(
  "serve: of what hostile links name, nothing is opened and nothing is connected to",
  async () => {
    const directory = scratchDirectory();
    await run("truncate", "-s", "1M", `${directory}/near.raw`);
    const links = [
      "/etc/passwd",
      "file:/etc/passwd",
      "../../../../../../etc/passwd",
      "/proc/self/mem",
      "nbd://127.0.0.1:10809/x",
      "http://127.0.0.1/x",
      'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}',
      'json:{"driver":"raw","file":{"driver":"nbd","host":"127.0.0.1","port":"10809"}}',
      'json:{"driver":"http","url":"http://127.0.0.1/x"}',
      'json:{"driver":"blkdebug","config":"/etc/passwd","image":{"driver":"file","filename":"near.raw"}}',
    ];
    for (const [number, link] of links.entries()) {
      const disk = await overlay(`${directory}/top${number}.qcow2`, link);
      const log = `${directory}/calls${number}`;
      const script = `${CHECKOUT}/dist/src/cli/strata.js`;
      const { code, stderr } = await runAnyhow(
        ...(["strace", "-f", "-o", log, "-e", "trace=open,openat,openat2,connect,execve"] as const),
        ...[process.execPath, script, "serve", disk, "--control", `${directory}/control.qmp`],
      );
      expect([link, code, stderr]).toEqual([link, 1, expect.stringContaining("strata: ")]);
      const calls = readFileSync(log, "utf8").split("\n");
      expect(
        calls.filter((call) => /passwd|\/proc\/self\/mem|AF_INET/.test(call) && !/= -1 /.test(call)),
      ).toEqual(
        // The name of the image is no call of ours: strace shows it with the command.
        calls.filter((call) => call.includes("execve") && /passwd|mem|AF_INET/.test(call)),
      );
    }
  },
);

it.skipIf(IS_REFERENCE)(
  "a text without an end costs the monitors no memory",
  async () => {
    const directory = scratchDirectory();
    const socket = `${directory}/second.qmp`;
    const daemon = await serveDisk(directory);
    await daemon.qmp.execute("query-version");
    const hmp = await connect(`${directory}/hmp.sock`);
    hmp.resume();
    const bytes = (IS_LONG ? 4 : 0.5) * GiB;
    expect(await within(pour(hmp, bytes, Buffer.alloc(MiB, "x")), () => "the monitor does not read")).toBe(
      true,
    );
    expect(peakBytes(daemon.pid)).toBeLessThan(300 * MiB);
    expect(existsSync(socket)).toBe(false);
    await checkServes(daemon);
  },
  600_000,
);

it.skipIf(IS_REFERENCE)(
  "a QMP text without an end, or too deep, is refused at its limits",
  async () => {
    const directory = scratchDirectory();
    const socketPath = `${directory}/other.qmp`;
    const daemon = await startDaemon(directory, [
      ...["--chardev", `socket,id=other,path=${socketPath},server=on,wait=off`, "--monitor", "other"],
    ]);
    const socket = await connect(socketPath);
    let heard = "";
    socket.on("data", (text) => {
      heard = (heard + String(text)).slice(-2000);
    });
    socket.write('{"execute":"qmp_capabilities"}{"execute":"');
    await within(pour(socket, (IS_LONG ? 4 : 0.5) * GiB, Buffer.alloc(MiB, "x")), () => "it does not read");
    socket.write(`"}\xff\n${"[".repeat(100_000)}\xff\n{"execute":"query-version","id":"last"}`, "latin1");
    await expect.poll(() => heard, { timeout: 120_000 }).toContain('"id": "last"');
    expect(heard).toContain("JSON nesting depth limit exceeded");
    // A token may have 64 MiB, which are there twice while it is put together.
    expect(peakBytes(daemon.pid)).toBeLessThan(300 * MiB);
    expect(await daemon.isAlive()).toBe(true);
  },
  600_000,
);

it("an NBD client that never takes its replies costs little memory, and nobody waits for it", async () => {
  const directory = scratchDirectory();
  const daemon = await serveDisk(directory);
  const before = peakBytes(daemon.pid);
  const sockets = await Promise.all(Array.from({ length: 4 }, () => connect(daemon.nbdSocket)));
  for (const socket of sockets) {
    socket.pause();
    const option = Buffer.concat([
      Buffer.from("IHAVEOPT"),
      words(7, 10, 4),
      Buffer.from("disk"),
      Buffer.alloc(2),
    ]);
    const read = Buffer.concat([words(0x25609513, 0, 0, 1, 0, 0, MiB)]);
    socket.write(Buffer.concat([words(3), option, ...Array.from({ length: 4000 }, () => read)]));
  }
  for (let round = 0; round < 20; round++) await checkServes(daemon);
  // 16 GiB were asked for; 8 MiB of replies and 32 MiB in flight are kept for each at the most.
  expect(peakBytes(daemon.pid) - before).toBeLessThan(4 * 64 * MiB);
});

it.skipIf(IS_REFERENCE)("thousands of clients that say nothing are hung up on in time", async () => {
  const directory = scratchDirectory();
  const daemon = await serveDisk(directory, ",max-connections=0,handshake-max-seconds=3");
  const before = peakBytes(daemon.pid);
  const count = IS_LONG ? 8000 : 2000;
  let closed = 0;
  for (let made = 0; made < count; made += 200) {
    const sockets = await Promise.all(Array.from({ length: 200 }, () => connectInTurn(daemon.nbdSocket)));
    for (const socket of sockets) socket.once("close", () => closed++).resume();
  }
  await checkServes(daemon);
  expect(peakBytes(daemon.pid) - before).toBeLessThan(200 * MiB);
  await expect.poll(() => closed, { timeout: 60_000 }).toBe(count);
  await checkServes(daemon);
});

it.skipIf(IS_REFERENCE)("a daemon without descriptors goes on when there are some again", async () => {
  const directory = scratchDirectory();
  const daemon = await serveDisk(directory, ",max-connections=0");
  const most = readFileSync(`/proc/${daemon.pid}/limits`, "utf8");
  expect(most).toContain("Max open files");
  await run("prlimit", `--pid=${daemon.pid}`, "--nofile=48");
  const sockets = await Promise.all(Array.from({ length: 120 }, () => connect(daemon.nbdSocket)));
  expect(await daemon.isAlive()).toBe(true);
  for (const socket of sockets) socket.destroy();
  await expect
    .poll(
      () =>
        checkServes(daemon).then(
          () => true,
          () => false,
        ),
      { timeout: 30_000 },
    )
    .toBe(true);
});

function words(...values: number[]): Buffer {
  const bytes = Buffer.alloc(values.length * 4);
  values.forEach((value, index) => {
    bytes.writeUInt32BE(value, index * 4);
  });
  return bytes;
}
