// Makes an image right again.
//
//   1. Refcounts are changed only after every reference was counted: a table that cannot be read ends the
//      repair.
//   2. Where the header says that tables are is put right first (mend-places.ts): all else hangs on it.
//   3. An image that is repaired because it was not closed has its mapping tables trusted; refcounts and
//      COPIED flags follow them, no data is moved or dropped. Only who asks for it (`mendTables`) gets
//      entries that cannot be mended or given up (mend-lists.ts, mend-tables.ts), before that.
//   4. Where the refcount structures themselves are broken they are rebuilt in free space behind everything
//      else, and the header is switched to them last (rebuild.ts).
//   5. The dirty and the corrupt bit are cleared only when a last check finds nothing wrong.
//   6. Where there was damage, or nothing at all is left of the disk, what is freed is not given back to the
//      host: it may be data that a broken entry has lost, or a table that is zeros now.

import { BlockError, errorMessage } from "../../base/errors.ts";
import { alignUp, divideUp } from "../../base/units.ts";
import { type CheckOptions, type CheckOutcome, countAll, examine } from "./check.ts";
import { type CheckResult, CheckTally, verdictOf } from "./check-report.ts";
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
import { L1_ENTRY_BYTES } from "./l2-entry.ts";
import { mendLists, mendSnapshots } from "./mend-lists.ts";
import { mendPlaces } from "./mend-places.ts";
import { mendTables } from "./mend-tables.ts";
import { rebuildRefcounts } from "./rebuild.ts";
import { setRefcount } from "./refcount-width.ts";
import { type ReferenceCounts, WINDOW_CLUSTERS, windowsOf } from "./reference-counts.ts";
import type { Snapshot } from "./snapshots.ts";

/** leaks: free what nobody refers to. all: also what is wrong with refcounts and flags. */
export type RepairMode = "leaks" | "all";

export interface RepairOptions extends CheckOptions {
  /** In mode all: mend or give up entries of tables that cannot be. */
  readonly mendTables?: boolean;
  /** Where there is damage nothing is changed: what nobody refers to may be what a broken entry has lost. */
  readonly soundOnly?: boolean;
}

/** A repair may show what was hidden behind the damage: it is tried so often. */
const ROUNDS_MAX = 4;

/**
 * Repairs an image that nobody else uses; the file is open for writing. The result is that of a check
 * afterwards, with what was fixed.
 * @throws BlockError when the header is not that of an image that we can open
 */
export async function repairImage(
  file: ImageFile,
  mode: RepairMode,
  options: RepairOptions = {},
): Promise<CheckResult> {
  const mendsTables = options.mendTables === true && mode === "all";
  const places = mendsTables ? await mendPlacesOf(file, options) : NO_PLACES;
  const before = await examine(file, options).catch((error: unknown) => {
    throw places.lost ?? error;
  });
  const { tally } = before;
  tally.corruptionsFixed = places.mended;
  if (places.lost !== undefined) {
    tally.checkError(places.lost.message);
    return tally;
  }
  if (places.mended > 0) await dropUnknownAutoclear(file, await readCheckedHeader(file));
  if (options.soundOnly === true && tally.corruptions + tally.checkErrors > 0) return tally;
  if (before.needsRebuild && mode === "leaks") {
    tally.checkError("need to rebuild refcount structures: repair all errors, not leaks alone");
    return tally;
  }
  const mends = mendsTables && tally.corruptions + tally.checkErrors > 0;
  const punch = tally.corruptions + tally.checkErrors === 0 && tally.allocatedClusters > 0;
  let outcome = before;
  try {
    for (let round = 0; round < ROUNDS_MAX && (mends || canBeFixed(outcome)); round++) {
      if (round === 0) await dropUnknownAutoclear(file, await readCheckedHeader(file));
      if (mends) await mendAll(file, options, round === 0 ? tally : new CheckTally());
      outcome = mends ? await examine(file, quiet(options)) : outcome;
      if (canBeFixed(outcome)) {
        // Refcounts too narrow to count what is wrong with them: anew, if the first attempt did not do.
        const rebuilds = outcome.needsRebuild || (mends && round > 0);
        await fixAll(file, outcome.image!, rebuilds, { mode, punch, options });
        await file.flush();
        outcome = await examine(file, quiet(options));
      }
      if (mode === "leaks" || verdictOf(outcome.tally) === "clean") break;
    }
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    tally.checkError(errorMessage(error));
    return tally;
  }
  const after = outcome.tally;
  if (after !== tally) {
    after.corruptionsFixed = places.mended + Math.max(0, tally.corruptions - after.corruptions);
    after.leaksFixed = Math.max(0, tally.leaks - after.leaks);
  }
  await finish(file, await readCheckedHeader(file), after);
  return after;
}

/** Places in the header that were put right; or why they cannot be. */
interface Places {
  readonly mended: number;
  readonly lost?: BlockError;
}

const NO_PLACES: Places = { mended: 0 };

async function mendPlacesOf(file: ImageFile, options: RepairOptions): Promise<Places> {
  const tell = (line: string) => options.tell?.(line);
  try {
    return { mended: await mendPlaces(file, options.windowClusters ?? WINDOW_CLUSTERS, tell) };
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    return { mended: 0, lost: error };
  }
}

function quiet(options: RepairOptions): RepairOptions {
  return { ...options, tell: undefined };
}

/** Whether refcounts and flags are wrong, and known well enough to be made right. */
function canBeFixed({ image, needsRebuild, tally }: CheckOutcome): boolean {
  if (image === undefined) return false;
  return needsRebuild || (tally.corruptions + tally.leaks > 0 && tally.checkErrors === 0);
}

/** Lists and tables: after this every entry can be. */
async function mendAll(file: ImageFile, options: RepairOptions, tally: CheckTally): Promise<void> {
  const tell = (line: string) => tally.tell(line);
  const header = await readCheckedHeader(file);
  await completeL1(file, header);
  await mendLists(file, header, tell);
  const image = await openChecked(file, await readCheckedHeader(file));
  const dropped = [...(await mendTables(image, options.windowClusters ?? WINDOW_CLUSTERS, tell))];
  const isKept = (snapshot: Snapshot) =>
    !dropped.some(({ id, l1TableOffset }) => id === snapshot.id && l1TableOffset === snapshot.l1TableOffset);
  if (dropped.length > 0) await mendSnapshots(file, image.header, isKept, tell);
  await file.flush();
}

/** A file that ends inside of its L1 table gets the rest, which reads as zeros. */
async function completeL1(file: ImageFile, header: Qcow2Header): Promise<void> {
  const end = alignUp(header.l1TableOffset + header.l1Size * L1_ENTRY_BYTES, 2 ** header.clusterBits);
  if (end <= file.size || header.l1Size === 0) return;
  await file.truncate(end);
}

interface Fixing {
  readonly mode: RepairMode;
  /** Whether freed space goes back to the host. */
  readonly punch: boolean;
  readonly options: CheckOptions;
}

async function fixAll(file: ImageFile, broken: CheckedImage, needsRebuild: boolean, how: Fixing) {
  let image = broken;
  if (needsRebuild) {
    await rebuildRefcounts(image, how.options.windowClusters ?? WINDOW_CLUSTERS);
    image = await openChecked(file, await readCheckedHeader(file));
  } else {
    await fixRefcounts(image, how);
  }
  if (how.mode === "all") await checkCopiedFlags(image, new CheckTally(), true);
}

/** Sets the refcounts to what was counted; in mode leaks only those that are too large. */
async function fixRefcounts(image: CheckedImage, how: Fixing): Promise<void> {
  const clusterCount = divideUp(image.file.size, image.geometry.clusterSize);
  for (const window of windowsOf(clusterCount, how.options.windowClusters ?? WINDOW_CLUSTERS)) {
    const { counts } = await countAll(image, window, new CheckTally());
    const { refcountBlockEntries } = image.geometry;
    for (let first = window.first; first < window.end; ) {
      const index = Math.floor(first / refcountBlockEntries);
      const end = Math.min((index + 1) * refcountBlockEntries, window.end);
      // Without a wait where there is no block: a long and sparse file has millions of such places.
      if (image.refcounts.blockOffset(index) !== 0) {
        await fixBlock(image, counts, { index, first, end }, how);
      }
      first = end;
    }
  }
}

async function fixBlock(
  image: CheckedImage,
  counts: ReferenceCounts,
  range: { index: number; first: number; end: number },
  { mode, punch }: Fixing,
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
  if (!punch) return;
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
