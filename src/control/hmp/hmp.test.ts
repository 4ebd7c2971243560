import { describe, expect, it } from "vitest";
import type { BlockNode } from "../../block/node.ts";
import { HMP_COMMAND_NAMES, HMP_INFO_TOPICS, runHmpLine } from "./commands.ts";
import { splitLine } from "./line.ts";
import { HMP_PROMPT, HmpSession } from "./session.ts";
import type { HmpTarget } from "./target.ts";

interface Call {
  readonly command: string;
  readonly args: Record<string, unknown>;
}

/** A node that the monitor only looks at. */
function node(name: string, filename: string, backing?: BlockNode, link?: string): BlockNode {
  return {
    ...{ name, filename, backing, file: undefined, driverName: "qcow2", readOnly: backing === undefined },
    ...{ size: 1 << 20, details: () => (link === undefined ? {} : { backingFile: link }) },
  } as unknown as BlockNode;
}

function fiveImages() {
  const a = node("node-A", "/images/A");
  const b = node("node-B", "/images/file-B.img", a, "A");
  const c = node("node-C", "/images/C.qcow2", b, "file-B.img");
  const d = node("node-D", "/images/D.qcow2", c, "C.qcow2");
  const e = node("node-E", "/images/E.qcow2", d, "D.qcow2");
  return [a, b, c, d, e];
}

class FakeTarget implements HmpTarget {
  readonly calls: Call[] = [];
  readonly answers = new Map<string, unknown>();
  readonly chain = fiveImages();
  readonly deviceName: string;

  constructor(deviceName = "virtio0") {
    this.deviceName = deviceName;
  }

  async execute(command: string, args: Record<string, unknown>): Promise<unknown> {
    this.calls.push({ command, args });
    return this.answers.get(command) ?? {};
  }

  devices() {
    return [{ name: this.deviceName, id: "exp0", node: this.chain[4]!, readOnly: false }];
  }

  nodes() {
    return this.chain;
  }
}

describe("the lines of the monitor", () => {
  it.each([
    ["block_stream virtio0 A", { device: "node-E", "job-id": "virtio0", "base-node": "node-A" }],
    ["block_stream node-D file-B.img", { device: "node-D", "job-id": "node-D", "base-node": "node-B" }],
    ["block_stream virtio0", { device: "node-E", "job-id": "virtio0" }],
    [
      "block_stream exp0 node-B 10M",
      { device: "node-E", "job-id": "virtio0", "base-node": "node-B", speed: 10485760 },
    ],
    [
      "block_stream /images/D.qcow2 /images/A",
      { device: "node-D", "job-id": "node-D", "base-node": "node-A" },
    ],
  ])("%s", async (line, args) => {
    const target = new FakeTarget();
    expect(await runHmpLine(target, line)).toBe("");
    expect(target.calls).toEqual([{ command: "block-stream", args }]);
  });

  it("snapshot_blkdev makes a node named after the file", async () => {
    const target = new FakeTarget("ide0-hd0");
    await runHmpLine(target, "snapshot_blkdev ide0-hd0 /new-path/disk.img qcow2");
    expect(target.calls).toEqual([
      {
        command: "blockdev-snapshot-sync",
        args: {
          ...{ "node-name": "node-E", "snapshot-file": "/new-path/disk.img", "snapshot-node-name": "disk" },
          ...{ format: "qcow2", mode: "absolute-paths" },
        },
      },
    ]);
  });

  it("snapshot_blkdev -n uses a file that is there, and a free node name", async () => {
    const target = new FakeTarget();
    await runHmpLine(target, 'snapshot_blkdev -n virtio0 "/with blank/node-A.img"');
    expect(target.calls[0]!.args).toMatchObject({
      ...{ "snapshot-file": "/with blank/node-A.img", "snapshot-node-name": "node-A-2", mode: "existing" },
    });
  });

  it.each([
    ["block_job_pause virtio0", "block-job-pause", { device: "virtio0" }],
    ["block_job_resume exp0", "block-job-resume", { device: "virtio0" }],
    ["block_job_cancel -f virtio0", "block-job-cancel", { device: "virtio0", force: true }],
    ["block_job_set_speed virtio0 1M", "block-job-set-speed", { device: "virtio0", speed: 1048576 }],
  ])("%s", async (line, command, args) => {
    const target = new FakeTarget();
    target.answers.set("query-block-jobs", [{ device: "virtio0" }]);
    await runHmpLine(target, line);
    expect(target.calls[1]).toEqual({ command, args });
  });

  it("info block-jobs in QEMU's words", async () => {
    const target = new FakeTarget();
    target.answers.set("query-block-jobs", []);
    expect(await runHmpLine(target, "info block-jobs")).toBe("No active jobs\n");
    const job = { device: "virtio0", type: "stream", len: 100, offset: 50, speed: 7, "io-status": "ok" };
    target.answers.set("query-block-jobs", [{ ...job, status: "running" }]);
    expect(await runHmpLine(target, "info block-jobs")).toBe(
      "Streaming device virtio0: Completed 50 of 100 bytes, speed limit 7 bytes/s\n",
    );
  });

  it("info block shows device, node, file and chain", async () => {
    const shown = await runHmpLine(new FakeTarget(), "info block");
    expect(shown).toContain("virtio0 (node-E): /images/E.qcow2 (qcow2)\n");
    expect(shown).toContain("Backing file:     /images/D.qcow2 (chain depth: 4)\n");
  });

  it("info chain draws the chain", async () => {
    expect(await runHmpLine(new FakeTarget(), "info chain")).toBe(
      "virtio0: [node-A] <- [node-B] <- [node-C] <- [node-D] <- [node-E]\n",
    );
  });

  it("info counters shows what a node and its driver count", async () => {
    const target = new FakeTarget();
    target.chain.splice(1);
    Object.assign(target.chain[0]!, { counters: { reads: 7 }, driverCounters: () => ({ "lock-waits": 2 }) });
    expect(await runHmpLine(target, "info counters")).toBe("node-A:\n    reads:      7\n    lock-waits: 2\n");
  });

  it("help has a line for every command, and info for every topic", async () => {
    const target = new FakeTarget();
    const help = (await runHmpLine(target, "help")).trimEnd().split("\n");
    expect(help.map((line) => line.split(" ")[0])).toEqual(HMP_COMMAND_NAMES);
    const topics = (await runHmpLine(target, "info")).trimEnd().split("\n");
    expect(topics.map((line) => line.split(" ")[1])).toEqual(HMP_INFO_TOPICS);
    expect(await runHmpLine(target, "help block_stream")).toContain("block_stream device [base] [speed] -- ");
  });
});

describe("lines that cannot be carried out", () => {
  it.each([
    ["nonsense", "unknown command: 'nonsense'; see 'help'"],
    ["help nonsense", "unknown command: 'nonsense'; see 'help'"],
    ["block_stream", "block_stream: device expected"],
    ["block_stream virtio0 A 1M more", "block_stream: extraneous characters at the end of line: 'more'"],
    ["block_stream -x virtio0", "block_stream: unsupported option -x"],
    ["block_stream none", "Cannot find device, node or file 'none'; there are: virtio0, node-A"],
    ["block_stream virtio0 none", "'none' cannot be the base for 'node-E': it is not in its backing chain"],
    ["block_stream node-B node-D", "'node-D' cannot be the base for 'node-B': it is not below it"],
    ["block_job_pause virtio0", "Block job 'virtio0' not found; there are none"],
    ["info nothing", "unknown topic: 'info nothing'"],
    ["info constructor", "unknown topic: 'info constructor'"],
    ['block_stream "virtio0', "unterminated string"],
    ["block_job_set_speed virtio0 fast", "block_job_set_speed: speed: 'fast' is no size"],
  ])("%s", async (line, message) => {
    const target = new FakeTarget();
    target.answers.set("query-block-jobs", []);
    await expect(runHmpLine(target, line)).rejects.toThrow(message);
  });

  it("a file name that fits two images is refused", async () => {
    const target = new FakeTarget();
    target.chain.push(node("other", "/elsewhere/C.qcow2"));
    await expect(runHmpLine(target, "block_stream C.qcow2")).resolves.toBe("");
    target.chain.push(node("third", "/else/x.img"), node("fourth", "/where/x.img"));
    await expect(runHmpLine(target, "block_stream /other/x.img")).rejects.toThrow("Cannot find");
    await expect(runHmpLine(target, "snapshot_blkdev x.img /n.img")).rejects.toThrow(
      "'x.img' could be 'third' (/else/x.img) and 'fourth' (/where/x.img)",
    );
  });
});

describe("words", () => {
  it.each([
    ["", []],
    ["  a  b\tc ", ["a", "b", "c"]],
    ['a "b c" d', ["a", "b c", "d"]],
    ['"a\\"b\\\\c\\n"', ['a"b\\c\n']],
    ['""', [""]],
  ])("%j", (line, words) => {
    expect(splitLine(line)).toEqual(words);
  });
});

describe("a session", () => {
  it("prompts, runs lines in order however they are cut, and shows errors", async () => {
    let shown = "";
    const session = new HmpSession(new FakeTarget(), (text) => {
      shown += text;
    });
    for (const piece of ["info ch", "ain\r\nnonsense\n\n", "help qu", "it\n"])
      session.received(Buffer.from(piece));
    await session.idle;
    expect(shown).toBe(
      `Strata monitor - type 'help' for more information\n${HMP_PROMPT}` +
        `virtio0: [node-A] <- [node-B] <- [node-C] <- [node-D] <- [node-E]\n${HMP_PROMPT}` +
        `Error: unknown command: 'nonsense'; see 'help'\n${HMP_PROMPT}${HMP_PROMPT}` +
        `quit -- stop the daemon; everything is written first\n${HMP_PROMPT}`,
    );
  });

  it("refuses a line without end and goes on with the next", async () => {
    let shown = "";
    const session = new HmpSession(new FakeTarget(), (text) => {
      shown += text;
    });
    for (let i = 0; i < 40; i++) session.received(Buffer.alloc(65536, "x"));
    session.received(Buffer.from("\nhelp quit\n"));
    await session.idle;
    expect(shown.match(/Error: a line has at most/g)).toHaveLength(1);
    expect(shown.endsWith(`quit -- stop the daemon; everything is written first\n${HMP_PROMPT}`)).toBe(true);
  });
});
