// The consistency check of one image file, as `strata check` and the demo run it.

import { checkImage } from "../format/qcow2/check.ts";
import type { CheckResult } from "../format/qcow2/check-report.ts";
import { hostImageFile } from "../format/qcow2/image-file.ts";
import { type RepairMode, repairImage } from "../format/qcow2/repair.ts";
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

/** Repairs a qcow2 image that nobody else uses. @throws BlockError IMAGE_LOCKED, IMAGE_FORMAT ... */
export async function repairFile(
  path: string,
  mode: RepairMode,
  settings: CheckSettings = {},
): Promise<CheckResult> {
  const file = openHostFile(path, { writable: true });
  try {
    file.lock({ write: true, shareWrite: false });
    return await repairImage(hostImageFile(file), mode, settings);
  } finally {
    await file.close();
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
