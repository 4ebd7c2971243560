// The disk that guests boot from: a Debian made by debootstrap, once, and kept for the next run.
//
// It lies in a folder of this user's own below $XDG_CACHE_HOME or the place for temporary files; its name
// tells of everything it was made from, so that a change of the scripts or of a tool makes a new one.

import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, lstatSync, mkdirSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { GiB } from "../../src/base/units.ts";
import { findProgram, whyNoGuest } from "./kernel.ts";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const MAKER = path.join(HERE, "root-disk.sh");
const INIT = path.join(HERE, "root-init.sh");

/** Length of the disk: most of it is free, and takes no room in the image. */
export const ROOT_DISK_BYTES = GiB;

/** Programs of the host that the guest finds in its PATH. */
const PROGRAMS = ["busybox", "e2fsck", "fio", "mkfs.ext4", "nbd-client"] as const;
/** What the disk is made with. */
const MAKERS = ["debootstrap", "flock", "mkfs.ext4", "qemu-img"] as const;
/** The maker's exit code when debootstrap failed. */
const NO_DEBOOTSTRAP = 3;

/** Either the disk, or why there is none here. */
export type RootDisk =
  | { readonly image: string; readonly missing?: undefined }
  | { readonly image?: undefined; readonly missing: string };

/**
 * The qcow2 image of the disk, for reading: whoever boots from it makes a copy. The first call takes a
 * minute.
 * @throws when it could be made here and was not
 */
export async function rootDisk(): Promise<RootDisk> {
  if (process.getuid?.() !== 0) return { missing: "debootstrap needs root" };
  const missing = whyNoGuest(...PROGRAMS, ...MAKERS);
  if (missing !== undefined) return { missing };
  const cache = cacheDirectory();
  const suite = debianRelease();
  const tree = `tree-${suite}-${digest([readFileSync(MAKER, "utf8")])}`;
  const tools = PROGRAMS.map((program) => digest([readFileSync(findProgram(program)!)]));
  const image = `root-${digest([tree, readFileSync(INIT, "utf8"), String(ROOT_DISK_BYTES), ...tools])}.qcow2`;
  const file = path.join(cache, image);
  if (existsSync(file)) return { image: file };
  const outcome = await make([cache, suite, tree, image, String(ROOT_DISK_BYTES), ...PROGRAMS]);
  if (outcome.code === 0) return { image: file };
  const said = `debootstrap cannot make a Debian here: ${outcome.said}`;
  if (outcome.code === NO_DEBOOTSTRAP) return { missing: said };
  throw new Error(`${MAKER} ended with code ${outcome.code} and said:\n${outcome.said}`);
}

function make(args: readonly string[]): Promise<{ code: number; said: string }> {
  return new Promise((resolve) => {
    execFile("bash", [MAKER, ...args], (error, stdout, stderr) => {
      const code = error === null ? 0 : typeof error.code === "number" ? error.code : -1;
      resolve({ code, said: `${stdout}${stderr}`.trim() });
    });
  });
}

/** @throws when another user has put something where ours should be */
function cacheDirectory(): string {
  const uid = process.getuid!();
  const directory = path.join(process.env["XDG_CACHE_HOME"] ?? tmpdir(), `strata-guests-${uid}`);
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const found = lstatSync(directory);
  if (!found.isDirectory() || found.uid !== uid) throw new Error(`${directory} is not a folder of ours`);
  return directory;
}

/** The host's own release if that is a Debian, since debootstrap surely knows it. */
function debianRelease(): string {
  const told = existsSync("/etc/os-release") ? readFileSync("/etc/os-release", "utf8") : "";
  const codename = /^VERSION_CODENAME=(\w+)$/m.exec(told)?.[1];
  return /^ID=debian$/m.test(told) && codename !== undefined ? codename : "bookworm";
}

function digest(parts: readonly (string | Buffer)[]): string {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part).update("\0");
  return hash.digest("hex").slice(0, 16);
}
