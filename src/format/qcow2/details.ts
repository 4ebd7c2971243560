import type { ImageDetails } from "../../block/driver.ts";
import { bitmapInfo } from "./bitmaps.ts";
import { COMPATIBLE_LAZY_REFCOUNTS, CompressionType, Incompatible } from "./header.ts";
import type { Image } from "./image.ts";
import { snapshotInfo } from "./snapshots.ts";

/** What QMP's ImageInfo and `info` tell of an image. */
export function imageDetails(image: Image): ImageDetails {
  const { header, clusterSize } = image;
  return {
    clusterSize,
    ...(header.backingFile === undefined ? {} : { backingFile: header.backingFile }),
    ...(header.backingFormat === undefined ? {} : { backingFormat: header.backingFormat }),
    formatSpecific: { type: "qcow2", data: formatSpecific(image) },
    corrupt: (header.incompatible & Incompatible.CORRUPT) !== 0,
    ...(image.snapshots.length === 0 ? {} : { snapshots: image.snapshots.map(snapshotInfo) }),
    endOffset: image.allocator.tail * clusterSize,
  };
}

/** QAPI's ImageInfoSpecificQCow2. */
function formatSpecific({ header, geometry, bitmaps }: Image): Record<string, unknown> {
  const compression = header.compressionType === CompressionType.ZSTD ? "zstd" : "zlib";
  if (header.version === 2) {
    return { compat: "0.10", "compression-type": compression, "refcount-bits": geometry.refcountBits };
  }
  return {
    compat: "1.1",
    "compression-type": compression,
    "lazy-refcounts": (header.compatible & COMPATIBLE_LAZY_REFCOUNTS) !== 0n,
    "refcount-bits": geometry.refcountBits,
    corrupt: (header.incompatible & Incompatible.CORRUPT) !== 0,
    "extended-l2": geometry.extended,
    ...(bitmaps.length === 0 ? {} : { bitmaps: bitmaps.map(bitmapInfo) }),
  };
}
