// The `strata` commands as a person or a script runs them: what they say, what they leave, how they exit.

import {
  appendFileSync,
  chmodSync,
  closeSync,
  existsSync,
  openSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { createServer } from "node:net";
import path from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { MiB } from "../src/base/units.ts";
import { Chain, checkClean, compareImages, lettersOnDisk } from "./harness/chain.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { Strata } from "./harness/strata-program.ts";
import { HeldImage, run } from "./harness/tool.ts";

const NO_DAEMON =
  /^strata: no daemon runs: start one with 'strata serve DISK', or name one with --control\n$/;

/** A chain of five images, a copy of what the guest sees, and somebody to run commands there. */
async function atChain() {
  const directory = scratchDirectory();
  const chain = await Chain.build(directory);
  const copy = await chain.copyOf("E");
  return { directory, chain, copy, strata: new Strata(directory) };
}

/** A place for a raw disk, without a chain. */
function atDisk(bytes = 4 * MiB) {
  const directory = scratchDirectory();
  const disk = path.join(directory, "disk.img");
  writeFileSync(disk, Buffer.alloc(bytes, "disk"));
  return { directory, disk, strata: new Strata(directory) };
}

async function expectFailure(strata: Strata, args: readonly string[], code: number, words: RegExp) {
  const outcome = await strata.run(args);
  expect({ args, code: outcome.code, stdout: outcome.stdout }).toEqual({ args, code, stdout: "" });
  expect(outcome.stderr).toMatch(words);
  // One line, and nothing of where in our code it happened.
  expect(outcome.stderr.trimEnd().split("\n")).toHaveLength(1);
}

describe("serving and merging", () => {
  it("serves a chain, draws it, merges both ways, and ends in peace", async () => {
    const { chain, copy, strata } = await atChain();
    const server = await strata.serve("file-E.img");
    expect(server.said).toMatch(/nbd-client -unix \S+ \/dev\/nbd0 -name virtio0/);
    expect(JSON.parse(await run("nbdinfo", "--json", server.uri)).exports[0]["export-size"]).toBe(
      Math.ceil(chain.bytes / 512) * 512,
    );
    const five = "[file-A] <- [file-B] <- [file-C] <- [file-D] <- [file-E]   virtio0";
    expect(await strata.ok("chain")).toContain(five);

    const merged = await strata.ok("stream", "file-D", "--base", "file-B.img");
    expect(merged).toMatch(/^above file-B into file-D {2}done: /m);
    expect(await strata.ok("chain")).toContain("[file-A] <- [file-B] <- [file-D] <- [file-E]   virtio0");
    await compareImages(server.uri, copy);

    const records = (await strata.ok("stream", "virtio0", "--base", "file-A", "--json")).trim().split("\n");
    expect(JSON.parse(records.at(-1)!)).toMatchObject({ id: "stream-file-E", result: "completed" });
    const report = JSON.parse(await strata.ok("chain", "--json"));
    expect(report.device).toBe("virtio0");
    expect(report.report.layers.map((layer: { driver: string }) => layer.driver)).toEqual(["qcow2", "qcow2"]);
    await compareImages(server.uri, copy);

    server.child.kill("SIGTERM");
    expect((await server.done).code).toBe(0);
    expect(await lettersOnDisk(chain.file("E"))).toBe("A E");
    await checkClean(chain.file("E"));
    await compareImages(chain.file("E"), copy, "qcow2");
    expect(existsSync(path.join(strata.directory, "run/strata/file-E.qmp"))).toBe(false);
  });

  it("takes a live snapshot and copies the disk to it: live block copy", async () => {
    const { directory, copy, strata } = await atChain();
    const server = await strata.serve("file-E.img", "--port", "0", "--device", "ide0-hd0", "--name", "disk");
    expect(server.uri).toMatch(/^nbd:\/\/127\.0\.0\.1:\d+\/disk$/);
    const taken = await strata.ok("snapshot", "ide0-hd0", "F.qcow2");
    expect(taken).toBe("[file-E] <- [F]   F.qcow2 takes the writes of ide0-hd0 now\n");
    await run("qemu-io", "-f", "raw", "-c", "write -P 7 1M 64k", server.uri);
    await strata.ok("stream", "ide0-hd0");
    server.child.kill("SIGINT");
    expect((await server.done).code).toBe(0);
    const info = JSON.parse(await run("qemu-img", "info", "--output=json", path.join(directory, "F.qcow2")));
    expect(info["backing-filename"]).toBeUndefined();
    await compareImages(path.join(directory, "file-E.img"), copy, "qcow2");
    await run("qemu-io", "-f", "raw", "-c", "write -P 7 1M 64k", copy);
    await compareImages(path.join(directory, "F.qcow2"), copy, "qcow2");
    await checkClean(path.join(directory, "F.qcow2"));
  });

  it("serves read-only, and two daemons are told apart by name", async () => {
    const { strata } = await atChain();
    const first = await strata.serve("file-A.img", "--read-only");
    await strata.serve("file-B.img", "--read-only", "--device", "other");
    await expectFailure(
      strata,
      ["jobs"],
      1,
      /several daemons run: say which with --control NAME \(file-A, file-B\)/,
    );
    expect(await strata.ok("chain", "--control", "file-B")).toContain("[file-A] <- [file-B]   other");
    await expect(run("qemu-io", "-f", "raw", "-c", "write 0 512", first.uri)).rejects.toThrow(
      /read-only|Permission/i,
    );
  });
});

describe("jobs", () => {
  it("can be listed, watched, paused, resumed, given another speed, and cancelled", async () => {
    const { chain, copy, strata } = await atChain();
    const server = await strata.serve("file-E.img");
    expect(await strata.ok("jobs")).toBe("no jobs\n");
    expect(await strata.ok("stream", "--speed", "64K", "--no-wait")).toBe(
      "job stream-file-E runs; see it with 'strata jobs'\n",
    );
    expect(await strata.ok("jobs")).toMatch(/^stream-file-E {2}stream {2}running .*64 KiB\/s$/m);
    await strata.ok("jobs", "pause", "stream-file-E");
    const [job] = JSON.parse(await strata.ok("jobs", "--json"));
    expect(job).toMatchObject({ device: "stream-file-E", paused: true });
    await strata.ok("jobs", "resume", "stream-file-E");
    expect(await strata.ok("jobs", "speed", "stream-file-E", "128K")).toBe("job stream-file-E: 128 KiB/s\n");
    const watching = strata.start("jobs", "watch");
    await watching.until(/stream-file-E {2}\d+%/);
    await expectFailure(strata, ["stream", "virtio0", "--id", "second"], 1, /^strata: .*stream-file-E/);
    await strata.ok("jobs", "cancel", "stream-file-E");
    const outcome = await watching.done;
    expect(outcome.code).toBe(5);
    expect(outcome.stderr).toBe("strata: job stream-file-E was cancelled; the chain is as it was\n");
    server.child.kill("SIGTERM");
    await server.done;
    expect(await lettersOnDisk(chain.file("E"))).toBe("A B C D E");
    await compareImages(chain.file("E"), copy, "qcow2");
  });

  it("go on when the one who watches leaves with Ctrl-C", async () => {
    const { strata } = await atChain();
    await strata.serve("file-E.img");
    const watching = strata.start("stream", "--speed", "64K");
    await watching.until(/into virtio0 {2}\d+%/);
    watching.child.kill("SIGINT");
    const outcome = await watching.done;
    expect(outcome.code).toBe(130);
    expect(outcome.stderr).toContain("job stream-file-E goes on in the daemon");
    expect(await strata.ok("jobs")).toContain("stream-file-E");
  });

  it("show a bar at a terminal", async () => {
    const { strata } = await atChain();
    await strata.serve("file-E.img");
    const watching = strata.startAtTerminal("stream", "--speed", "8M");
    await watching.until(/\r.*into virtio0 {2}\[#*\.*\] +\d+% .*\S*\r/);
    expect((await watching.done).code).toBe(0);
    expect(watching.said).toMatch(/100%/);
  });
});

describe("the monitor", () => {
  it("takes lines from a pipe", async () => {
    const { strata } = await atChain();
    const server = await strata.serve("file-E.img");
    const good = await strata.run(["monitor"], "info block-jobs\nblock_stream file-D file-B.img\n");
    expect(good).toEqual({ code: 0, stdout: "No active jobs\n", stderr: "" });
    const bad = await strata.run(["monitor"], "block_stream nonsense\ninfo block\n");
    expect(bad.code).toBe(1);
    expect(bad.stdout).toMatch(/^Error: .*nonsense[\s\S]*virtio0/);
    expect((await strata.run(["monitor"], "quit\n")).code).toBe(0);
    expect((await server.done).code).toBe(0);
  });

  it("is at home at a terminal: prompt, history, Ctrl-C, Ctrl-D", async () => {
    const { strata } = await atChain();
    await strata.serve("file-E.img");
    const monitor = strata.startAtTerminal("monitor");
    await monitor.until(/type 'help' for more information\r\n[\s\S]*\(strata\) /);
    monitor.type("info block-jobs\r");
    await monitor.until(/No active jobs\r\n[\s\S]*\(strata\) /);
    monitor.type("garb\x03");
    await monitor.until(/\^C\r\n/);
    // The line before last, by the arrow key.
    monitor.type("\x1b[A\r");
    await monitor.until(/No active jobs[\s\S]*No active jobs/);
    monitor.type("info blo\t");
    monitor.type("\x15\x04");
    expect((await monitor.done).code).toBe(0);
    expect(monitor.said).not.toMatch(/unknown command/);
  });
});

describe("the monitor, left in a hurry", () => {
  it("ends when Ctrl-D comes while a line is under way", async () => {
    const { strata } = await atChain();
    await strata.serve("file-E.img");
    for (let round = 0; round < 5; round++) {
      const monitor = strata.startAtTerminal("monitor");
      await monitor.until(/type 'help' for more information\r\n[\s\S]*\(strata\) /);
      monitor.type("info block-jobs\r\x04");
      expect((await monitor.done).code).toBe(0);
      expect(monitor.said).toMatch(/No active jobs/);
    }
  });
});

describe("images", () => {
  it("creates what qemu-img finds in order, in every form", async () => {
    const { directory, strata } = atDisk();
    const forms = [
      ["plain.qcow2", "10M"],
      ["old.qcow2", "10M", "-o", "compat=0.10,cluster_size=4k"],
      ["wide.qcow2", "1G", "-o", "cluster_size=2M,refcount_bits=64,lazy_refcounts=on"],
      ["sub.qcow2", "100M", "-o", "extended_l2=on,compression_type=zstd"],
      ["full.qcow2", "3M", "-o", "preallocation=metadata"],
      ["over.qcow2", "-b", "disk.img", "-F", "raw"],
      ["odd.raw", "1000", "-f", "raw"],
    ];
    for (const form of forms) {
      await strata.ok("create", ...form);
      const file = path.join(directory, form[0]!);
      const theirs = JSON.parse(await run("qemu-img", "info", "--output=json", file));
      const ours = JSON.parse(await strata.ok("info", "--json", file));
      expect(ours).toEqual(theirs);
      if (theirs.format === "qcow2") await checkClean(file);
    }
  });

  it("tells the same as qemu-img map and info --backing-chain, member by member", async () => {
    const { chain, strata } = await atChain();
    for (const letter of ["A", "C", "E"]) {
      const file = chain.file(letter);
      const map = JSON.parse(await strata.ok("map", "--json", file));
      expect(map).toEqual(JSON.parse(await run("qemu-img", "map", "--output=json", file)));
      const info = JSON.parse(await strata.ok("info", "--backing-chain", "--json", file));
      const theirs = JSON.parse(await run("qemu-img", "info", "--backing-chain", "--output=json", file));
      expect(info).toEqual(theirs);
      expect(await strata.ok("map", file)).toBe(await run("qemu-img", "map", file));
    }
    expect(await strata.ok("chain", "file-E.img")).toContain(
      "[file-A] <- [file-B] <- [file-C] <- [file-D] <- [file-E]",
    );
  });

  it("checks and repairs with qemu-img's exit codes", async () => {
    const { directory, disk, strata } = atDisk();
    await strata.ok("create", "image.qcow2", "10M");
    const image = path.join(directory, "image.qcow2");
    expect(await strata.ok("check", "image.qcow2")).toContain("No errors were found on the image.");
    // A cluster at the end that nobody refers to.
    const clusters = Math.ceil(
      JSON.parse(await strata.ok("info", "--json", image)).children[0].info["virtual-size"] / 65536,
    );
    appendFileSync(image, Buffer.alloc(65536));
    writeRefcount(image, clusters, 1);
    const leaky = await strata.run(["check", "--json", "image.qcow2"]);
    expect(leaky.code).toBe(3);
    expect(JSON.parse(leaky.stdout)).toMatchObject({ leaks: 1, "check-errors": 0 });
    expect((await strata.run(["check", "-r", "leaks", "image.qcow2"])).code).toBe(0);
    // The L1 table's refcount.
    writeRefcount(image, 3, 0);
    expect((await strata.run(["check", "image.qcow2"])).code).toBe(2);
    expect((await strata.run(["check", "-r", "all", "image.qcow2"])).code).toBe(0);
    await checkClean(image);
    await expectFailure(strata, ["check", disk], 63, /is raw: there is nothing to check/);
    await expectFailure(
      strata,
      ["check", "--repair", "everything", "image.qcow2"],
      1,
      /there are leaks and all/,
    );
    await expectFailure(strata, ["check"], 1, /missing required argument/);
  });
});

/**
 * Sets a refcount of an image as `strata create` makes it: 64 KiB clusters, 16 bits, the block in cluster 2.
 */
function writeRefcount(image: string, cluster: number, refcount: number): void {
  const fd = openSync(image, "r+");
  const entry = Buffer.alloc(2);
  entry.writeUInt16BE(refcount);
  writeSync(fd, entry, 0, 2, 2 * 65536 + 2 * cluster);
  closeSync(fd);
}

describe("bad input", () => {
  it("is refused in one line that says what to do", async () => {
    const { directory, disk, strata } = atDisk();
    const missing = /^strata: there is no image 'none\.qcow2'\n$/;
    for (const command of ["serve", "info", "map", "check"]) {
      await expectFailure(strata, [command, "none.qcow2"], 1, missing);
    }
    await expectFailure(strata, ["serve", disk], 2, /not a qcow2 image: .*--format raw/);
    await expectFailure(strata, ["serve", disk, "--format", "vmdk"], 2, /unknown format 'vmdk'/);
    await expectFailure(strata, ["info", disk, "-f", "qcow2"], 1, /not in qcow2 format/i);
    await expectFailure(strata, ["serve", disk, "-f", "raw", "--port", "x"], 2, /port/);
    await expectFailure(strata, ["serve"], 2, /missing required argument 'disk'; see 'strata serve --help'/);
    await expectFailure(strata, ["nonsense"], 2, /unknown command 'nonsense'; see 'strata --help'/);
    await expectFailure(strata, ["info", "--nonsense", disk], 2, /unknown option '--nonsense'/);
    await expectFailure(strata, ["create", "x.qcow2"], 2, /how large\?/);
    await expectFailure(strata, ["create", "x.qcow2", "much"], 2, /'much' is no size/);
    await expectFailure(strata, ["create", disk, "1M"], 1, /exists already/);
    await expectFailure(strata, ["create", "x.qcow2", "1M", "-o", "cluster_size=3"], 1, /power of two/);
    await expectFailure(strata, ["create", "x.qcow2", "-b", disk], 2, /add -F qcow2 or -F raw/);
    await expectFailure(
      strata,
      ["create", "x.qcow2", "-b", "none", "-F", "raw"],
      1,
      /there is no image|No such file/,
    );
    expect(existsSync(path.join(directory, "x.qcow2"))).toBe(false);
    for (const args of [["chain"], ["jobs"], ["stream"], ["snapshot", "virtio0", "x"], ["monitor"]]) {
      await expectFailure(strata, args, 1, NO_DAEMON);
    }
    await expectFailure(strata, ["jobs", "--control", "./none.qmp"], 1, /no daemon listens at/);
  });

  it("does not take a disk that another process writes to", async () => {
    const { chain, strata } = await atChain();
    const held = await HeldImage.hold(chain.file("E"));
    await expectFailure(strata, ["serve", "file-E.img"], 1, /lock|in use/i);
    await expectFailure(strata, ["info", "file-E.img"], 1, /add -U/);
    expect(await strata.ok("info", "-U", "file-E.img")).toContain("file format: qcow2");
    await expectFailure(strata, ["check", "file-E.img"], 1, /lock|in use/i);
    await held.release();
    await strata.serve("file-E.img");
    await expectFailure(strata, ["serve", "file-E.img"], 1, /lock|in use/i);
  });

  it("says when a port or a socket is taken", async () => {
    const { disk, strata } = atDisk();
    const taken = createServer();
    await new Promise<void>((resolve) => taken.listen(0, "127.0.0.1", resolve));
    onTestFinished(() => void taken.close());
    const { port } = taken.address() as { port: number };
    await expectFailure(strata, ["serve", disk, "-f", "raw", "--port", String(port)], 1, /in use/);
    await strata.serve(disk, "-f", "raw", "--read-only", "--socket", "s.sock");
    await expectFailure(
      strata,
      ["serve", disk, "-f", "raw", "--read-only", "--socket", "s.sock"],
      1,
      /in use/,
    );
  });

  it("refuses merges that cannot be, and tells which job or image is in the way", async () => {
    const { strata } = await atChain();
    await strata.serve("file-E.img");
    await expectFailure(
      strata,
      ["stream", "nonsense"],
      1,
      /no device, node or file is called 'nonsense': there are/,
    );
    await expectFailure(strata, ["stream", "--base", "nonsense"], 1, /is called 'nonsense'/);
    await expectFailure(strata, ["stream", "file-B", "--base", "file-D"], 1, /file-D/);
    await expectFailure(strata, ["stream", "--speed", "fast"], 2, /'fast' is no speed/);
    await expectFailure(strata, ["snapshot", "virtio0", "x.raw", "-f", "raw"], 2, /no backing link/);
    await expectFailure(strata, ["snapshot", "virtio0", "none/x.qcow2"], 1, /none\/x\.qcow2/);
    await expectFailure(strata, ["jobs", "pause", "nonsense"], 1, /no job is called 'nonsense'/);
  });

  it("refuses to stream into a raw disk, and says why", async () => {
    const { disk, strata } = atDisk();
    await strata.serve(disk, "-f", "raw");
    await expectFailure(strata, ["stream"], 1, /raw|backing/);
  });

  it("does not use a control directory that others may write to", async () => {
    const { directory, disk, strata } = atDisk();
    await strata.run(["serve", disk]);
    const run = path.join(directory, "run/strata");
    if (existsSync(run)) chmodSync(run, 0o777);
    else return;
    await expectFailure(strata, ["serve", disk, "-f", "raw"], 1, /others may write/);
  });
});

describe("help", () => {
  const COMMANDS = [
    "serve",
    "chain",
    "stream",
    "snapshot",
    "jobs",
    "monitor",
    "create",
    "info",
    "map",
    "check",
    "demo",
  ];

  it("has an example for every command", async () => {
    const strata = new Strata(scratchDirectory());
    const overview = await strata.ok("--help");
    for (const command of COMMANDS) {
      expect(overview).toMatch(new RegExp(`^ {2}${command} `, "m"));
      expect(await strata.ok(command, "--help")).toContain(`Example`);
    }
  });
});

describe("the demo", () => {
  it.each([["with the file system that is installed"], ["with its own", "--fat"]])(
    "proves it %s",
    async (_, ...more) => {
      const directory = scratchDirectory();
      const strata = new Strata(directory);
      const said = await strata.ok("demo", "--seed", "3", "--directory", directory, ...more);
      expect(said).toContain("[A] <- [B] <- [C] <- [D] <- [E]");
      expect(said).toContain("[A] <- [B] <- [D] <- [E]");
      expect(said).toContain("[A] <- [E]");
      expect(said).toContain("qemu-img compare: identical");
      expect(said).toContain("Every byte is what it should be.");
      expect(existsSync(path.join(directory, "run"))).toBe(true);
    },
  );
});
