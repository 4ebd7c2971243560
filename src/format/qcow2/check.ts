// The consistency check: counts the references to every host cluster and compares them with the refcounts on
// disk.
//
//   1. Whatever the image holds, the check ends with a result: a table that cannot be read is a check error
//      in it.
//   2. Memory is bounded: a window of counts, one table, a few refcount blocks (see reference-counts.ts).
//   3. Verdict and counts are those of `qemu-img check`.

import { errorMessage } from "../../base/errors.ts";
import { divideUp } from "../../base/units.ts";
import { type CheckResult, CheckTally } from "./check-report.ts";
import { countBitmaps, countRefcountBlocks, countRefcountTable, countReferences } from "./check-walk.ts";
import { type CheckedImage, openChecked, readCheckedHeader } from "./checked-image.ts";
import { checkCopiedFlags } from "./copied-flags.ts";
import type { ImageFile } from "./image-file.ts";
import {
  CHECKED_CLUSTERS_MAX,
  ReferenceCounts,
  WINDOW_CLUSTERS,
  type Window,
  windowsOf,
} from "./reference-counts.ts";

export interface CheckOptions {
  /** Takes findings, a line each; only the first thousand. */
  readonly tell?: (line: string) => void;
  /** Clusters that are counted at once; for tests. */
  readonly windowClusters?: number;
}

/** What a repair needs to know beyond the result. */
export interface CheckOutcome {
  readonly tally: CheckTally;
  /** Undefined when the image could not be looked at. */
  readonly image: CheckedImage | undefined;
  readonly needsRebuild: boolean;
}

/**
 * Checks an image. It changes nothing; the file may be open for reading only, and nobody else writes to it.
 * @throws BlockError when the header is not that of an image that we can open (IMAGE_FORMAT,
 * IMAGE_UNSUPPORTED,
 *   IMAGE_CORRUPT)
 */
export async function checkImage(file: ImageFile, options: CheckOptions = {}): Promise<CheckResult> {
  return (await examine(file, options)).tally;
}

/** As checkImage, with what a repair goes on with. */
export async function examine(file: ImageFile, options: CheckOptions): Promise<CheckOutcome> {
  const header = await readCheckedHeader(file);
  const tally = new CheckTally(options.tell);
  tally.totalClusters = divideUp(header.size, 2 ** header.clusterBits);
  let image: CheckedImage;
  try {
    image = await openChecked(file, header);
  } catch (error) {
    tally.checkError(errorMessage(error));
    return { tally, image: undefined, needsRebuild: false };
  }
  try {
    const needsRebuild = await examineTables(image, tally, options);
    return { tally, image, needsRebuild };
  } catch (error) {
    tally.checkError(errorMessage(error));
    return { tally, image, needsRebuild: false };
  }
}

async function examineTables(image: CheckedImage, tally: CheckTally, options: CheckOptions) {
  const { clusterSize } = image.geometry;
  const clusterCount = divideUp(image.file.size, clusterSize);
  if (clusterCount > CHECKED_CLUSTERS_MAX) {
    tally.checkError(
      `the file has ${clusterCount} clusters; no more than ${CHECKED_CLUSTERS_MAX} can be checked`,
    );
    return false;
  }
  let needsRebuild = false;
  let highest = 0;
  // One more: an entry may refer to the part of a cluster that the file would have, had it not been cut.
  for (const window of windowsOf(clusterCount + 1, options.windowClusters ?? WINDOW_CLUSTERS)) {
    const { counts, rebuild } = await countAll(image, window, tally);
    if (rebuild) needsRebuild = true;
    const compared = await compareRefcounts(image, counts, clusterCount, tally);
    if (compared.rebuild) needsRebuild = true;
    highest = Math.max(highest, compared.highest);
  }
  tally.imageEndOffset = (highest + 1) * clusterSize;
  await checkCopiedFlags(image, tally, false);
  return needsRebuild;
}

/** Counts all references into one window; see countReferences. */
export async function countAll(image: CheckedImage, window: Window, tally: CheckTally, alignedOnly = false) {
  const counts = new ReferenceCounts(window, image.geometry, image.file.size, tally);
  await countReferences(image, counts, tally, alignedOnly);
  countRefcountTable(image, counts);
  await countBitmaps(image, counts, tally);
  const rebuild = countRefcountBlocks(image, counts, tally);
  return { counts, rebuild };
}

async function compareRefcounts(
  image: CheckedImage,
  counts: ReferenceCounts,
  clusterCount: number,
  tally: CheckTally,
) {
  const { refcounts, geometry } = image;
  const end = Math.max(Math.min(counts.window.end, clusterCount), counts.highest + 1);
  let highest = Math.max(0, counts.highest);
  let rebuild = false;
  let cluster = counts.window.first;
  while (cluster < end) {
    const index = Math.floor(cluster / geometry.refcountBlockEntries);
    // A file may be sparse, and very long: where there are neither refcounts nor references nothing is wrong.
    const next = refcounts.blockOffset(index) === 0 ? counts.nextReferenced(cluster, end) : cluster;
    if (next > cluster) {
      cluster = next;
      continue;
    }
    const blockEnd = Math.min(end, (index + 1) * geometry.refcountBlockEntries);
    if (!refcounts.isUsable(index)) {
      tally.checkErrors += blockEnd - cluster;
      tally.tell(`ERROR Can't get refcounts of clusters ${cluster} to ${blockEnd - 1}`);
      cluster = blockEnd;
      continue;
    }
    const block = await refcounts.block(index);
    for (; cluster < blockEnd; cluster++) {
      if (block === undefined) cluster = counts.nextReferenced(cluster, blockEnd);
      if (cluster === blockEnd) break;
      const stored = block === undefined ? 0 : refcounts.entry(block, cluster);
      const counted = counts.get(cluster);
      if (stored > 0) highest = Math.max(highest, cluster);
      if (stored === counted) continue;
      if (stored === 0) rebuild = true;
      const line = `cluster ${cluster} refcount=${stored} reference=${counted}`;
      if (stored < counted) tally.corruption(line);
      else tally.leak(line);
    }
  }
  return { rebuild, highest };
}
