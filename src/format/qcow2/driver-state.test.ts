// Opening for writing, closing, the backing link, growing: what stands in the header and when.

import path from "node:path";
import { describe, expect, it } from "vitest";
import { KiB, MiB } from "../../base/units.ts";
import { FaultFile } from "../../sys/fault-file.ts";
import { MemoryFile } from "../../sys/memory-file.ts";
import { checkImage } from "./check.ts";
import type { CreateOptions } from "./create.ts";
import { openQcow2 } from "./driver.ts";
import {
  AUTOCLEAR_BITMAPS,
  FEATURES_OFFSET,
  Incompatible,
  parseHeader,
  serializeFeatures,
  serializeHeader,
} from "./header.ts";
import { ExtensionMagic } from "./header-extensions.ts";
import { FILLER_MAGIC, planLink } from "./header-update.ts";
import { hostImageFile } from "./image-file.ts";
import { fileNode, newMemoryImage, openImage, readAll, writeAll } from "./testing/nodes.ts";
import { USE_MARKER_MAGIC } from "./use-marker.ts";

const CLUSTER = 4 * KiB;

function headerOf(host: MemoryFile) {
  return parseHeader(host.content(0, 64 * KiB), host.size);
}

async function image(options: Partial<CreateOptions> = {}): Promise<MemoryFile> {
  return newMemoryImage({ size: 4 * MiB, clusterSize: CLUSTER, ...options });
}

async function verdict(host: MemoryFile) {
  const { corruptions, leaks, checkErrors } = await checkImage(hostImageFile(host));
  return { corruptions, leaks, checkErrors };
}

const CLEAN = { corruptions: 0, leaks: 0, checkErrors: 0 };

/** Sets feature bits in the file. */
function setFeatures(host: MemoryFile, change: (header: ReturnType<typeof headerOf>) => void): void {
  const header = headerOf(host);
  change(header);
  const features = serializeFeatures(header);
  host.write(FEATURES_OFFSET, features.length, features, 0);
}

describe("opening for writing", () => {
  it("clears unknown autoclear bits, and leaves them when only reading", async () => {
    const host = await image();
    setFeatures(host, (header) => {
      header.autoclear = 1n << 40n;
    });
    await openImage(host, { readOnly: true });
    expect(headerOf(host).autoclear).toBe(1n << 40n);
    const { driver } = await openImage(host);
    expect(headerOf(host).autoclear).toBe(0n);
    await driver.close();
  });

  it("repairs the refcounts of a dirty image first", async () => {
    const host = await image({ lazyRefcounts: true });
    const first = await openImage(host);
    await writeAll(first.node, 0, Buffer.alloc(MiB, 1));
    await first.driver.close();
    // As left by a writer with lazy refcounts: entries are there, refcounts are not.
    const block = first.driver.image.refcounts.blockOffset(0);
    host.write(block + 16, 300, Buffer.alloc(300), 0);
    setFeatures(host, (header) => {
      header.incompatible |= Incompatible.DIRTY;
    });
    const again = await openImage(host);
    expect(headerOf(host).incompatible & Incompatible.DIRTY).toBe(0);
    await writeAll(again.node, 2 * MiB, Buffer.alloc(MiB, 2));
    expect((await readAll(again.node, 0, MiB)).equals(Buffer.alloc(MiB, 1))).toBe(true);
    await again.driver.close();
    expect(await verdict(host)).toEqual(CLEAN);
  });

  it("refuses a corrupt image by name; reading is allowed", async () => {
    const host = await image();
    setFeatures(host, (header) => {
      header.incompatible |= Incompatible.CORRUPT;
    });
    await expect(openImage(host)).rejects.toThrow("Image is corrupt; cannot be opened read/write");
    const { node } = await openImage(host, { readOnly: true });
    expect(node.details().corrupt).toBe(true);
  });

  it("frees what a writer that was killed leaked, and tells apart who closed", async () => {
    const host = await image();
    const { node } = await openImage(host);
    expect(headerOf(host).extensions.some(({ magic }) => magic === USE_MARKER_MAGIC)).toBe(false);
    await writeAll(node, 0, Buffer.alloc(MiB, 1));
    await node.flush();
    await node.discard(0, MiB);
    await node.flush();
    // Killed here: the refcounts of what was discarded are still 1 in the file.
    const killed = MemoryFile.of(host.content());
    expect((await verdict(killed)).leaks).toBeGreaterThan(200);
    const next = await openImage(killed);
    expect(await verdict(killed)).toEqual(CLEAN);
    await next.driver.close();
    const marker = headerOf(killed).extensions.find(({ magic }) => magic === USE_MARKER_MAGIC);
    expect(marker?.data[0]).toBe(0);
  });

  it("frees what a writer that only discarded leaked when it was killed", async () => {
    const host = await image();
    const first = await openImage(host);
    await writeAll(first.node, 0, Buffer.alloc(MiB, 1));
    await first.driver.close();
    const second = await openImage(host);
    await second.node.discard(0, MiB);
    await second.node.flush();
    const killed = MemoryFile.of(host.content());
    expect((await verdict(killed)).leaks).toBeGreaterThan(200);
    await (await openImage(killed)).driver.close();
    expect(await verdict(killed)).toEqual(CLEAN);
  });

  it("frees what was counted for clusters that a power cut left past the end of the file", async () => {
    const host = await image();
    const { node } = await openImage(host);
    const before = host.size;
    await writeAll(node, 0, Buffer.alloc(MiB, 1));
    await node.flush();
    // Of what that flush wrote only the refcounts arrived: no data, so no length, and no entries.
    const cut = MemoryFile.of(host.content());
    cut.truncate(before);
    const { header } = (await openImage(host, { readOnly: true })).driver.image;
    cut.write(header.l1TableOffset, 8, Buffer.alloc(8), 0);
    expect((await verdict(cut)).corruptions).toBe(0);
    const next = await openImage(cut);
    await writeAll(next.node, 0, Buffer.alloc(MiB, 2));
    await next.driver.close();
    expect(await verdict(cut)).toEqual(CLEAN);
  });

  it("marks bitmaps at the first write, not before", async () => {
    const host = await image({ clusterSize: 64 * KiB });
    const directory = Buffer.alloc(32);
    directory.writeUInt32BE(2, 12);
    directory[16] = 1;
    directory[17] = 16;
    directory.writeUInt16BE(3, 18);
    directory.write("bm0", 24);
    const at = Math.ceil(host.size / (64 * KiB)) * 64 * KiB;
    directory.writeBigUInt64BE(BigInt(at + 64 * KiB), 0);
    directory.writeUInt32BE(1, 8);
    host.write(at, directory.length, directory, 0);
    host.truncate(at + 128 * KiB);
    const header = headerOf(host);
    header.bitmaps = { bitmapCount: 1, directoryBytes: 32, directoryOffset: at };
    header.autoclear = AUTOCLEAR_BITMAPS;
    const area = serializeHeader(header);
    host.write(0, area.length, area, 0);
    // Directory and table are counted: the two clusters behind the others.
    const refcountBlock = Number(host.content(header.refcountTableOffset, 8).readBigUInt64BE(0));
    host.write(refcountBlock + (at / (64 * KiB)) * 2, 4, Buffer.from([0, 1, 0, 1]), 0);

    const flags = () => host.content(at + 12, 4).readUInt32BE(0);
    const first = await openImage(host);
    await readAll(first.node, 0, MiB);
    await first.node.flush();
    await first.driver.close();
    expect(flags()).toBe(2);
    const second = await openImage(host);
    await writeAll(second.node, 0, Buffer.from([1]));
    expect(flags()).toBe(3);
    expect(second.node.details().formatSpecific?.data["bitmaps"]).toEqual([
      { flags: ["in-use", "auto"], name: "bm0", granularity: 65536 },
    ]);
    await second.driver.close();
  });

  it("goes back to reading: everything is in the file, and again to writing", async () => {
    const host = await image();
    const { node, driver } = await openImage(host);
    await writeAll(node, 0, Buffer.alloc(100, 1));
    await driver.setWritable(false);
    expect(await verdict(host)).toEqual(CLEAN);
    await driver.setWritable(true);
    await writeAll(node, MiB, Buffer.alloc(100, 2));
    await driver.close();
    expect(await verdict(host)).toEqual(CLEAN);
  });
});

describe("the backing link", () => {
  const unknown = { magic: 0x12345678, data: Buffer.from("kept as it is") };

  /** An image with everything in its header that a change of the link must keep. */
  async function linked(clusterSize: number, version: 2 | 3 = 3): Promise<MemoryFile> {
    const host = await image({
      clusterSize,
      version,
      ...(version === 3 ? { compressionType: "zstd" } : {}),
      backingFile: "base.qcow2",
      backingFormat: "qcow2",
    });
    const header = headerOf(host);
    header.extensions.push(unknown);
    const area = serializeHeader(header);
    host.write(0, area.length, area, 0);
    return host;
  }

  for (const [clusterSize, version] of [
    [512, 2],
    [512, 3],
    [4096, 3],
    [65536, 2],
    [65536, 3],
  ] as const) {
    it(`changes; everything else stays (clusters of ${clusterSize}, version ${version})`, async () => {
      const host = await linked(clusterSize, version);
      const before = headerOf(host);
      const { driver } = await openImage(host);
      const names = ["A", "/a/much/longer/name/of/a/backing/file.raw", undefined, "B.qcow2"] as const;
      for (const name of names) {
        const format = name === undefined ? undefined : name.endsWith("raw") ? "raw" : "qcow2";
        await driver.changeBackingLink(name, format);
        const { backingFile, backingFormat, extensions, ...rest } = headerOf(host);
        expect([backingFile, backingFormat]).toEqual([name, format]);
        const known = extensions.filter(({ magic }) => before.extensions.some((e) => e.magic === magic));
        expect(known).toEqual(before.extensions);
        const { backingFile: _, backingFormat: __, extensions: ___, ...restBefore } = before;
        expect(rest).toEqual(restBefore);
      }
      await driver.close();
      expect(await verdict(host)).toEqual(CLEAN);
    });
  }

  it("is committed by the first sector: torn anywhere, it is the old one or the new one", async () => {
    for (const file of ["x".repeat(10), "y".repeat(400), "z".repeat(1000), undefined]) {
      const host = await linked(4096);
      const inner = await openImage(new FaultFile(host));
      await inner.driver.close();
      const start = host.content();
      const recorder = new FaultFile(host);
      recorder.recording = true;
      const { driver } = await openImage(recorder);
      await driver.changeBackingLink(file, file === undefined ? undefined : "raw");
      const states = tornStates(start, recorder);
      expect(states.length).toBeGreaterThan(3);
      for (const state of states) {
        const { backingFile, backingFormat } = parseHeader(state, start.length);
        const isOld = backingFile === "base.qcow2" && backingFormat === "qcow2";
        const isNew = backingFile === file && (file === undefined || backingFormat === "raw");
        expect(isOld || isNew, `${backingFile} ${backingFormat}`).toBe(true);
      }
    }
  });

  it.each([
    [1024, 500, ""],
    [1024, 500, "below/"],
    [2048, 1000, ""],
  ])(
    "is so where the header has no room for both names, since the old base has a shorter one (%d, %d, '%s')",
    async (clusterSize, folderBytes, below) => {
      const folder = `/${"f".repeat(folderBytes)}`;
      const [before, after] = [`${folder}/${below}old.qcow2`, `${folder}/the-new-one.raw`];
      const options = { size: 64 * KiB, clusterSize, backingFile: before, backingFormat: "qcow2" };
      const host = await newMemoryImage(options, `${folder}/top.qcow2`);
      const start = host.content();
      const recorder = new FaultFile(host);
      recorder.recording = true;
      const { driver } = await openImage(recorder);
      await driver.changeBackingLink(after, "raw");
      expect(headerOf(host)).toMatchObject({ backingFile: after, backingFormat: "raw" });
      for (const state of tornStates(start, recorder)) {
        const { backingFile, backingFormat } = parseHeader(state, start.length);
        const link = `${path.resolve(folder, backingFile!)} ${backingFormat}`;
        expect([`${before} qcow2`, `${after} raw`]).toContain(link);
      }
      await driver.close();
      expect(await verdict(host)).toEqual(CLEAN);
    },
  );

  /** The header area after each prefix of the sectors written between two syncs, and of each sector alone. */
  function tornStates(start: Buffer, { recorded }: FaultFile): Buffer[] {
    const states: Buffer[] = [];
    let durable: Buffer = Buffer.from(start);
    let pending: { offset: number; part: Buffer }[] = [];
    for (const { kind, offset, content } of recorded) {
      if (kind === "write" && content !== undefined) {
        for (let at = 0; at < content.length; ) {
          const end = Math.min(content.length, at + 512 - ((offset + at) % 512));
          pending.push({ offset: offset + at, part: content.subarray(at, end) });
          at = end;
        }
      }
      if (kind !== "sync") continue;
      for (const subset of [pending, pending.slice(1), pending.slice(0, 1), ...pending.map((one) => [one])]) {
        states.push(applied(durable, subset));
      }
      durable = applied(durable, pending);
      states.push(durable);
      pending = [];
    }
    return states.map((state) => state.subarray(0, 4096));
  }

  function applied(state: Buffer, parts: readonly { offset: number; part: Buffer }[]): Buffer {
    const next = Buffer.from(state);
    for (const { offset, part } of parts) part.copy(next, offset);
    return next;
  }

  it("is refused when the name does not fit, and the old one stays", async () => {
    const host = await linked(512);
    const { driver } = await openImage(host);
    expect(() => driver.checkBackingLink("n".repeat(1000), "raw")).toThrow("does not fit");
    driver.checkBackingLink("other.qcow2", "raw");
    await expect(driver.changeBackingLink("n".repeat(1000), "raw")).rejects.toMatchObject({ code: "ENOSPC" });
    await expect(driver.changeBackingLink("n".repeat(2000), "raw")).rejects.toMatchObject({ code: "EINVAL" });
    expect(headerOf(host).backingFile).toBe("base.qcow2");
  });

  for (const version of [2, 3] as const) {
    it(`takes the place of the mark of use where its name needs it (version ${version})`, async () => {
      const host = await image({
        clusterSize: 512,
        version,
        size: 64 * KiB,
        backingFile: "base.raw",
        backingFormat: "raw",
      });
      const header = headerOf(host);
      const fields = version === 2 ? 72 : 112;
      // The format takes 16 bytes, END 8.
      const longest = "n".repeat(512 - fields - 24);
      const { node, driver } = await openImage(host);
      driver.checkBackingLink(longest, "raw");
      await writeAll(node, 0, Buffer.alloc(4096, 1));
      await node.flush();
      expect(headerOf(host).extensions).toHaveLength(1);
      driver.checkBackingLink(longest, "raw");
      expect(() => driver.checkBackingLink(`${longest}n`, "raw")).toThrow("does not fit");
      await driver.changeBackingLink(longest, "raw");
      expect(headerOf(host)).toEqual({ ...header, backingFile: longest });
      await writeAll(node, 8192, Buffer.alloc(4096, 2));
      await driver.close();
      expect(headerOf(host)).toEqual({ ...header, backingFile: longest });
      expect(await verdict(host)).toEqual(CLEAN);
    });
  }

  it("counts the place that was kept for the format once", async () => {
    const host = await image({ clusterSize: 512, size: 64 * KiB, backingFile: "b", backingFormat: "raw" });
    const { driver } = await openImage(host);
    await driver.changeBackingLink(undefined, undefined);
    expect(headerOf(host).extensions.map(({ magic }) => magic)).toEqual([FILLER_MAGIC]);
    const longest = "n".repeat(512 - 112 - 24);
    driver.checkBackingLink(longest, "raw");
    await driver.changeBackingLink(longest, "raw");
    expect(headerOf(host)).toMatchObject({ backingFile: longest, backingFormat: "raw", extensions: [] });
    await driver.close();
  });

  it.each([
    [512, 350],
    [1024, 525],
    [1024, 860],
    [4096, 1023],
  ])(
    "of a new image leaves room for the mark of use (clusters of %d, a name of %d)",
    async (clusterSize, bytes) => {
      const backingFile = "n".repeat(bytes);
      const host = await image({ clusterSize, size: 64 * KiB, backingFile, backingFormat: "qcow2" });
      const { node, driver } = await openImage(host);
      // A link of the same length, before anything is allocated, keeps the room.
      const other = "m".repeat(bytes);
      await driver.changeBackingLink(other, "raw");
      await writeAll(node, 0, Buffer.alloc(4096, 1));
      await node.flush();
      expect(headerOf(host)).toMatchObject({ backingFile: other, backingFormat: "raw" });
      expect(headerOf(host).extensions.at(-1)).toEqual({
        magic: USE_MARKER_MAGIC,
        data: Buffer.from([1, 0, 0, 0, 0, 0, 0, 0]),
      });
      await driver.close();
      expect(await verdict(host)).toEqual(CLEAN);
    },
  );

  it("keeps the place of the format for the next one", async () => {
    const host = await linked(4096);
    const { driver } = await openImage(host);
    await driver.changeBackingLink(undefined, undefined);
    const area = host.content(0, 4096);
    expect(planLink(area, { file: "back again", format: "raw" })).toBeDefined();
    expect(area.readUInt32BE(112)).not.toBe(ExtensionMagic.BACKING_FORMAT);
  });

  it("comes after everything that it relies on is durable", async () => {
    const host = await image({ backingFile: "base.raw", backingFormat: "raw" });
    const base = fileNode(MemoryFile.of(Buffer.alloc(4 * MiB, 0xba)), { growable: false });
    const file = new FaultFile(host);
    const { node, driver } = await openImage(file, { backing: base });
    await node.copyUp(0, MiB, undefined);
    file.recording = true;
    await driver.changeBackingLink(undefined, undefined);
    const calls = file.recorded.map(({ kind, offset }) => (kind === "write" && offset === 0 ? "link" : kind));
    const link = calls.lastIndexOf("link");
    expect(calls.slice(0, link).filter((kind) => kind === "sync").length).toBeGreaterThanOrEqual(2);
    expect(calls.slice(link, link + 2)).toEqual(["link", "sync"]);
    expect(calls[link - 1]).toBe("sync");
  });
});

describe("growing", () => {
  it("hides what a longer backing image has past the old end", async () => {
    for (const version of [2, 3] as const) {
      const base = fileNode(MemoryFile.of(Buffer.alloc(4 * MiB, 0xba)), { growable: false });
      const size = MiB + 1536;
      const host = await image({ size, version, backingFile: "base.raw", backingFormat: "raw" });
      const { node, driver } = await openImage(host, { backing: base });
      await node.truncate(8 * MiB);
      const wanted = Buffer.concat([Buffer.alloc(size, 0xba), Buffer.alloc(8 * MiB - size)]);
      expect((await readAll(node)).equals(wanted)).toBe(true);
      await driver.close();
      expect(await verdict(host)).toEqual(CLEAN);
    }
  });

  it("refuses what it cannot do, in words", async () => {
    const { node } = await openImage(await image());
    await expect((async () => node.truncate(MiB))()).rejects.toMatchObject({ code: "ENOTSUP" });
    await expect((async () => node.truncate(2 ** 52))()).rejects.toMatchObject({ code: "EFBIG" });
  });
});

describe("a device of fixed length", () => {
  it("gives all of its clusters, then ENOSPC, and takes no data for granted", async () => {
    const host = await image({ size: MiB });
    const memory = MemoryFile.of(host.content());
    const end = memory.size;
    memory.write(end, MiB, Buffer.alloc(MiB, 0xdd), 0);
    const file = fileNode(memory, { growable: false });
    const driver = await openQcow2({ name: "device", file, backing: undefined }, { readOnly: false });
    await driver.write(10, 20, Buffer.alloc(20, 1), 0);
    const seen = Buffer.alloc(CLUSTER);
    await driver.read(0, CLUSTER, seen, 0);
    expect(
      seen.equals(Buffer.concat([Buffer.alloc(10), Buffer.alloc(20, 1), Buffer.alloc(CLUSTER - 30)])),
    ).toBe(true);
    const filling = async () => driver.write(0, MiB, Buffer.alloc(MiB, 2), 0);
    await expect(filling()).rejects.toMatchObject({ code: "ENOSPC" });
    await driver.close();
    expect(await verdict(memory)).toEqual(CLEAN);
  });
});

describe("details", () => {
  it("are told as QMP tells them", async () => {
    const host = await image({
      compressionType: "zstd",
      refcountBits: 8,
      lazyRefcounts: true,
      backingFile: "b",
      backingFormat: "raw",
    });
    const { node } = await openImage(host, { readOnly: true });
    expect(node.details()).toMatchObject({
      clusterSize: CLUSTER,
      backingFile: "b",
      backingFormat: "raw",
      formatSpecific: {
        type: "qcow2",
        data: {
          compat: "1.1",
          "compression-type": "zstd",
          "lazy-refcounts": true,
          "refcount-bits": 8,
          corrupt: false,
          "extended-l2": false,
        },
      },
    });
  });
});
