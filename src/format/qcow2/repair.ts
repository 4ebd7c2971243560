// Makes the refcounts of an image right again, from what its tables refer to.
//
//   1. Refcounts are changed only after every reference was counted: a table that cannot be read ends the
//      repair.
//   2. Mapping tables are trusted; refcounts and COPIED flags follow them. No data is moved or dropped.
//   3. Where the refcount structures themselves are broken they are rebuilt in free space behind everything
//      else, and the header is switched to them last (rebuild.ts).
//   4. The dirty and the corrupt bit are cleared only when a second check finds nothing wrong.

import { BlockError, errorMessage } from "../../base/errors.ts";
import { divideUp } from "../../base/units.ts";
import { type CheckOptions, countAll, examine } from "./check.ts";
import { type CheckResult, CheckTally } from "./check-report.ts";
import { type CheckedImage, openChecked, readCheckedHeader } from "./checked-image.ts";
import { checkCopiedFlags } from "./copied-flags.ts";
import {
  FEATURES_OFFSET,
  Incompatible,
  keptAutoclear,
  type Qcow2Header,
  serializeFeatures,
} from "./header.ts";
import type { ImageFile } from "./image-file.ts";
import { rebuildRefcounts } from "./rebuild.ts";
import { setRefcount } from "./refcount-width.ts";
import { type ReferenceCounts, WINDOW_CLUSTERS, windowsOf } from "./reference-counts.ts";

/** leaks: free what nobody refers to. all: also what is wrong with refcounts and flags. */
export type RepairMode = "leaks" | "all";

/**
 * Repairs an image that nobody else uses; the file is open for writing. The result is that of a check
 * afterwards, with what was fixed.
 * @throws BlockError when the header is not that of an image that we can open
 */
export async function repairImage(
  file: ImageFile,
  mode: RepairMode,
  options: CheckOptions = {},
): Promise<CheckResult> {
  const before = await examine(file, options);
  if (before.image === undefined) return before.tally;
  const { image } = before;
  if (before.needsRebuild && mode === "leaks") {
    before.tally.checkError("need to rebuild refcount structures: repair all errors, not leaks alone");
    return before.tally;
  }
  const findings = before.tally.corruptions + before.tally.leaks;
  if (!before.needsRebuild && (findings === 0 || before.tally.checkErrors > 0)) {
    if (before.tally.checkErrors === 0) await finish(file, image.header, before.tally);
    return before.tally;
  }
  try {
    await dropUnknownAutoclear(file, image.header);
    await fixAll(file, image, before.needsRebuild, mode, options);
    await file.flush();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    before.tally.checkError(errorMessage(error));
    return before.tally;
  }
  const after = (await examine(file, { ...options, tell: undefined })).tally;
  after.corruptionsFixed = Math.max(0, before.tally.corruptions - after.corruptions);
  after.leaksFixed = Math.max(0, before.tally.leaks - after.leaks);
  await finish(file, await readCheckedHeader(file), after);
  return after;
}

async function fixAll(
  file: ImageFile,
  broken: CheckedImage,
  needsRebuild: boolean,
  mode: RepairMode,
  options: CheckOptions,
): Promise<void> {
  let image = broken;
  if (needsRebuild) {
    await rebuildRefcounts(image, options.windowClusters ?? WINDOW_CLUSTERS);
    image = await openChecked(file, await readCheckedHeader(file));
  } else {
    await fixRefcounts(image, mode, options);
  }
  if (mode === "all") await checkCopiedFlags(image, new CheckTally(), true);
}

/** Sets the refcounts to what was counted; in mode leaks only those that are too large. */
async function fixRefcounts(image: CheckedImage, mode: RepairMode, options: CheckOptions): Promise<void> {
  const clusterCount = divideUp(image.file.size, image.geometry.clusterSize);
  for (const window of windowsOf(clusterCount, options.windowClusters ?? WINDOW_CLUSTERS)) {
    const { counts } = await countAll(image, window, new CheckTally());
    const { refcountBlockEntries } = image.geometry;
    for (let first = window.first; first < window.end; ) {
      const index = Math.floor(first / refcountBlockEntries);
      const end = Math.min((index + 1) * refcountBlockEntries, window.end);
      // Without a wait where there is no block: a long and sparse file has millions of such places.
      if (image.refcounts.blockOffset(index) !== 0) {
        await fixBlock(image, counts, { index, first, end }, mode);
      }
      first = end;
    }
  }
}

async function fixBlock(
  image: CheckedImage,
  counts: ReferenceCounts,
  range: { index: number; first: number; end: number },
  mode: RepairMode,
): Promise<void> {
  const { refcounts, geometry, header, file } = image;
  const block = await refcounts.block(range.index);
  if (block === undefined) return;
  const freed: number[] = [];
  let changed = false;
  for (let cluster = range.first; cluster < range.end; cluster++) {
    const stored = refcounts.entry(block, cluster);
    const counted = counts.get(cluster);
    if (stored === counted || (stored < counted && mode === "leaks")) continue;
    setRefcount(block, header.refcountOrder, cluster % geometry.refcountBlockEntries, counted);
    changed = true;
    if (counted === 0) freed.push(cluster);
  }
  if (!changed) return;
  await refcounts.writeBlock(range.index, block);
  // Nothing refers to these clusters, so it does not matter whether the hole or the refcount is durable
  // first.
  for (const cluster of freed) await file.discard(cluster * geometry.clusterSize, geometry.clusterSize);
}

/** We write to the image, so what others derived from its content and we do not know must go. */
async function dropUnknownAutoclear(file: ImageFile, header: Qcow2Header): Promise<void> {
  const kept = keptAutoclear(header.autoclear);
  if (kept === header.autoclear) return;
  header.autoclear = kept;
  await writeFeatures(file, header);
}

async function finish(file: ImageFile, header: Qcow2Header, result: CheckResult): Promise<void> {
  const marks = Incompatible.DIRTY | Incompatible.CORRUPT;
  if (result.checkErrors > 0 || result.corruptions > 0 || (header.incompatible & marks) === 0) return;
  header.incompatible &= ~marks;
  await writeFeatures(file, header);
}

async function writeFeatures(file: ImageFile, header: Qcow2Header): Promise<void> {
  const features = serializeFeatures(header);
  await file.flush();
  await file.write(FEATURES_OFFSET, features.length, features, 0);
  await file.flush();
}
