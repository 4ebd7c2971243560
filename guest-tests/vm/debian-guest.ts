// A Debian that boots from a disk of Strata: the kernel and a small initramfs come from the host, everything
// else over NBD. See root-disk.ts for the disk, root-init.sh for what runs on it.

import path from "node:path";
import { onTestFinished } from "vitest";
import { buildInitramfs } from "./initramfs.ts";
import { Machine } from "./machine.ts";

/** Under translation a boot takes some seconds; a loaded host may need many times that. */
export const BOOT_PATIENCE_MS = 120_000;

/** What the console says when the root file system's own init has a shell ready. */
const UP = "strata debian is up: release";

const SWITCH = `
mount -t ext4 -o ro /dev/vda /mnt
for each in proc sys dev; do mount --move /$each /mnt/$each; done
exec switch_root /mnt /sbin/init
`;

export interface DebianSettings {
  /** The initramfs of `debianInitramfs`. */
  readonly initramfs: string;
  /** NBD URI of the root disk. */
  readonly root: string;
  /** Everything that the guest prints is kept there. */
  readonly logFile?: string;
  /** Further options of the root disk's `-drive`. */
  readonly drive?: string;
}

/**
 * The initramfs that goes on to the root file system on the first virtio disk; shared by all guests of a
 * test.
 */
export function debianInitramfs(directory: string): Promise<string> {
  const settings = { modules: ["ext4", "nbd max_part=8"], init: SWITCH };
  return buildInitramfs(settings, path.join(directory, "initramfs.cpio"));
}

/**
 * Boots to the root shell, for the time of a test. The guest may reboot: it does so inside the same machine.
 */
export async function bootDebian(settings: DebianSettings): Promise<Machine> {
  const drive = `file=${settings.root},format=raw,if=virtio,discard=unmap${settings.drive ?? ""}`;
  const machine = await Machine.start({
    initramfs: settings.initramfs,
    append: "loglevel=4",
    // Under translation a second processor has been seen to lose its timer while the kernel starts.
    cpus: 1,
    arguments: ["-drive", drive, "-action", "reboot=reset"],
    ...(settings.logFile === undefined ? {} : { logFile: settings.logFile }),
  });
  onTestFinished(() => machine.stop());
  await bootedTimes(machine, 1);
  return machine;
}

/** Waits until the guest has come up for the n-th time. */
export async function bootedTimes(machine: Machine, times: number): Promise<void> {
  await machine.waitFor(new RegExp(Array(times).fill(UP).join("[^]*")), BOOT_PATIENCE_MS);
}

/** Everything is written and flushed, and nothing can be written any more: the guest may go. */
export async function settle(machine: Machine): Promise<void> {
  await machine.must("sync && mount -o remount,ro /");
}
