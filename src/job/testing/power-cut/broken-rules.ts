// Each rule of order, broken on purpose: what the simulator must notice. The program is not touched; the file
// below the driver or a part of the driver is put out of order (broken-file.ts).

import { writeU64 } from "../../../base/bytes.ts";
import type { BlockNode } from "../../../block/node.ts";
import type { Qcow2Driver } from "../../../format/qcow2/driver.ts";
import { writeBackingLink } from "../../../format/qcow2/header-update.ts";
import type { Image } from "../../../format/qcow2/image.ts";
import { type Breakage, BrokenFile, type World } from "./broken-file.ts";
import type { SimulatedHost } from "./simulated-host.ts";

export interface Rule {
  /** The rule, in the words of docs/invariants.md where it stands there. */
  readonly name: string;
  /** What is done instead. */
  readonly instead: string;
  /** A seed that is soon noticed, where that takes long from seed 1 on. */
  readonly seed?: number;
  readonly file?: Breakage;
  readonly ignoresFua?: boolean;
  readonly snapshotWithoutFlush?: boolean;
  driver?(driver: Qcow2Driver): void;
}

export function breakHost(rule: Rule, host: SimulatedHost, world: World): void {
  const { file } = rule;
  if (file !== undefined) host.wrap = (inner) => new BrokenFile(inner, file, world);
}

export function breakNode(rule: Rule, { driver }: BlockNode): void {
  if (driver.driverName === "qcow2") rule.driver?.(driver as Qcow2Driver);
}

const HEADER_SIZE_AT = 24;
const HEADER_REFTABLE_AT = 48;

export const RULES: readonly Rule[] = [
  {
    name: "data before the L2 entry that points at it",
    instead: "no flush of the file stands between them",
    seed: 2,
    file: { unordered: [["data", "l2"]] },
  },
  {
    name: "data is written before the entry changes even in memory",
    instead: "the entry changes while the write is under way",
    file: { late: "data" },
  },
  {
    name: "refcount before the L2 entry",
    instead: "no flush of the file stands between them",
    file: { unordered: [["refcounts", "l2"]] },
  },
  {
    name: "refcount before the L2 entry, in the order of the writes",
    instead: "refcounts reach the file after the entries",
    file: { held: "refcounts" },
  },
  {
    name: "a new L2 table is zeroed before an L1 entry points at it",
    instead: "no flush of the file stands between them",
    seed: 10,
    file: { unordered: [["data", "l1"]] },
  },
  {
    name: "a new refcount block before the refcount table points at it",
    instead: "no flush of the file stands between them",
    seed: 13,
    file: { unordered: [["refcounts", "reftable"]] },
  },
  {
    name: "a new refcount table before the header points at it",
    instead: "no flush of the file stands between them",
    file: { unordered: [["data", (offset) => offset === HEADER_REFTABLE_AT]] },
  },
  {
    name: "a new L1 table before the header points at it",
    instead: "no flush of the file stands between them",
    file: { unordered: [["data", (offset, bytes) => offset === HEADER_SIZE_AT && bytes > 8]] },
  },
  {
    name: "the header tells a new length when what it shows is durable",
    instead: "it tells the length first",
    seed: 20,
    driver: tellLengthFirst,
  },
  {
    name: "an L2 entry is gone before its refcount falls",
    instead: "the refcount falls at once",
    driver({ image: { frees } }) {
      frees.defer = (first, count, punch) => frees.release([{ first, count, punch }]);
    },
  },
  {
    name: "a hole and the reuse of its cluster never overlap",
    instead: "the cluster may be used again while the hole is being punched",
    file: { late: "punch" },
  },
  {
    name: "the mark of use is durable before refcounts may count leaks",
    instead: "no mark is set",
    driver({ image }) {
      image.beforeRefcounts = () => undefined;
    },
  },
  {
    name: "discard over a backing image never lets the backing show through again",
    instead: "what is discarded becomes unallocated",
    file: { change: { place: "l2", content: unallocateZeros } },
  },
  {
    name: "the backing link on disk changes only when everything that was copied is durable",
    instead: "the link is written first",
    seed: 24,
    driver(driver) {
      const { image } = driver;
      driver.changeBackingLink = (file, format) =>
        image.flusher.exclusive(() => writeBackingLink(image.file, image.header, { file, format }));
    },
  },
  {
    name: "the name of a backing link is durable before the sector that points at it",
    instead: "no flush of the file stands between them",
    seed: 15,
    file: { unordered: [["name", "header"]] },
  },
  {
    name: "a flush is answered when the entries are durable",
    instead: "it is answered when they are written",
    file: { skippedSyncs: ["l2", "l1"] },
  },
  {
    name: "a write with FUA is answered when it is durable",
    instead: "FUA is ignored",
    ignoresFua: true,
  },
  {
    name: "a snapshot flushes what was written below it",
    instead: "it does not",
    seed: 37,
    snapshotWithoutFlush: true,
  },
];

function tellLengthFirst(driver: Qcow2Driver): void {
  const truncate = driver.truncate.bind(driver);
  driver.truncate = async (size) => {
    const { file, header, geometry } = driver.image;
    if (size <= header.size || Math.ceil(size / geometry.l2Span) > header.l1Size) return truncate(size);
    const field = Buffer.alloc(8);
    writeU64(field, size, 0);
    await file.write(HEADER_SIZE_AT, field.length, field, 0);
    await file.flush();
    return truncate(size);
  };
}

/** Entries that say zero and have no cluster say nothing. */
function unallocateZeros({ geometry }: Image, slice: Buffer): void {
  const bytes = geometry.extended ? 16 : 8;
  for (let at = 0; at + bytes <= slice.length; at += bytes) {
    const isEmpty = slice.readUInt32BE(at) === 0 && (slice.readUInt32BE(at + 4) & ~1) === 0;
    if (isEmpty) slice.fill(0, at, at + bytes);
  }
}
