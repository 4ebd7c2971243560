// Damage to the tables of an image, by seed.

import type { Prng } from "../../../base/prng.ts";

const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;

interface Place {
  readonly start: number;
  readonly bytes: number;
}

/** Where the entries of tables stand: refcount table and block, L1 and L2 tables, snapshots, bitmaps. */
function tablePlaces(bytes: Buffer): Place[] {
  const clusterSize = 2 ** bytes.readUInt32BE(20);
  const u64 = (at: number) => Number(bytes.readBigUInt64BE(at));
  const inside = (at: number) => at > 0 && at + 8 <= bytes.length;
  const places: Place[] = [{ start: u64(48), bytes: 64 }];
  const addL1 = (start: number, entries: number) => {
    places.push({ start, bytes: entries * 8 });
    for (let at = start; at < start + entries * 8; at += 8) {
      const l2 = Number(bytes.readBigUInt64BE(at) & OFFSET_MASK);
      if (inside(l2)) places.push({ start: l2, bytes: Math.min(clusterSize, 1024) });
    }
  };
  addL1(u64(40), bytes.readUInt32BE(36));
  places.push({ start: u64(u64(48)), bytes: Math.min(clusterSize, 256) });
  if (bytes.readUInt32BE(60) > 0) {
    const table = u64(64);
    places.push({ start: table, bytes: 160 });
    addL1(u64(table), bytes.readUInt32BE(table + 8));
  }
  const extension = bytes.subarray(0, clusterSize).indexOf(Buffer.from("23852875", "hex"));
  if (extension > 0 && bytes.readUInt32BE(extension + 8) > 0) {
    const directory = u64(extension + 24);
    places.push({ start: directory, bytes: 64 }, { start: u64(directory), bytes: 8 });
  }
  return places.filter((place) => place.bytes > 0);
}

/**
 * A copy with one to four places changed: a byte, a bit, an entry that names another cluster, one copied
 * from its neighbour, a cluster of nothing; or the file is cut.
 */
export function damageTables(original: Buffer, random: Prng): Buffer {
  const bytes = Buffer.from(original);
  const places = tablePlaces(original);
  const clusterSize = 2 ** bytes.readUInt32BE(20);
  for (let n = random.between(1, 4); n > 0; n--) {
    const place = random.pick(places);
    const at = place.start + random.below(place.bytes);
    if (at + 16 > bytes.length) continue;
    const entry = at - (at % 8);
    switch (random.below(8)) {
      case 0:
        bytes[at] = random.below(256);
        break;
      case 1:
      case 2:
        bytes[at]! ^= 1 << random.below(8);
        break;
      case 3:
        bytes.copy(bytes, entry + 8, entry, entry + 8);
        break;
      case 4:
        bytes.writeBigUInt64BE(0n, entry);
        break;
      default: {
        const cluster = random.below(Math.ceil(bytes.length / clusterSize) + 2);
        const flags = random.pick([0n, 1n << 63n, 1n, 1n << 9n]);
        bytes.writeBigUInt64BE(BigInt(cluster * clusterSize) | flags, entry);
      }
    }
  }
  if (random.chance(0.1)) return bytes.subarray(0, bytes.length - random.below(bytes.length >> 1));
  return bytes;
}
