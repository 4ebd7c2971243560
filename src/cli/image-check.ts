// The consistency check of one image file, as `strata check` and the demo run it.

import { BlockError, errorMessage } from "../base/errors.ts";
import { checkImage } from "../format/qcow2/check.ts";
import type { CheckResult } from "../format/qcow2/check-report.ts";
import { hostImageFile } from "../format/qcow2/image-file.ts";
import { type RepairMode, repairImage } from "../format/qcow2/repair.ts";
import { JournaledFile, undoRepair } from "../format/qcow2/repair-journal.ts";
import { createHostFile } from "../sys/create-host-file.ts";
import type { DiskFile } from "../sys/disk-file.ts";
import { openHostFile } from "../sys/open-host-file.ts";

export interface CheckSettings {
  /** Takes findings, a line each. */
  readonly tell?: (line: string) => void;
}

/** Checks a qcow2 image that nobody writes to. @throws BlockError IMAGE_LOCKED, IMAGE_FORMAT ... */
export async function checkFile(path: string, settings: CheckSettings = {}): Promise<CheckResult> {
  const file = openHostFile(path, { writable: false });
  try {
    file.lock({ write: false, shareWrite: false });
    return await checkImage(hostImageFile(file), settings);
  } finally {
    await file.close();
  }
}

export interface RepairSettings extends CheckSettings {
  /** Where to keep what is overwritten; beside the image unless given; null: nowhere. */
  readonly backup?: string | null;
}

export interface Repair {
  readonly result: CheckResult;
  /** Where what was overwritten is kept, if anything was. */
  readonly backup: string | undefined;
}

/** Repairs a qcow2 image that nobody else uses. @throws BlockError IMAGE_LOCKED, IMAGE_FORMAT, EEXIST ... */
export async function repairFile(path: string, mode: RepairMode, settings: RepairSettings): Promise<Repair> {
  const file = openHostFile(path, { writable: true });
  let kept: DiskFile | undefined;
  try {
    file.lock({ write: true, shareWrite: false });
    const options = { ...settings, mendTables: true };
    const image = hostImageFile(file);
    if (settings.backup === null) {
      return { result: await repairImage(image, mode, options), backup: undefined };
    }
    if (settings.backup === undefined && file.blockDevice) {
      throw new BlockError(
        "EINVAL",
        `'${path}' is a device: say with --backup FILE where to keep what the repair overwrites, or --no-backup`,
      );
    }
    const journaled = new JournaledFile(image, async () => {
      kept = await createBackup(path, settings.backup ?? undefined);
      return hostImageFile(kept);
    });
    const result = await repairImage(journaled, mode, options);
    await journaled.seal();
    return { result, backup: kept?.path };
  } finally {
    await kept?.close();
    await file.close();
  }
}

/** Names beside the image that are tried, one after the other. */
const BACKUPS_MAX = 1000;

/** A new file, its name durable. @throws BlockError EEXIST and others, saying what to do */
async function createBackup(image: string, path: string | undefined): Promise<DiskFile> {
  for (let number = 1; ; number++) {
    const name = path ?? `${image}.before-repair${number === 1 ? "" : `-${number}`}`;
    try {
      return await createHostFile(name, { size: 0, exclusive: true });
    } catch (error) {
      const taken = error instanceof BlockError && error.code === "EEXIST";
      if (taken && path === undefined && number < BACKUPS_MAX) continue;
      const code = error instanceof BlockError ? error.code : "EIO";
      throw new BlockError(
        code,
        `what the repair overwrites cannot be kept in '${name}', so nothing was changed: ${errorMessage(error)}. ` +
          "Name another place with --backup FILE, or go without one with --no-backup",
        error,
      );
    }
  }
}

/**
 * Puts back what a repair has overwritten; settles to the number of bytes.
 * @param force also where somebody wrote to the image since
 * @throws BlockError
 */
export async function undoRepairOf(path: string, backup: string, force: boolean): Promise<number> {
  const kept = openHostFile(backup, { writable: true });
  try {
    const file = openHostFile(path, { writable: true });
    try {
      file.lock({ write: true, shareWrite: false });
      return await undoRepair(hostImageFile(file), hostImageFile(kept), force);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      if (error.code === "EBUSY") {
        const help = "--force undoes the repair all the same; what was written since may be lost";
        throw new BlockError(error.code, `${error.message}: ${help}`, error);
      }
      if (error.code !== "IMAGE_FORMAT") throw error;
      throw new BlockError(error.code, `'${backup}' is no backup of a repair: ${error.message}`, error);
    } finally {
      await file.close();
    }
  } finally {
    await kept.close();
  }
}

/** The verdict in the lines of `qemu-img check`. */
export function checkText(result: CheckResult): string {
  const lines: string[] = [];
  const { corruptions, leaks, checkErrors, corruptionsFixed, leaksFixed } = result;
  if (corruptionsFixed + leaksFixed > 0) {
    lines.push("The following inconsistencies were found and repaired:", "");
    lines.push(`    ${leaksFixed} leaked clusters`, `    ${corruptionsFixed} corruptions`, "");
  }
  if (corruptions + leaks + checkErrors === 0) lines.push("No errors were found on the image.");
  if (corruptions > 0) {
    lines.push("", `${corruptions} errors were found on the image.`);
    lines.push("Data may be corrupted, or further writes to the image may corrupt it.");
  }
  if (leaks > 0) {
    lines.push("", `${leaks} leaked clusters were found on the image.`);
    lines.push("This means waste of disk space, but no harm to data.");
  }
  if (checkErrors > 0) lines.push("", `${checkErrors} internal errors have occurred during the check.`);
  lines.push(...allocationLine(result));
  if (result.imageEndOffset > 0) lines.push(`Image end offset: ${result.imageEndOffset}`);
  return lines.map((line) => line + "\n").join("");
}

function allocationLine(result: CheckResult): string[] {
  const { totalClusters, allocatedClusters, fragmentedClusters, compressedClusters } = result;
  if (totalClusters === 0 || allocatedClusters === 0) return [];
  const percent = (part: number, whole: number) => `${((100 * part) / whole).toFixed(2)}%`;
  return [
    `${allocatedClusters}/${totalClusters} = ${percent(allocatedClusters, totalClusters)} allocated, ` +
      `${percent(fragmentedClusters, allocatedClusters)} fragmented, ` +
      `${percent(compressedClusters, allocatedClusters)} compressed clusters`,
  ];
}
