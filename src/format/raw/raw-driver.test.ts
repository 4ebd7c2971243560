import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Prng } from "../../base/prng.ts";
import { TiB } from "../../base/units.ts";
import { ExtentKind, ExtentList } from "../../block/extent.ts";
import { BlockNode } from "../../block/node.ts";
import { FileDriver } from "../../protocol/file/file-driver.ts";
import { FaultFile, RandomDelays } from "../../sys/fault-file.ts";
import type { HostFile } from "../../sys/host-file.ts";
import { MemoryFile } from "../../sys/memory-file.ts";
import { hasProgram } from "../../sys/testing/places.ts";
import { createRaw } from "./create.ts";
import { RawDriver, type RawOptions } from "./raw-driver.ts";

function rawOver(file: HostFile, options: RawOptions = {}, growable = true): BlockNode {
  const leaf = new BlockNode({ name: "leaf", filename: "memory" }, undefined, false);
  leaf.install(new FileDriver(file, { growable }));
  const node = new BlockNode({ name: "raw", filename: "memory" }, leaf, false);
  node.install(new RawDriver(node, options));
  return node;
}

async function contentOf(node: BlockNode, offset: number, bytes: number): Promise<string> {
  const buffer = Buffer.alloc(bytes, 0xee);
  await node.read(offset, bytes, buffer, 0);
  return buffer.toString("latin1");
}

async function extentsOf(node: BlockNode, offset: number, bytes: number) {
  const list = new ExtentList(offset);
  await node.extents(offset, bytes, list);
  return list.extents.map((extent) => [extent.offset, extent.bytes, extent.kind, extent.hostOffset]);
}

const { ZERO, DATA } = ExtentKind;

describe("the raw driver", () => {
  it.each([0, 1, 511, 512, 513, 1000, 4096, 2 * TiB + 1])(
    "rounds a file of %i bytes up to sectors",
    (size) => {
      expect(rawOver(new MemoryFile({ size })).size).toBe(Math.ceil(size / 512) * 512);
    },
  );

  it("reads zeros where the file lacks the last sector's end, and grows by writing there", async () => {
    const file = MemoryFile.of(Buffer.alloc(1000, "x"));
    const node = rawOver(file);
    expect(await contentOf(node, 998, 26)).toBe(`xx${"\0".repeat(24)}`);
    expect(await contentOf(node, 1010, 14)).toBe("\0".repeat(14));
    await node.write(1020, 4, Buffer.from("tail"), 0);
    expect([file.size, node.size]).toEqual([1024, 1024]);
    expect(await contentOf(node, 998, 26)).toBe(`xx${"\0".repeat(20)}tail`);
    expect(() => node.write(1020, 5, Buffer.from("tail!"), 0)).toThrow(/outside of node/);
  });

  it("does the same over a node that cannot grow, except that nothing can be written there", async () => {
    const file = MemoryFile.of(Buffer.alloc(1000, "x"));
    const node = rawOver(file, {}, false);
    expect(await contentOf(node, 998, 26)).toBe(`xx${"\0".repeat(24)}`);
    expect(() => node.write(998, 26, Buffer.alloc(26), 0)).toThrow(
      expect.objectContaining({ code: "ENOSPC" }),
    );
    expect(() => node.writeVector(998, [Buffer.alloc(26)])).toThrow(
      expect.objectContaining({ code: "ENOSPC" }),
    );
    await node.writeZeroes(990, 34);
    await node.discard(900, 124);
    expect(file.size).toBe(1000);
    expect(await contentOf(node, 898, 4)).toBe("xx\0\0");
  });

  it("shows a window of the file", async () => {
    const file = MemoryFile.of(Buffer.alloc(8192, "."), { size: 8192 });
    const node = rawOver(file, { offset: 1024, size: 2048 });
    expect(node.size).toBe(2048);
    await node.write(0, 5, Buffer.from("begin"), 0);
    await node.write(2045, 3, Buffer.from("end"), 0);
    await node.writeVector(100, [Buffer.from("a"), Buffer.from("b")]);
    await node.writeZeroes(200, 10);
    await node.discard(300, 10);
    const expected = Buffer.alloc(8192, ".");
    expected.write("begin", 1024);
    expected.write("end", 1024 + 2045);
    expected.write("ab", 1124);
    expected.fill(0, 1224, 1234);
    expected.fill(0, 1324, 1334);
    expect(file.content().equals(expected)).toBe(true);
    expect(() => node.read(2047, 2, Buffer.alloc(2), 0)).toThrow(/outside of node/);
    expect(() => node.truncate(4096)).toThrow("Cannot resize fixed-size raw disks");
  });

  it("refuses windows that do not fit, in QEMU's words", () => {
    const over = (options: RawOptions) => () => rawOver(new MemoryFile({ size: 8192 }), options);
    expect(over({ offset: 8193 })).toThrow(
      "Offset (8193) cannot be greater than size of the containing file (8192)",
    );
    expect(over({ offset: 512, size: 8192 })).toThrow(
      "The sum of offset (512) and size (8192) has to be smaller or equal to the " +
        " actual size of the containing file (8192)",
    );
    expect(over({ size: 1000 })).toThrow("Specified size is not multiple of 512");
    expect(over({ offset: 8192 })).not.toThrow();
  });

  it("tells its file's data and holes, and zeros where the last sector is not in the file", async () => {
    const file = new MemoryFile({ size: 20_000 });
    file.write(8192, 4096, Buffer.alloc(4096, 1), 0);
    expect(await extentsOf(rawOver(file), 0, 20_480)).toEqual([
      [0, 8192, ZERO, 0],
      [8192, 4096, DATA, 8192],
      [12_288, 20_000 - 12_288, ZERO, 12_288],
      [20_000, 480, ZERO, -1],
    ]);
    expect(await extentsOf(rawOver(file, { offset: 4096, size: 8192 }), 0, 8192)).toEqual([
      [0, 4096, ZERO, 4096],
      [4096, 4096, DATA, 8192],
    ]);
  });

  it("grows and shrinks with its file", async () => {
    const file = new MemoryFile({ size: 4096 });
    const node = rawOver(file, { offset: 512 });
    expect(node.size).toBe(3584);
    await node.truncate(1 * TiB);
    expect([node.size, file.size]).toEqual([1 * TiB, 1 * TiB + 512]);
    await node.truncate(1000);
    expect([node.size, file.size]).toEqual([1024, 1512]);
    expect(() => node.truncate(Number.MAX_SAFE_INTEGER)).toThrow("Disk size too large for the chosen offset");
  });

  it("says where in its file a range stands, unless the file lacks some of it or a filter listens", () => {
    const { driver } = rawOver(MemoryFile.of(Buffer.alloc(5000)), { offset: 1024 });
    const place = (offset: number, bytes: number) => driver.placeOf?.(offset, bytes);
    expect([place(0, 1), place(512, 3464), place(512, 3465)]).toEqual([1024, 1536, -1]);
    const listening = rawOver(MemoryFile.of(Buffer.alloc(5000)));
    const { driver: leaf } = listening.file!;
    leaf.debugEvent = () => {};
    expect(new RawDriver(listening).placeOf(0, 512)).toBe(-1);
  });

  it("has no backing and no copy-up", async () => {
    const node = rawOver(new MemoryFile({ size: 4096 }));
    expect(node.driver.supportsBacking).toBe(false);
    await expect(node.copyUp(0, 4096, undefined)).rejects.toMatchObject({ code: "ENOTSUP" });
  });

  it("agrees with an array while the host is late at random", async () => {
    const seed = 4242;
    const prng = new Prng(seed);
    const size = 10_100;
    const memory = new MemoryFile({ size: size + 700 });
    const node = rawOver(new FaultFile(memory, new RandomDelays(prng)), { offset: 700 });
    const model = Buffer.alloc(node.size);
    for (let step = 0; step < 500; step++) {
      const offset = prng.below(node.size);
      const bytes = prng.below(node.size - offset) + 1;
      const action = prng.below(4);
      if (action === 0) {
        const content = prng.fill(Buffer.alloc(bytes));
        await node.write(offset, bytes, content, 0);
        content.copy(model, offset);
      } else if (action === 1) {
        await node.writeZeroes(offset, bytes);
        model.fill(0, offset, offset + bytes);
      } else if (action === 2) {
        await node.discard(offset, bytes);
        model.fill(0, offset, offset + bytes);
      }
      const expected = model.subarray(offset, offset + bytes).toString("latin1");
      expect(await contentOf(node, offset, bytes), `seed ${seed}, step ${step}`).toBe(expected);
    }
    expect(memory.content(0, 700).equals(Buffer.alloc(700))).toBe(true);
  });
});

const directory = mkdtempSync(join(tmpdir(), "strata-test-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

describe("creating a raw image", () => {
  it("makes a sparse file of whole sectors", async () => {
    const path = join(directory, "created.raw");
    await createRaw(path, { size: 1 * TiB + 1 });
    expect(statSync(path).size).toBe(1 * TiB + 512);
    expect(statSync(path).blocks).toBe(0);
    await expect(createRaw(path, { size: 512, exclusive: true })).rejects.toMatchObject({ code: "EEXIST" });
    await expect(createRaw(path, { size: -512 })).rejects.toMatchObject({ code: "EINVAL" });
  });

  it.skipIf(!hasProgram("qemu-img"))(
    "has the size that QEMU sees, also in windows and odd files",
    async () => {
      const path = join(directory, "odd.raw");
      const virtualSize = (options: string) => {
        const target = `driver=raw,${options}file.driver=file,file.filename=${path}`;
        const done = spawnSync("qemu-img", ["info", "--output=json", "--image-opts", target], {
          encoding: "utf8",
        });
        return (JSON.parse(done.stdout) as { "virtual-size": number })["virtual-size"];
      };
      for (const size of [1, 511, 512, 513, 1000, 1020, 65_537]) {
        writeFileSync(path, "");
        truncateSync(path, size);
        expect(rawOver(new MemoryFile({ size })).size, `${size} bytes`).toBe(virtualSize(""));
        const offset = Math.min(size, 510);
        const window = rawOver(new MemoryFile({ size }), { offset });
        expect(window.size, `${size} bytes from ${offset}`).toBe(virtualSize(`offset=${offset},`));
      }
      await createRaw(path, { size: 1000 });
      const made = statSync(path).size;
      execFileSync("qemu-img", ["create", "-q", "-f", "raw", path, "1000"]);
      expect(made).toBe(statSync(path).size);
    },
  );
});
