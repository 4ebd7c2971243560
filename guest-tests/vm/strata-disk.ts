// Strata for a guest: a disk with this Node, the built program and the packages that it needs at run time. It
// is mounted at /opt, where a small script makes it the command `strata`.
//
// Node itself is large, and slow to load as a part of an initramfs; the libraries that it is linked with are
// small and have to stand where the loader looks for them, so those are files of the initramfs.

import { execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

const CHECKOUT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
const DISK_MIB = 400;

/** Lines of a shell script that mounts the disk `device` and has `strata` in the path. */
export function mountStrata(device: string): string {
  return `mkdir -p /opt /usr/local/bin
mount -t ext4 ${device} /opt
ln -sf /opt/strata /usr/local/bin/strata`;
}

/**
 * Builds Strata and puts it on an ext4 image, with further files: path below /opt -> path on the host. The
 * guest may write to what is free on it. Gives its path.
 */
export function buildStrataDisk(directory: string, files: Readonly<Record<string, string>> = {}): string {
  execFileSync(path.join(CHECKOUT, "scripts/build"), { stdio: ["ignore", "ignore", "inherit"] });
  const tree = path.join(directory, "strata-tree");
  const image = path.join(directory, "strata.ext4");
  mkdirSync(tree);
  try {
    cpSync(realpathSync(process.execPath), path.join(tree, "node"));
    for (const folder of ["dist/src", "dist/nbd", "package.json", ...packages()]) {
      cpSync(path.join(CHECKOUT, folder), path.join(tree, folder), { recursive: true });
    }
    writeFileSync(path.join(tree, "strata"), '#!/bin/sh\nexec /opt/node /opt/dist/src/cli/strata.js "$@"\n', {
      mode: 0o755,
    });
    for (const [inGuest, onHost] of Object.entries(files)) {
      mkdirSync(path.dirname(path.join(tree, inGuest)), { recursive: true });
      cpSync(onHost, path.join(tree, inGuest));
    }
    execFileSync("mkfs.ext4", ["-q", "-O", "^has_journal", "-d", tree, image, `${DISK_MIB}M`]);
  } finally {
    rmSync(tree, { recursive: true, force: true });
  }
  return image;
}

/** Takes a file off the disk: all of what the guest has synced to it. */
export function takeFromDisk(image: string, inGuest: string, onHost: string): void {
  execFileSync("debugfs", ["-R", `dump ${inGuest} ${onHost}`, image], { stdio: "ignore" });
}

/** Libraries of Node, as `files` of an initramfs. */
export function nodeLibraries(): Record<string, string> {
  const told = execFileSync("ldd", [process.execPath], { encoding: "utf8" });
  const files = [...told.matchAll(/(\/\S+) \(0x/g)].map((match) => match[1]!);
  return Object.fromEntries(files.map((file) => [file, realpathSync(file)]));
}

/** What the program imports, and what that imports, as far as it is installed for this kind of machine. */
function packages(): string[] {
  const found = new Set<string>();
  const add = (dependencies: Record<string, string> | undefined) => {
    for (const name of Object.keys(dependencies ?? {})) {
      const folder = `node_modules/${name}`;
      const description = path.join(CHECKOUT, folder, "package.json");
      if (found.has(folder) || !existsSync(description)) continue;
      found.add(folder);
      const { dependencies: more, optionalDependencies: others } = manifest(description);
      add(more);
      add(others);
    }
  };
  add(manifest(path.join(CHECKOUT, "package.json")).dependencies);
  return [...found];
}

interface Manifest {
  readonly dependencies?: Record<string, string>;
  readonly optionalDependencies?: Record<string, string>;
}

function manifest(file: string): Manifest {
  return JSON.parse(readFileSync(file, "utf8")) as Manifest;
}
