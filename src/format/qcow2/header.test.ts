import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { BlockError, errorMessage } from "../../base/errors.ts";
import { Prng } from "../../base/prng.ts";
import { GiB, KiB } from "../../base/units.ts";
import {
  AUTOCLEAR_BITMAPS,
  FEATURES_OFFSET,
  geometryOf,
  headerAreaBytes,
  Incompatible,
  isQcow2,
  parseHeader,
  type Qcow2Header,
  refuseCorruptForWriting,
  serializeFeatures,
  serializeHeader,
} from "./header.ts";
import { ExtensionMagic, featureNameTable } from "./header-extensions.ts";

const hasQemu = spawnSync("qemu-img", ["--version"]).status === 0;
const directory = mkdtempSync(join(tmpdir(), "qcow2-header-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const CLUSTER = 64 * KiB;
const FILE_BYTES = 5 * CLUSTER;

function sample(): Qcow2Header {
  return {
    version: 3,
    clusterBits: 16,
    size: GiB,
    l1TableOffset: 3 * CLUSTER,
    l1Size: 2,
    refcountTableOffset: CLUSTER,
    refcountTableClusters: 1,
    snapshotsOffset: 0,
    snapshotCount: 0,
    incompatible: 0,
    compatible: 0n,
    autoclear: 0n,
    refcountOrder: 4,
    compressionType: 0,
    unknownFields: Buffer.alloc(0),
    backingFile: undefined,
    backingFormat: undefined,
    bitmaps: undefined,
    extensions: [featureNameTable()],
  };
}

/** An image file whose header is `sample()` with `change` applied to its bytes. */
function image(change: (bytes: Buffer) => void, header = sample()): Buffer {
  const bytes = Buffer.concat([serializeHeader(header)], FILE_BYTES);
  // A refcount table with one block, so that QEMU gets past the header.
  bytes.writeUInt32BE(2 * CLUSTER, CLUSTER + 4);
  for (const cluster of [0, 1, 2, 3]) bytes.writeUInt16BE(1, 2 * CLUSTER + 2 * cluster);
  change(bytes);
  return bytes;
}

function parse(bytes: Buffer): Qcow2Header {
  const area = headerAreaBytes(bytes.subarray(0, 512));
  return parseHeader(Buffer.concat([bytes.subarray(0, area)], area), bytes.length);
}

function messageOf(bytes: Buffer): string {
  try {
    refuseCorruptForWriting(parse(bytes));
  } catch (error) {
    expect(error).toBeInstanceOf(BlockError);
    return errorMessage(error);
  }
  return "";
}

/** What QEMU says when it opens the same bytes for writing. */
function qemuMessage(bytes: Buffer): string {
  const path = join(directory, "image");
  writeFileSync(path, bytes);
  const run = spawnSync("qemu-io", ["-f", "qcow2", "-c", "quit", path], { encoding: "utf8" });
  return run.stderr.replace(/^qemu-io: can't open device [^:]*: /m, "").trim();
}

const u32 = (at: number, value: number) => (bytes: Buffer) => void bytes.writeUInt32BE(value, at);
const u64 = (at: number, value: bigint) => (bytes: Buffer) => void bytes.writeBigUInt64BE(value, at);
const all =
  (...changes: ((bytes: Buffer) => void)[]) =>
  (bytes: Buffer) => {
    for (const change of changes) change(bytes);
  };

/** Behind the sample's only extension, the feature names: 112 + 8 + 8 * 48. */
const EXTENSIONS_END = 504;
const extension = (magic: number, length: number) =>
  all(u32(EXTENSIONS_END, magic), u32(EXTENSIONS_END + 4, length));
const bitmaps = (count: number, bytes: bigint, offset: bigint, reserved = 0) =>
  all(
    u64(88, 1n),
    extension(ExtensionMagic.BITMAPS, 24),
    u32(EXTENSIONS_END + 8, count),
    u32(EXTENSIONS_END + 12, reserved),
    u64(EXTENSIONS_END + 16, bytes),
    u64(EXTENSIONS_END + 24, offset),
  );

/** Mistakes for which QEMU has words. */
const MISTAKES: [string, (bytes: Buffer) => void, string][] = [
  ["magic", u32(0, 0x51464900), "Image is not in qcow2 format"],
  ["version 1", u32(4, 1), "Unsupported qcow2 version 1"],
  ["version 4", u32(4, 4), "Unsupported qcow2 version 4"],
  ["cluster bits 8", u32(20, 8), "Unsupported cluster size: 2^8"],
  ["cluster bits 22", u32(20, 22), "Unsupported cluster size: 2^22"],
  ["cluster bits 2^32-1", u32(20, 0xffffffff), "Unsupported cluster size: 2^4294967295"],
  ["header length 103", u32(100, 103), "qcow2 header too short"],
  ["header length beyond the cluster", u32(100, CLUSTER + 8), "qcow2 header exceeds cluster size"],
  ["backing offset", u64(8, BigInt(CLUSTER) + 1n), "Invalid backing file offset"],
  ["backing offset 2^63", u64(8, 1n << 63n), "Invalid backing file offset"],
  ["backing name too long", all(u64(8, 4096n), u32(16, 1024)), "Backing file name too long"],
  [
    "backing name past the cluster",
    all(u64(8, BigInt(CLUSTER) - 4n), u32(16, 5)),
    "Backing file name too long",
  ],
  ["compression type 9", (bytes) => bytes.writeUInt8(9, 104), "qcow2: unknown compression type: 9"],
  [
    "zstd without its bit",
    (bytes) => bytes.writeUInt8(1, 104),
    "qcow2: Compression type incompatible feature bit must be set",
  ],
  ["zlib with the bit", u64(72, 8n), "qcow2: Compression type incompatible feature bit must not be set"],
  ["corrupt bit", u64(72, 2n), "qcow2: Image is corrupt; cannot be opened read/write"],
  ["feature bit 5", u64(72, 32n), "Unsupported qcow2 feature(s): Unknown incompatible feature: 20"],
  [
    "feature bits 5 and 63",
    u64(72, (1n << 63n) | 32n),
    "Unsupported qcow2 feature(s): Unknown incompatible feature: 8000000000000020",
  ],
  [
    "a feature that the image names",
    all(u64(72, (1n << 40n) | (1n << 41n)), (bytes) => {
      bytes.fill(0, 120, 168);
      bytes.writeUInt8(40, 121);
      bytes.write("quantum clusters", 122);
    }),
    "Unsupported qcow2 feature(s): quantum clusters, Unknown incompatible feature: 20000000000",
  ],
  ["subclusters below 512", all(u64(72, 16n), u32(20, 13)), "Unsupported subcluster size: 256"],
  ["refcount order 7", u32(96, 7), "Reference count entry width too large; may not exceed 64 bits"],
  ["encryption method 3", u32(32, 3), "Unsupported encryption method 3"],
  ["no refcount table", u32(56, 0), "Image does not contain a reference count table"],
  ["huge refcount table", u32(56, 129), "Reference count table too large"],
  ["refcount table of 2^32-1 clusters", u32(56, 0xffffffff), "Reference count table too large"],
  ["refcount table unaligned", u64(48, 512n), "Reference count table offset invalid"],
  ["refcount table at 2^63", u64(48, 1n << 63n), "Reference count table offset invalid"],
  ["snapshots", u32(60, 65537), "Snapshot table too large"],
  ["snapshots unaligned", u64(64, 1n), "Snapshot table offset invalid"],
  ["L1 size", u32(36, 4 * 1024 * 1024 + 1), "Active L1 table too large"],
  ["L1 of 2^32-1 entries", u32(36, 0xffffffff), "Active L1 table too large"],
  ["L1 unaligned", u64(40, 3n * BigInt(CLUSTER) + 8n), "Active L1 table offset invalid"],
  ["L1 at 2^64-64K", u64(40, 0xffff_ffff_ffff_0000n), "Active L1 table offset invalid"],
  ["L1 too small", u64(24, 2n ** 31n), "L1 table is too small"],
  ["raw data file without one", u64(88, 2n), "data-file-raw requires a data file"],
  ["extension too large", extension(0x12345678, 0xfffffff0), "Header extension too large"],
  [
    "backing format too long",
    extension(ExtensionMagic.BACKING_FORMAT, 16),
    "ERROR: ext_backing_format: len=16 too large (>=16)",
  ],
  [
    "crypto extension without encryption",
    extension(ExtensionMagic.CRYPTO_HEADER, 16),
    "CRYPTO header extension only expected with LUKS encryption method",
  ],
  ["bitmaps: none", bitmaps(0, 0n, 0n), "found bitmaps extension with zero bitmaps"],
  [
    "bitmaps: too many",
    bitmaps(65536, 32n, 0n),
    "bitmaps_ext: Image has 65536 bitmaps, exceeding the QEMU supported maximum of 65535",
  ],
  ["bitmaps: directory unaligned", bitmaps(1, 32n, 512n), "bitmaps_ext: invalid bitmap directory offset"],
  [
    "bitmaps: directory too large",
    bitmaps(1, 67107841n, BigInt(CLUSTER)),
    "bitmaps_ext: bitmap directory size (67107841) exceeds the maximum supported size (67107840)",
  ],
];

describe("absurd fields", () => {
  test.each(MISTAKES)("%s", (_name, change, words) => {
    expect(messageOf(image(change))).toBe(words);
  });

  test.skipIf(!hasQemu).each(MISTAKES)("%s: in QEMU's words", (_name, change, words) => {
    expect(qemuMessage(image(change))).toBe(words);
  });

  test.each<[string, (bytes: Buffer) => void, RegExp]>([
    ["AES", u32(32, 1), /^Unsupported qcow2 feature\(s\): encryption \(AES\)/],
    ["LUKS", u32(32, 2), /^Unsupported qcow2 feature\(s\): encryption \(LUKS\)/],
    ["external data file", u64(72, 4n), /^Unsupported qcow2 feature\(s\): external data file/],
    ["size 2^53", u64(24, 1n << 53n), /^Image is too big/],
    ["size 2^64-1", u64(24, (1n << 64n) - 1n), /^Image is too big/],
    [
      "bitmaps: extension length",
      all(u64(88, 1n), extension(ExtensionMagic.BITMAPS, 16)),
      /Invalid extension length/,
    ],
    ["bitmaps: reserved", bitmaps(1, 32n, 0n, 1), /Reserved field is not zero/],
    ["refcount table over the header", u64(48, 0n), /Reference count table offset invalid: it lies over/],
    ["L1 over the header", u64(40, 0n), /Active L1 table offset invalid: it lies over/],
    ["L1 past the end of the file", u64(40, 1n << 40n), /Active L1 table at offset 1099511627776 ends past/],
    ["refcount table past the end of the file", u64(48, 1n << 40n), /Reference count table .* is truncated/],
    [
      "snapshots past the end of the file",
      all(u32(60, 1), u64(64, 1n << 40n)),
      /Snapshot table .* is truncated/,
    ],
  ])("%s, in our words", (_name, change, words) => {
    expect(messageOf(image(change))).toMatch(words);
  });

  test("an empty and a short file are not qcow2", () => {
    expect(messageOf(Buffer.alloc(0))).toBe("Image is not in qcow2 format");
    expect(messageOf(Buffer.from("QFI\xfb", "latin1"))).toBe("Image is not in qcow2 format");
    expect(isQcow2(Buffer.alloc(0))).toBe(false);
  });

  test("control characters of a feature name stay out of the message", () => {
    const bytes = image(u64(72, 1n << 40n));
    bytes.fill(0, 120, 168);
    bytes.writeUInt8(40, 121);
    bytes.write("\x1b[31mred", 122);
    expect(messageOf(bytes)).toBe("Unsupported qcow2 feature(s): ?[31mred");
  });
});

describe("round trip", () => {
  test("keeps everything, unknown extensions in their order, unknown fields and compatible bits", () => {
    const header: Qcow2Header = {
      ...sample(),
      incompatible: Incompatible.COMPRESSION | Incompatible.EXTENDED_L2,
      l1Size: 4,
      compressionType: 1,
      compatible: (1n << 63n) | 1n,
      autoclear: AUTOCLEAR_BITMAPS,
      unknownFields: Buffer.from("12345678"),
      backingFile: "/there/base.qcow2",
      backingFormat: "qcow2",
      bitmaps: { bitmapCount: 2, directoryBytes: 64, directoryOffset: 7 * CLUSTER },
      extensions: [
        { magic: 0x7fffffff, data: Buffer.from("odd") },
        featureNameTable(),
        { magic: 0x11111111, data: Buffer.alloc(0) },
      ],
    };
    const bytes = serializeHeader(header);
    expect(parseHeader(bytes, FILE_BYTES)).toEqual(header);
    expect(serializeHeader(parseHeader(bytes, FILE_BYTES)).equals(bytes)).toBe(true);
  });

  test("version 2", () => {
    const header: Qcow2Header = {
      ...sample(),
      version: 2,
      backingFile: "b.raw",
      backingFormat: "raw",
      extensions: [],
    };
    expect(parseHeader(serializeHeader(header), FILE_BYTES)).toEqual(header);
  });

  test("features can be changed in place", () => {
    const header = { ...sample(), incompatible: Incompatible.DIRTY, compatible: 1n, autoclear: 1n << 40n };
    const bytes = serializeHeader(sample());
    serializeFeatures(header).copy(bytes, FEATURES_OFFSET);
    expect(bytes.equals(serializeHeader(header))).toBe(true);
  });

  test("bitmaps without their autoclear bit are dropped", () => {
    const header = { ...sample(), bitmaps: { bitmapCount: 1, directoryBytes: 32, directoryOffset: CLUSTER } };
    expect(parseHeader(serializeHeader(header), FILE_BYTES).bitmaps).toBeUndefined();
  });

  test("a backing file name that does not fit is refused", () => {
    const small = {
      ...sample(),
      clusterBits: 9,
      extensions: [],
      l1TableOffset: 1536,
      refcountTableOffset: 512,
    };
    expect(() => serializeHeader({ ...small, backingFile: "x".repeat(400) })).toThrow(/does not fit/);
    expect(() => serializeHeader({ ...sample(), backingFile: "x".repeat(1024) })).toThrow(
      "Backing file name too long",
    );
  });

  test.skipIf(!hasQemu)("our bytes are those of QEMU", () => {
    const path = join(directory, "qemu.qcow2");
    const forms = [
      "compat=1.1",
      "compat=0.10",
      "compat=1.1,compression_type=zstd,extended_l2=on,cluster_size=128k",
    ];
    for (const form of forms) {
      for (const backing of [[], ["-u", "-b", "some.raw", "-F", "raw"]]) {
        execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", "-o", form, ...backing, path, "1G"]);
        const bytes = execFileSync("head", ["-c", "131072", path]);
        const area = bytes.subarray(0, headerAreaBytes(bytes));
        expect(serializeHeader(parseHeader(area, Number.POSITIVE_INFINITY)).equals(area)).toBe(true);
      }
    }
  });
});

describe("geometry", () => {
  test("of a cluster of 64 KiB with refcounts of one bit", () => {
    expect(geometryOf({ ...sample(), refcountOrder: 0 })).toMatchObject({
      clusterSize: CLUSTER,
      l2Entries: 8192,
      l2Span: 512 * 1024 * 1024,
      subclusterSize: CLUSTER,
      refcountBits: 1,
      refcountBlockEntries: 524288,
    });
  });

  test("with subclusters a table holds half as many", () => {
    expect(geometryOf({ ...sample(), incompatible: Incompatible.EXTENDED_L2 })).toMatchObject({
      l2Entries: 4096,
      l2EntryBytes: 16,
      subclusterSize: 2048,
    });
  });
});

test("header fuzzer: every outcome is a header or a BlockError, and soon (seed 4242)", () => {
  const random = new Prng(4242);
  const original = image(() => {});
  for (let round = 0; round < 20_000; round++) {
    const bytes = Buffer.from(original.subarray(0, CLUSTER));
    for (let n = random.between(1, 6); n > 0; n--) {
      const at = random.below(random.chance(0.8) ? 112 : 640);
      if (random.chance(0.3))
        bytes.writeUInt32BE(random.pick([0, 1, 0x7fffffff, 0xffffffff, CLUSTER]), at & ~3);
      else bytes[at] = random.below(256);
    }
    let header: Qcow2Header | undefined;
    try {
      // A larger cluster size finds the rest of its first cluster zero.
      header = parseHeader(Buffer.concat([bytes], Math.max(headerAreaBytes(bytes), CLUSTER)), FILE_BYTES);
    } catch (error) {
      expect(error, `round ${round}`).toBeInstanceOf(BlockError);
    }
    if (header === undefined) continue;
    expect(header.l1Size * 8, `round ${round}`).toBeLessThanOrEqual(FILE_BYTES);
    expect(header.refcountTableClusters * 2 ** header.clusterBits).toBeLessThanOrEqual(8 * 1024 * 1024);
  }
});
