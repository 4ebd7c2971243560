// The image header: first cluster of the file. (Specification: "Header", "Header extensions".)
//
//   | fields: 72 (v2), 112 and more bytes (v3) | extensions: type, length, data ... END | backing name | 0 |
//
//   1. No field is used as a size before it was compared with its bound. The bounds and the words of each
//      error are QEMU's; a mistake that QEMU does not notice (a table over the header, past the end of the
//      file) has words of ours.
//   2. What we do not know is kept: unknown fields, unknown extensions (in their order), unknown compatible
//      bits.
//   3. The backing format comes first among the extensions, so that a new backing link changes the first
//      sector and the name only.
//   4. Flags are changed in place (`serializeFeatures`), not by rewriting the header: a write inside one
//      sector.

import { readU64OrInfinity, writeU64 } from "../../base/bytes.ts";
import { BlockError } from "../../base/errors.ts";
import { KiB, MiB } from "../../base/units.ts";
import {
  type BitmapsExtension,
  ExtensionMagic,
  type HeaderExtension,
  parseBitmapsExtension,
  parseExtensions,
  serializeBitmapsExtension,
  serializeExtensions,
  unsupportedFeatures,
} from "./header-extensions.ts";
import { EXTENDED_L2_ENTRY_BYTES, L1_ENTRY_BYTES, L2_ENTRY_BYTES, SUBCLUSTERS } from "./l2-entry.ts";

export const QCOW2_MAGIC = 0x514649fb;
export const MIN_CLUSTER_BITS = 9;
export const MAX_CLUSTER_BITS = 21;
/** Bounds of QEMU's; ours are the same, so that each opens the images of the other. */
export const MAX_L1_BYTES = 32 * MiB;
export const MAX_REFTABLE_BYTES = 8 * MiB;
export const MAX_SNAPSHOTS = 65536;
export const MAX_BACKING_NAME_BYTES = 1023;
/** Bytes of a snapshot table entry without its variable part. */
export const SNAPSHOT_ENTRY_BYTES = 40;

const V2_HEADER_BYTES = 72;
const V3_HEADER_BYTES_MIN = 104;
/** What we write for version 3: with the compression type and its padding. */
const V3_HEADER_BYTES = 112;
const FEATURES_AT = 72;
const COMPRESSION_TYPE_AT = 104;

/** Bits of `incompatible`. */
export const Incompatible = { DIRTY: 1, CORRUPT: 2, DATA_FILE: 4, COMPRESSION: 8, EXTENDED_L2: 16 } as const;
const INCOMPATIBLE_KNOWN = 31n;
export const COMPATIBLE_LAZY_REFCOUNTS = 1n;
export const AUTOCLEAR_BITMAPS = 1n;
export const AUTOCLEAR_RAW_DATA_FILE = 2n;
const AUTOCLEAR_KNOWN = 3n;

export const CompressionType = { ZLIB: 0, ZSTD: 1 } as const;
export type CompressionType = (typeof CompressionType)[keyof typeof CompressionType];

/** A parsed header. Offsets and sizes in bytes. */
export interface Qcow2Header {
  version: 2 | 3;
  clusterBits: number;
  /** Length of the virtual disk. */
  size: number;
  l1TableOffset: number;
  /** Entries of the active L1 table. */
  l1Size: number;
  refcountTableOffset: number;
  refcountTableClusters: number;
  snapshotsOffset: number;
  snapshotCount: number;
  /** Bits of {@link Incompatible}; an image with any other is refused. */
  incompatible: number;
  compatible: bigint;
  autoclear: bigint;
  /** Width of a refcount is 2**refcountOrder bits. */
  refcountOrder: number;
  compressionType: CompressionType;
  /** Fields past those that we know, as they were. */
  unknownFields: Buffer;
  backingFile: string | undefined;
  backingFormat: string | undefined;
  /** Present and consistent (its autoclear bit is set). */
  bitmaps: BitmapsExtension | undefined;
  /** All other extensions, in their order: feature name table and unknown ones. */
  extensions: HeaderExtension[];
}

export interface ParseOptions {
  /** For a consistency check: what a check can report or repair is no reason to refuse. */
  readonly check?: boolean;
}

/** Sizes that follow from a header. */
export interface Geometry {
  readonly clusterBits: number;
  readonly clusterSize: number;
  readonly extended: boolean;
  readonly l2EntryBytes: number;
  /** Entries of an L2 table. */
  readonly l2Entries: number;
  /** Bytes of the virtual disk that one L2 table maps. */
  readonly l2Span: number;
  /** The cluster size where there are no subclusters. */
  readonly subclusterSize: number;
  readonly refcountBits: number;
  /** Refcounts in a refcount block. */
  readonly refcountBlockEntries: number;
}

export function geometryOf(
  header: Pick<Qcow2Header, "clusterBits" | "incompatible" | "refcountOrder">,
): Geometry {
  const clusterSize = 2 ** header.clusterBits;
  const extended = (header.incompatible & Incompatible.EXTENDED_L2) !== 0;
  const l2EntryBytes = extended ? EXTENDED_L2_ENTRY_BYTES : L2_ENTRY_BYTES;
  const refcountBits = 2 ** header.refcountOrder;
  return {
    clusterBits: header.clusterBits,
    clusterSize,
    extended,
    l2EntryBytes,
    l2Entries: clusterSize / l2EntryBytes,
    l2Span: (clusterSize / l2EntryBytes) * clusterSize,
    subclusterSize: extended ? clusterSize / SUBCLUSTERS : clusterSize,
    refcountBits,
    refcountBlockEntries: (clusterSize * 8) / refcountBits,
  };
}

/**
 * How many bytes of the file `parseHeader` wants (the first cluster), told by its first 512 bytes.
 * @throws BlockError as parseHeader
 */
export function headerAreaBytes(start: Buffer): number {
  return 2 ** parseClusterBits(start);
}

/** Whether these first bytes of a file are those of a qcow2 image. */
export function isQcow2(start: Buffer): boolean {
  return start.length >= 8 && start.readUInt32BE(0) === QCOW2_MAGIC && start.readUInt32BE(4) >= 2;
}

/**
 * Parses and checks the header.
 * @param area the first cluster of the file ({@link headerAreaBytes}); past the end of the file zeros
 * @param fileSize length of the file in bytes; Infinity where it does not matter
 * @throws BlockError IMAGE_FORMAT not qcow2; IMAGE_UNSUPPORTED a version or feature; IMAGE_CORRUPT an absurd
 * field
 */
export function parseHeader(area: Buffer, fileSize: number, options: ParseOptions = {}): Qcow2Header {
  const clusterBits = parseClusterBits(area);
  const clusterSize = 2 ** clusterBits;
  if (area.length < clusterSize)
    throw corrupt("Could not read qcow2 header: the first cluster is incomplete");
  const version = area.readUInt32BE(4) as 2 | 3;
  const headerBytes = version === 2 ? V2_HEADER_BYTES : area.readUInt32BE(100);
  if (version === 3 && headerBytes < V3_HEADER_BYTES_MIN) throw corrupt("qcow2 header too short");
  if (headerBytes > clusterSize) throw corrupt("qcow2 header exceeds cluster size");

  const backingOffset = readU64OrInfinity(area, 8);
  if (backingOffset > clusterSize) throw corrupt("Invalid backing file offset");
  const extensionsEnd = backingOffset === 0 ? clusterSize : backingOffset;

  const compressionType = headerBytes > COMPRESSION_TYPE_AT && version === 3 ? area[COMPRESSION_TYPE_AT]! : 0;
  const incompatible = version === 3 ? area.readBigUInt64BE(FEATURES_AT) : 0n;
  checkCompressionType(compressionType, incompatible);
  checkFeatures(area, incompatible, headerBytes, extensionsEnd);
  const header: Qcow2Header = {
    version,
    clusterBits,
    size: readU64OrInfinity(area, 24),
    l1TableOffset: tableOffset(area, 40, options),
    l1Size: area.readUInt32BE(36),
    refcountTableOffset: tableOffset(area, 48, options),
    refcountTableClusters: area.readUInt32BE(56),
    snapshotsOffset: readU64OrInfinity(area, 64),
    snapshotCount: area.readUInt32BE(60),
    incompatible: Number(incompatible),
    compatible: version === 3 ? area.readBigUInt64BE(FEATURES_AT + 8) : 0n,
    autoclear: version === 3 ? area.readBigUInt64BE(FEATURES_AT + 16) : 0n,
    refcountOrder: version === 3 ? area.readUInt32BE(96) : 4,
    compressionType: compressionType as CompressionType,
    unknownFields:
      headerBytes > V3_HEADER_BYTES
        ? Buffer.from(area.subarray(V3_HEADER_BYTES, headerBytes))
        : Buffer.alloc(0),
    backingFile: undefined,
    backingFormat: undefined,
    bitmaps: undefined,
    extensions: [],
  };
  if (header.refcountOrder > 6) {
    throw corrupt("Reference count entry width too large; may not exceed 64 bits");
  }
  checkGeometry(header, area.readUInt32BE(32));
  checkTables(header, clusterSize, fileSize, options.check === true);
  takeExtensions(header, parseExtensions(area, headerBytes, extensionsEnd), clusterSize);
  if (backingOffset !== 0) header.backingFile = backingName(area, backingOffset, clusterSize);
  return header;
}

/** A place past the end of every file, where tables can be named all the same. */
export const OUTSIDE_OF_FILES = 2 ** 53 - 2 ** MAX_CLUSTER_BITS;

/** A check goes on where a table is far outside: 2**53 and more becomes a place that is as good. */
function tableOffset(area: Buffer, at: number, { check }: ParseOptions): number {
  const offset = readU64OrInfinity(area, at);
  if (check !== true || Number.isFinite(offset) || area.readUInt32BE(at) >= 2 ** 31) return offset;
  return OUTSIDE_OF_FILES + (area.readUInt32BE(at + 4) % 2 ** MAX_CLUSTER_BITS);
}

/**
 * Refuses to write to an image that says that it is corrupt.
 * @throws BlockError IMAGE_CORRUPT
 */
export function refuseCorruptForWriting(header: Qcow2Header): void {
  if ((header.incompatible & Incompatible.CORRUPT) !== 0) {
    throw corrupt("qcow2: Image is corrupt; cannot be opened read/write");
  }
}

/** The autoclear bits that may stay when we write to the image: those that we know. */
export function keptAutoclear(autoclear: bigint): bigint {
  return autoclear & AUTOCLEAR_KNOWN;
}

/** Where `serializeFeatures` belongs in a version 3 file. */
export const FEATURES_OFFSET = FEATURES_AT;

/** The three feature masks of a version 3 header: 24 bytes for {@link FEATURES_OFFSET}, inside one sector. */
export function serializeFeatures(header: Qcow2Header): Buffer {
  const out = Buffer.alloc(24);
  out.writeBigUInt64BE(BigInt(header.incompatible), 0);
  out.writeBigUInt64BE(header.compatible, 8);
  out.writeBigUInt64BE(header.autoclear, 16);
  return out;
}

/**
 * The header area: fields, extensions, backing file name, zeros; one cluster.
 * @param gapBytes left free before the backing file name, where there is room for that
 * @throws BlockError ENOSPC when all that does not fit the first cluster, EINVAL when the backing file name
 * is too long
 */
export function serializeHeader(header: Qcow2Header, gapBytes = 0): Buffer {
  const clusterSize = 2 ** header.clusterBits;
  const { headerBytes, extensions, name } = partsOf(header);
  const extensionsEnd = headerBytes + extensions.length;
  const room = clusterSize - extensionsEnd - name.length;
  if (name.length > MAX_BACKING_NAME_BYTES) throw new BlockError("EINVAL", "Backing file name too long");
  if (room < 0) {
    throw new BlockError(
      "ENOSPC",
      `The header with its extensions and the backing file name (${name.length} bytes) does not fit ` +
        `the first cluster of ${clusterSize} bytes; use a shorter backing file name`,
    );
  }
  const out = Buffer.alloc(clusterSize);
  writeFields(out, header);
  if (header.version === 3) {
    out.writeUInt32BE(headerBytes, 100);
    header.unknownFields.copy(out, V3_HEADER_BYTES);
  }
  extensions.copy(out, headerBytes);
  if (header.backingFile !== undefined) {
    const nameAt = extensionsEnd + (gapBytes <= room ? gapBytes : 0);
    writeU64(out, nameAt, 8);
    out.writeUInt32BE(name.length, 16);
    name.copy(out, nameAt);
  }
  return out;
}

/** Whether `serializeHeader` has room for everything. */
export function fitsFirstCluster(header: Qcow2Header): boolean {
  const { headerBytes, extensions, name } = partsOf(header);
  return headerBytes + extensions.length + name.length <= 2 ** header.clusterBits;
}

function partsOf(header: Qcow2Header) {
  return {
    headerBytes: header.version === 2 ? V2_HEADER_BYTES : V3_HEADER_BYTES + header.unknownFields.length,
    extensions: serializeExtensions(extensionsInOrder(header)),
    name: Buffer.from(header.backingFile ?? "", "utf8"),
  };
}

function writeFields(out: Buffer, header: Qcow2Header): void {
  out.writeUInt32BE(QCOW2_MAGIC, 0);
  out.writeUInt32BE(header.version, 4);
  out.writeUInt32BE(header.clusterBits, 20);
  writeU64(out, header.size, 24);
  out.writeUInt32BE(header.l1Size, 36);
  writeU64(out, header.l1TableOffset, 40);
  writeU64(out, header.refcountTableOffset, 48);
  out.writeUInt32BE(header.refcountTableClusters, 56);
  out.writeUInt32BE(header.snapshotCount, 60);
  writeU64(out, header.snapshotsOffset, 64);
  if (header.version === 2) return;
  serializeFeatures(header).copy(out, FEATURES_AT);
  out.writeUInt32BE(header.refcountOrder, 96);
  out[COMPRESSION_TYPE_AT] = header.compressionType;
}

function extensionsInOrder(header: Qcow2Header): HeaderExtension[] {
  const all: HeaderExtension[] = [];
  if (header.backingFormat !== undefined) {
    all.push({ magic: ExtensionMagic.BACKING_FORMAT, data: Buffer.from(header.backingFormat, "utf8") });
  }
  if (header.bitmaps !== undefined) all.push(serializeBitmapsExtension(header.bitmaps));
  all.push(...header.extensions);
  return all;
}

// --- checks ----------------------------------------------------------------------------------------------

function parseClusterBits(start: Buffer): number {
  if (start.length < V3_HEADER_BYTES || start.readUInt32BE(0) !== QCOW2_MAGIC) {
    throw new BlockError("IMAGE_FORMAT", "Image is not in qcow2 format");
  }
  const version = start.readUInt32BE(4);
  if (version < 2 || version > 3) {
    throw new BlockError("IMAGE_UNSUPPORTED", `Unsupported qcow2 version ${version}`);
  }
  const clusterBits = start.readUInt32BE(20);
  if (clusterBits < MIN_CLUSTER_BITS || clusterBits > MAX_CLUSTER_BITS) {
    throw corrupt(`Unsupported cluster size: 2^${clusterBits}`);
  }
  return clusterBits;
}

function checkCompressionType(type: number, incompatible: bigint): void {
  if (type > CompressionType.ZSTD) {
    throw new BlockError("IMAGE_UNSUPPORTED", `qcow2: unknown compression type: ${type}`);
  }
  const flagged = (incompatible & BigInt(Incompatible.COMPRESSION)) !== 0n;
  if (type === CompressionType.ZLIB && flagged) {
    throw corrupt("qcow2: Compression type incompatible feature bit must not be set");
  }
  if (type !== CompressionType.ZLIB && !flagged) {
    throw corrupt("qcow2: Compression type incompatible feature bit must be set");
  }
}

function checkFeatures(area: Buffer, incompatible: bigint, headerBytes: number, extensionsEnd: number): void {
  const unknown = incompatible & ~INCOMPATIBLE_KNOWN;
  if (unknown !== 0n) {
    const names = unsupportedFeatures(area, headerBytes, extensionsEnd, unknown);
    throw new BlockError("IMAGE_UNSUPPORTED", `Unsupported qcow2 feature(s): ${names}`);
  }
  if ((incompatible & BigInt(Incompatible.DATA_FILE)) !== 0n) {
    throw new BlockError(
      "IMAGE_UNSUPPORTED",
      "Unsupported qcow2 feature(s): external data file. Copy the image into one file with 'qemu-img convert'",
    );
  }
}

function checkGeometry(header: Qcow2Header, cryptMethod: number): void {
  const { subclusterSize, l2Span } = geometryOf(header);
  if (subclusterSize < 512) throw corrupt(`Unsupported subcluster size: ${subclusterSize}`);
  if (cryptMethod > 2) throw corrupt(`Unsupported encryption method ${cryptMethod}`);
  if (cryptMethod !== 0) {
    const method = cryptMethod === 1 ? "AES" : "LUKS";
    throw new BlockError(
      "IMAGE_UNSUPPORTED",
      `Unsupported qcow2 feature(s): encryption (${method}). Decrypt the image with 'qemu-img convert' first`,
    );
  }
  if ((header.autoclear & AUTOCLEAR_RAW_DATA_FILE) !== 0n)
    throw corrupt("data-file-raw requires a data file");
  if (!Number.isFinite(header.size)) {
    throw new BlockError("IMAGE_UNSUPPORTED", "Image is too big: its size is 2^53 bytes or more");
  }
  if (Math.ceil(header.size / l2Span) > 0x7fff_ffff) {
    throw new BlockError("IMAGE_UNSUPPORTED", "Image is too big");
  }
}

function checkTables(header: Qcow2Header, clusterSize: number, fileSize: number, check: boolean): void {
  if (header.refcountTableClusters === 0 && !check) {
    throw corrupt("Image does not contain a reference count table");
  }
  const refcounts = { name: "Reference count table", offset: header.refcountTableOffset };
  checkTable(refcounts, header.refcountTableClusters, clusterSize, MAX_REFTABLE_BYTES, clusterSize);
  if (!check) {
    const snapshots = { name: "Snapshot table", offset: header.snapshotsOffset };
    const bound = SNAPSHOT_ENTRY_BYTES * MAX_SNAPSHOTS;
    checkTable(snapshots, header.snapshotCount, SNAPSHOT_ENTRY_BYTES, bound, clusterSize);
  }
  const l1 = { name: "Active L1 table", offset: header.l1TableOffset };
  checkTable(l1, header.l1Size, L1_ENTRY_BYTES, MAX_L1_BYTES, clusterSize);
  if (header.l1Size < Math.ceil(header.size / geometryOf(header).l2Span)) {
    throw corrupt("L1 table is too small");
  }
  if (check) return;
  // QEMU reads a table past the end of the file as zeros: an empty disk where data was. We say so instead.
  checkInside(refcounts, 1, clusterSize, fileSize);
  if (header.l1Size > 0) checkInside(l1, header.l1Size * L1_ENTRY_BYTES, clusterSize, fileSize);
  const snapshots = { name: "Snapshot table", offset: header.snapshotsOffset };
  if (header.snapshotCount > 0) checkInside(snapshots, SNAPSHOT_ENTRY_BYTES, clusterSize, fileSize);
}

interface Table {
  readonly name: string;
  readonly offset: number;
}

function checkTable(
  table: Table,
  entries: number,
  entryBytes: number,
  bytesMax: number,
  clusterSize: number,
) {
  if (entries > bytesMax / entryBytes) throw corrupt(`${table.name} too large`);
  if (!Number.isFinite(table.offset) || table.offset % clusterSize !== 0) {
    throw corrupt(`${table.name} offset invalid`);
  }
}

function checkInside(table: Table, bytes: number, clusterSize: number, fileSize: number): void {
  if (table.offset < clusterSize) throw corrupt(`${table.name} offset invalid: it lies over the header`);
  if (table.offset + bytes > fileSize) {
    throw corrupt(
      `${table.name} at offset ${table.offset} ends past the end of the file (${fileSize} bytes): ` +
        "the image is truncated",
    );
  }
}

function takeExtensions(header: Qcow2Header, all: readonly HeaderExtension[], clusterSize: number): void {
  for (const extension of all) {
    switch (extension.magic) {
      case ExtensionMagic.BACKING_FORMAT:
        header.backingFormat = untilNul(extension.data);
        break;
      case ExtensionMagic.CRYPTO_HEADER:
        throw corrupt("CRYPTO header extension only expected with LUKS encryption method");
      case ExtensionMagic.BITMAPS:
        // Without its bit it tells of bitmaps that somebody's writes made wrong: it is dropped, as QEMU does.
        if ((header.autoclear & AUTOCLEAR_BITMAPS) !== 0n) {
          header.bitmaps = parseBitmapsExtension(extension.data, clusterSize);
        }
        break;
      default:
        header.extensions.push(extension);
    }
  }
}

function backingName(area: Buffer, offset: number, clusterSize: number): string {
  const bytes = area.readUInt32BE(16);
  if (bytes > Math.min(MAX_BACKING_NAME_BYTES, clusterSize - offset)) {
    throw corrupt("Backing file name too long");
  }
  return untilNul(area.subarray(offset, offset + bytes));
}

function untilNul(bytes: Buffer): string {
  const end = bytes.indexOf(0);
  return bytes.toString("utf8", 0, end < 0 ? bytes.length : end);
}

function corrupt(message: string): BlockError {
  return new BlockError("IMAGE_CORRUPT", message);
}

/** What to read first: enough for {@link headerAreaBytes}, and the whole first cluster in the common case. */
export const HEADER_PROBE_BYTES = 64 * KiB;
