import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { silentLogger } from "../base/logger.ts";
import { Prng } from "../base/prng.ts";
import { ExtentKind, ExtentList } from "../block/extent.ts";
import { Graph } from "../block/graph.ts";
import type { BlockNode } from "../block/node.ts";
import type { NodeOptions } from "../block/node-options.ts";
import { type DriverFactory, NodeOpener } from "../block/open.ts";
import { contentOf } from "../block/testing/array-world.ts";
import { FaultFile, RandomDelays } from "../sys/fault-file.ts";
import { MemoryFile } from "../sys/memory-file.ts";
import { blkdebugFactory } from "./blkdebug.ts";
import { leafFactory } from "./testing/leaf.ts";

async function open(options: Record<string, unknown>, bytes = 64 * 1024, growable = true) {
  const file = new FaultFile(MemoryFile.of(Buffer.alloc(bytes, 0xaa), { path: "disk" }));
  file.recording = true;
  const graph = new Graph();
  const factories: DriverFactory[] = [leafFactory(file, growable), blkdebugFactory];
  const opener = new NodeOpener(graph, factories, silentLogger);
  const image = { driver: "file", filename: "disk", "node-name": "leaf" };
  const node = await opener.open({
    driver: "blkdebug",
    "node-name": "dbg",
    image,
    ...options,
  } as NodeOptions);
  const calls = () =>
    file.recorded.splice(0).map(({ kind, offset, bytes: count }) => `${kind} ${offset}+${count}`);
  return { node, file, graph, calls, leaf: graph.get("leaf").driver };
}

const write = async (node: BlockNode, offset: number, bytes: number, value = 1) =>
  node.write(offset, bytes, Buffer.alloc(bytes, value), 0);

describe("blkdebug", () => {
  it("hands everything on while no rule is active", async () => {
    const { node, calls } = await open({});
    expect(node.write(512, 1024, Buffer.alloc(1024, 1), 0)).toBeUndefined();
    expect(node.writeVector(2048, [Buffer.alloc(512, 2), Buffer.alloc(512, 3)])).toBeUndefined();
    expect(node.writeZeroes(4096, 512)).toBeUndefined();
    expect(node.discard(8192, 4096)).toBeUndefined();
    expect(node.flush()).toBeUndefined();
    expect(calls()).toEqual([
      "write 512+1024",
      "write 2048+1024",
      "zeroes 4096+512",
      "discard 8192+4096",
      "sync 0+0",
    ]);
    const buffer = Buffer.alloc(1024);
    expect(node.read(512, 1024, buffer, 0)).toBeUndefined();
    expect(buffer).toEqual(Buffer.alloc(1024, 1));
    const list = new ExtentList(0);
    await node.extents(0, node.size, list);
    expect(list.extents.map(({ kind }) => kind)).toContain(ExtentKind.DATA);
  });

  it.each(["read", "write", "write-zeroes", "discard", "flush", "block-status"])(
    "fails '%s' when a rule names it, and the image never hears of it",
    async (iotype) => {
      const { node, calls } = await open({ "inject-error": [{ event: "none", iotype, errno: 28 }] });
      const requests: Record<string, () => unknown> = {
        read: () => node.read(0, 512, Buffer.alloc(512), 0),
        "write-zeroes": () => node.writeZeroes(0, 512),
        discard: () => node.discard(0, 512),
        "block-status": () => node.extents(0, 512, new ExtentList(0)),
        write: () => write(node, 0, 512),
        flush: () => node.flush(),
      };
      for (const [type, request] of Object.entries(requests)) {
        const done = Promise.resolve().then(request);
        if (type === iotype) await expect(done).rejects.toMatchObject({ code: "ENOSPC" });
        else await done;
      }
      const kind = { "write-zeroes": "zeroes", flush: "sync" }[iotype] ?? iotype;
      expect(calls().filter((call) => call.startsWith(`${kind} `))).toEqual([]);
    },
  );

  it("'immediately' throws, otherwise the error comes in a later turn", async () => {
    const now = await open({ "inject-error": [{ event: "none", immediately: true }] });
    expect(() => now.node.read(0, 512, Buffer.alloc(512), 0)).toThrow("Input/output error");
    const later = await open({ "inject-error": [{ event: "none" }] });
    const done = later.node.read(0, 512, Buffer.alloc(512), 0);
    expect(done).toBeInstanceOf(Promise);
    await expect(done).rejects.toThrow(/read of 512 bytes at offset 0 on node 'dbg' \(rule for 'none'\)/);
  });

  it("tells its own events: before a write, before zeros, and when they have ended, well or not", async () => {
    const { node } = await open({
      "set-state": [
        { event: "pwritev", state: 1, new_state: 2 },
        { event: "pwritev_done", state: 2, new_state: 3 },
        { event: "pwritev_zero", state: 3, new_state: 4 },
        { event: "pwritev_done", state: 4, new_state: 5 },
      ],
      "inject-error": [
        { event: "pwritev_zero", errno: 5, iotype: "write-zeroes" },
        { event: "pwritev", state: 5, errno: 28 },
      ],
    });
    await write(node, 0, 512);
    await expect(node.writeZeroes(0, 512)).rejects.toThrow("Input/output error");
    await expect(write(node, 0, 512)).rejects.toMatchObject({ code: "ENOSPC" });
  });

  it("a flush with nothing written since the last good one does not fail", async () => {
    const { node } = await open({ "inject-error": [{ event: "none", iotype: "flush", once: true }] });
    await node.flush();
    await write(node, 0, 512);
    await expect(node.flush()).rejects.toThrow("Input/output error");
    await node.flush();
  });

  it("reads rules from a file, and those of the options follow them", async () => {
    const directory = mkdtempSync(path.join(tmpdir(), "blkdebug-"));
    onTestFinished(() => rmSync(directory, { recursive: true }));
    const config = path.join(directory, "rules.conf");
    writeFileSync(config, '[inject-error]\nevent = "none"\nerrno = "28"\nonce = "on"\n');
    const { node } = await open({ config, "inject-error": [{ event: "none", errno: 5, once: true }] });
    await expect(write(node, 0, 512)).rejects.toMatchObject({ code: "ENOSPC" });
    await expect(write(node, 0, 512)).rejects.toMatchObject({ code: "EIO" });
    await write(node, 0, 512);
    await expect(open({ config: path.join(directory, "none") })).rejects.toThrow(
      /Could not read blkdebug config file '.*': .*No such file or directory/,
    );
  });

  it.each([
    [{ align: 3 }, "Cannot meet constraints with align 3"],
    [{ align: 2 ** 31 }, "Cannot meet constraints with align 2147483648"],
    [{ align: -1 }, "Value '-1' is out of range for parameter 'align'"],
    [{ align: 512, "max-transfer": 100 }, "Cannot meet constraints with max-transfer 100"],
    [{ "opt-write-zero": 4096, "max-write-zero": 512 }, "Cannot meet constraints with max-write-zero 512"],
    [{ align: 512, "opt-discard": 100 }, "Cannot meet constraints with opt-discard 100"],
    [{ "inject-error": [{ errno: 5 }] }, "Missing event name for rule"],
    [{ "inject-error": [{ event: "foo" }] }, "invalid parameter value: foo"],
    [{ "inject-error": [{ event: "none", errno: -5 }] }, "expects a number from 0 to 4095"],
    [{ "inject-error": [{ event: "vmstate_load" }] }, "event 'vmstate_load' never happens here"],
    [{ "set-state": [{ event: "vmstate_load", new_state: 2 }] }, "event 'vmstate_load' never happens here"],
    [{ "set-state": "x" }, "Invalid parameter type for 'set-state'"],
    [{ image: undefined }, 'A block device must be specified for "image"'],
    [{ "take-child-perms": ["foo"] }, "invalid parameter value: foo"],
  ])("refuses %j", async (options, message) => {
    await expect(open(options)).rejects.toThrow(message);
  });

  it("holds its image as 'image', with the permissions that it is told to take and to deny", async () => {
    const { graph, leaf } = await open({
      "read-only": true,
      image: { driver: "file", filename: "disk", "node-name": "leaf", "read-only": false },
      "take-child-perms": ["write"],
      "unshare-child-perms": ["consistent-read"],
    });
    expect(leaf.growable).toBe(true);
    const claim = { user: "somebody", role: "root", needs: 1, shares: 15 };
    expect(() => graph.use(graph.get("leaf"), claim)).toThrow(
      "permissions 'consistent read' are both required by somebody (uses node 'leaf' as 'root' child) and " +
        "unshared by node 'dbg' (uses node 'leaf' as 'image' child)",
    );
    expect(() => graph.use(graph.get("leaf"), { ...claim, needs: 0, shares: 1 })).toThrow(
      "permissions 'write'",
    );
  });

  it("may stand below and above others of its kind, and hears each flush from above", async () => {
    const image = { driver: "file", filename: "disk", "node-name": "leaf" };
    const inner = { driver: "blkdebug", "node-name": "inner", image };
    const { node } = await open({
      image: { ...inner, "inject-error": [{ event: "flush_to_os", iotype: "write", errno: 28 }] },
    });
    await write(node, 0, 512);
    await node.flush();
    await expect(write(node, 0, 512)).rejects.toMatchObject({ code: "ENOSPC" });
  });
});

describe("limits", () => {
  it("widens what is not aligned, and tells the steps of it", async () => {
    const { node, calls } = await open({
      align: 4096,
      "set-state": [
        { event: "pwritev_rmw_head", state: 1, new_state: 2 },
        { event: "pwritev_rmw_after_head", state: 2, new_state: 3 },
        { event: "pwritev_rmw_tail", state: 3, new_state: 4 },
        { event: "pwritev_rmw_after_tail", state: 4, new_state: 5 },
        { event: "pwritev", state: 5, new_state: 6 },
      ],
      "inject-error": [{ event: "pwritev_done", state: 6, iotype: "discard" }],
    });
    await write(node, 100, 12_000, 7);
    expect(calls()).toEqual(["write 0+12288"]);
    const after = await contentOf(node);
    expect(after.subarray(0, 12_200)).toEqual(
      Buffer.concat([Buffer.alloc(100, 0xaa), Buffer.alloc(12_000, 7), Buffer.alloc(100, 0xaa)]),
    );
    await expect(node.discard(0, 4096)).rejects.toThrow("Input/output error");
  });

  it("a failed read around a write is that write's error, and nothing was written", async () => {
    const { node, calls } = await open({
      align: 4096,
      "inject-error": [{ event: "pwritev_rmw_tail", iotype: "read", errno: 5 }],
    });
    await expect(write(node, 4096, 12_000)).rejects.toThrow("Input/output error");
    expect(calls()).toEqual([]);
  });

  it("cuts what is too long; a rule may fail one piece", async () => {
    const { node, calls } = await open({
      "max-transfer": 4096,
      "max-write-zero": 8192,
      "max-discard": 8192,
      "inject-error": [{ event: "none", sector: 16, errno: 28, iotype: "write" }],
    });
    await expect(write(node, 0, 12_288)).rejects.toMatchObject({ code: "ENOSPC" });
    expect(calls()).toEqual(["write 0+4096", "write 4096+4096"]);
    await node.writeZeroes(0, 20_480);
    await node.discard(0, 20_480);
    expect(calls()).toEqual([
      "zeroes 0+8192",
      "zeroes 8192+8192",
      "zeroes 16384+4096",
      "discard 0+8192",
      "discard 8192+8192",
      "discard 16384+4096",
    ]);
  });

  it("zeros and discards in units; what is left over at the ends is written, or left out", async () => {
    const { node, calls } = await open({ align: 512, "opt-write-zero": 4096, "opt-discard": 4096 });
    await node.writeZeroes(1024, 8192);
    expect(calls()).toEqual(["write 1024+3072", "zeroes 4096+4096", "write 8192+1024"]);
    await node.discard(1000, 8192);
    expect(calls()).toEqual(["discard 1024+3072", "discard 4096+4096", "discard 8192+512"]);
    await expect(node.writeZeroes(1024, 512, 4)).rejects.toMatchObject({ code: "ENOTSUP" });
  });

  it("does not make a file grow that cannot", async () => {
    const { node, calls } = await open({ align: 4096 }, 10_000, false);
    await write(node, 9_000, 1_000, 5);
    expect(calls()).toEqual(["write 8192+1808"]);
    expect((await contentOf(node)).subarray(8_990)).toEqual(
      Buffer.concat([Buffer.alloc(10, 0xaa), Buffer.alloc(1_000, 5)]),
    );
  });

  it("any requests at once, in any order of completion, give what a plain disk gives; 40 seeds", async () => {
    for (let seed = 1; seed <= 40; seed++) await compareWithArray(seed);
  });
});

async function compareWithArray(seed: number): Promise<void> {
  const prng = new Prng(seed);
  const size = 32 * 1024 + prng.below(1000);
  const align = prng.pick([1, 512, 4096]);
  const { node, file } = await open(
    {
      align,
      "max-transfer": prng.pick([0, Math.max(align, 512) * 2]),
      "opt-write-zero": prng.pick([0, 16_384]),
      "max-write-zero": prng.pick([0, 16_384]),
    },
    size,
    prng.chance(0.5),
  );
  file.delays = new RandomDelays(prng);
  const model = Buffer.alloc(size, 0xaa);
  for (let round = 0; round < 4; round++) {
    const waiting: unknown[] = [];
    for (let from = 0; from < size; ) {
      // Neighbours that share blocks, but no bytes: each must keep the other's.
      const bytes = Math.min(size - from, 1 + prng.below(5000));
      const value = prng.below(256);
      if (prng.chance(0.7)) {
        waiting.push(write(node, from, bytes, value));
        model.fill(value, from, from + bytes);
      } else if (prng.chance(0.5)) {
        waiting.push(node.writeZeroes(from, bytes));
        model.fill(0, from, from + bytes);
      }
      from += bytes;
    }
    await Promise.all(waiting);
    const from = prng.below(size);
    const part = Buffer.alloc(prng.below(size - from) + 1);
    await node.read(from, part.length, part, 0);
    expect(part.equals(model.subarray(from, from + part.length)), `seed ${seed}`).toBe(true);
    expect((await contentOf(node)).subarray(0, size).equals(model), `seed ${seed}`).toBe(true);
  }
}
