// The root disk as a chain of five images, each but the first written by a booted guest:
//
//   [file-A.img] <- [file-B.img] <- [file-C.img] <- [file-D.img] <- [file-E.img]
//    debootstrap     the guest's changes, a live snapshot before each
//
// In each layer the guest makes a user and files of random bytes under /srv, writes over parts of files of
// the layers below, deletes some, and trims. /srv/manifest has the checksums of all that is there.

import { copyFileSync } from "node:fs";
import path from "node:path";
import { lettersOnDisk } from "../harness/chain.ts";
import { type Daemon, hmpArguments, startDaemon } from "../harness/daemon.ts";
import { bootDebian, settle } from "./debian-guest.ts";
import type { Machine } from "./machine.ts";

/** Name of the export, and of the device in monitor commands. */
export const ROOT_DEVICE = "root";

export interface LayerPlan {
  /** Where the images lie; also place of the daemon's sockets. */
  readonly directory: string;
  /** The disk of root-disk.ts. */
  readonly image: string;
  readonly initramfs: string;
  readonly logFile?: string;
}

const OVERLAYS = ["B", "C", "D", "E"] as const;

export function layerFile(directory: string, letter: string): string {
  return path.join(directory, `file-${letter}.img`);
}

/**
 * Arguments that open each image of a chain as a node of its own, `root-A` to `root-E`, so that jobs can name
 * them, and export the top.
 */
export function layerArguments(directory: string): string[] {
  const letters = ["A", ...OVERLAYS];
  const nodes = letters.flatMap((letter, index) => {
    const file = `file.driver=file,file.filename=${layerFile(directory, letter)}`;
    const rights = letter === "E" ? "discard=unmap,file.discard=unmap" : "read-only=on";
    const backing = index === 0 ? "" : `,backing=${ROOT_DEVICE}-${letters[index - 1]}`;
    return ["--blockdev", `driver=qcow2,node-name=${ROOT_DEVICE}-${letter},${rights},${file}${backing}`];
  });
  const exported = `type=nbd,id=export-root,node-name=${ROOT_DEVICE}-E,name=${ROOT_DEVICE},writable=on`;
  return [...nodes, "--export", exported];
}

/** Arguments that open a disk by its top image; the rest of the chain follows from the links on disk. */
export function diskArguments(name: string, file: string): string[] {
  const node = `driver=qcow2,node-name=${name}-disk,discard=unmap,file.driver=file,file.filename=${file}`;
  const exported = `type=nbd,id=export-${name},node-name=${name}-disk,name=${name},writable=on`;
  return ["--blockdev", node, "--export", exported];
}

/** Serves the root disk from this image on. `server` is where clients find it: a unix socket, or a port. */
export function serveRoot(
  directory: string,
  letter: string,
  server: readonly string[],
  more: readonly string[] = [],
): Promise<Daemon> {
  const disk = diskArguments(ROOT_DEVICE, layerFile(directory, letter));
  return startDaemon(directory, [...hmpArguments(directory), ...server, ...disk, ...more]);
}

/** Boots from A and makes the other layers, snapshot by snapshot. The chain is closed afterwards. */
export async function makeLayers(plan: LayerPlan, server: readonly string[]): Promise<void> {
  const { directory } = plan;
  copyFileSync(plan.image, layerFile(directory, "A"));
  const daemon = await serveRoot(directory, "A", server);
  const root = daemon.uri(ROOT_DEVICE);
  const machine = await bootDebian({ ...plan, root });
  try {
    const monitor = await daemon.hmp();
    for (const letter of OVERLAYS) {
      const said = await monitor.type(`snapshot_blkdev ${ROOT_DEVICE} ${layerFile(directory, letter)} qcow2`);
      if (said !== "") throw new Error(`snapshot_blkdev said: ${said}`);
      await machine.must(changes(letter));
    }
    monitor.close();
    await checkLayers(machine);
    await settle(machine);
  } finally {
    await machine.stop();
  }
  await daemon.quit();
  const links = await lettersOnDisk(layerFile(directory, "E"));
  if (links !== "A B C D E") throw new Error(`the chain is ${links}`);
}

/** The guest finds, on its disk and not in its cache, what all layers together say. */
export async function checkLayers(machine: Machine): Promise<void> {
  await machine.must("sync; echo 3 >/proc/sys/vm/drop_caches; cd /srv && md5sum -c --quiet manifest");
  for (const letter of OVERLAYS) await machine.must(`id guest-${letter.toLowerCase()}`);
}

/** What a layer changes. The shell runs it in the guest. */
function changes(letter: string): string {
  return `
set -e
useradd guest-${letter.toLowerCase()}
mkdir /srv/${letter}
for i in 1 2 3 4 5 6; do dd if=/dev/urandom of=/srv/${letter}/$i bs=64k count=$((i * 4)) status=none; done
for f in /srv/*/[1-4]; do
  dd if=/dev/urandom of=$f bs=3k seek=$((RANDOM % 20)) count=5 conv=notrunc status=none
done
rm -f $(ls -d /srv/*/6 | grep -v ${letter})
cd /srv
find . -type f -name '[0-9]' | sort | xargs md5sum >manifest
set +e
sync && busybox fstrim /`;
}
