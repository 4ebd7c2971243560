// The L2 tables of internal snapshots, for `overlap-check=all`: they are read once, when the image is opened
// for writing. Nobody makes or changes snapshots while we have it.

import { BlockError } from "../../base/errors.ts";
import type { Image } from "./image.ts";
import { entryOffset } from "./l2-entry.ts";
import { MetadataKind } from "./metadata-places.ts";

/** Table clusters that are remembered at the most: about 100 MiB of memory. */
const TABLES_MAX = 2 ** 20;
/** Entries of an L1 table that are read at once. */
const CHUNK_ENTRIES = 8192;

/** @throws BlockError EFBIG when there are too many of them; what the host says */
export async function collectInactiveTables(image: Image): Promise<void> {
  const { file, clusterSize, places } = image;
  const chunk = Buffer.alloc(CHUNK_ENTRIES * 8);
  for (const { l1TableOffset, l1Size } of image.snapshots) {
    // What lies past the end of the file are zeros: no table.
    const inFile = Math.max(0, Math.ceil((file.size - l1TableOffset) / 8));
    const entries = Math.min(l1Size, inFile);
    for (let first = 0; first < entries; first += CHUNK_ENTRIES) {
      const count = Math.min(CHUNK_ENTRIES, entries - first);
      await file.read(l1TableOffset + first * 8, count * 8, chunk, 0);
      for (let i = 0; i < count; i++) {
        const offset = entryOffset(chunk.readUInt32BE(i * 8), chunk.readUInt32BE(i * 8 + 4));
        if (offset !== 0) places.add(MetadataKind.INACTIVE_L2, Math.floor(offset / clusterSize), 1);
      }
      if (places.size > TABLES_MAX) {
        throw new BlockError(
          "EFBIG",
          `'${file.filename}' has more than ${TABLES_MAX} tables of snapshots; open it with overlap-check=cached`,
        );
      }
    }
  }
  image.doubtTables();
}
