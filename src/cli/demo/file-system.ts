// The file system in the demo's disk, as it stands on each of six days. Every day files are added and
// changed; the difference between two days is what the guest writes into the image of the later one.

import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import path from "node:path";
import { BlockError } from "../../base/errors.ts";
import { Prng } from "../../base/prng.ts";
import { KiB, MiB } from "../../base/units.ts";
import { makeFatImage } from "./fat-image.ts";

export const FILE_SYSTEM_BYTES = 96 * MiB;

const SYSTEM_BYTES = 20 * MiB;
const DATABASE_BYTES = 12 * MiB;
const NEW_BYTES_PER_DAY = 5 * MiB;
const PAGE_BYTES = 4 * KiB;
const PAGES_CHANGED_PER_DAY = 400;
/**
 * Everything that could depend on the time or on chance is fixed, so that two days differ in their files
 * alone.
 */
const FIXED_TIME_S = 1735689600;
const EXT4_UUID = "57a7a000-0000-4000-8000-000000000001";

export type FileSystemKind = "ext4" | "FAT16";

/** ext4 where its tools are installed, otherwise our own FAT16. */
export function fileSystemKind(): FileSystemKind {
  return ["mkfs.ext4", "debugfs", "e2fsck"].every(isInstalled) ? "ext4" : "FAT16";
}

export function isInstalled(program: string): boolean {
  return spawnSync(program, ["-V"], { stdio: "ignore", env: environment() }).error === undefined;
}

/** The tools of ext4 stand where not every user's PATH leads. */
function environment(): NodeJS.ProcessEnv {
  return {
    ...process.env,
    PATH: `${process.env["PATH"] ?? ""}:/usr/sbin:/sbin`,
    E2FSPROGS_FAKE_TIME: String(FIXED_TIME_S),
    MKE2FS_CONFIG: "/dev/null",
  };
}

/** The files as they stand on `day` (1 is the first one), by name. */
export function filesOfDay(day: number): Map<string, Buffer> {
  const files = new Map<string, Buffer>();
  files.set("README.TXT", Buffer.from(`A disk of Strata's demo, day ${day}.\n`.repeat(day)));
  files.set("SYSTEM.BIN", randomBytes(1, SYSTEM_BYTES));
  const database = randomBytes(2, DATABASE_BYTES);
  for (let past = 2; past <= day; past++) changePages(database, past);
  files.set("DATABASE.BIN", database);
  for (let past = 2; past <= day; past++)
    files.set(`DAY${past}.LOG`, randomBytes(100 + past, NEW_BYTES_PER_DAY));
  return files;
}

function changePages(database: Buffer, day: number): void {
  const prng = new Prng(1000 + day);
  for (let change = 0; change < PAGES_CHANGED_PER_DAY; change++) {
    const page = prng.below(DATABASE_BYTES / PAGE_BYTES);
    randomBytes(prng.below(2 ** 32), PAGE_BYTES).copy(database, page * PAGE_BYTES);
  }
}

/** Bytes that do not compress and are the same for the same seed, whole words at a time. */
export function randomBytes(seed: number, bytes: number): Buffer {
  const words = new Uint32Array(Math.ceil(bytes / 4));
  let state = (seed * 2654435761 + 1) >>> 0 || 1;
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[i] = state;
  }
  return Buffer.from(words.buffer, 0, bytes);
}

/** The file system of a day as bytes; `directory` is a place for files in between. */
export function fileSystemOfDay(kind: FileSystemKind, day: number, directory: string): Buffer {
  const files = filesOfDay(day);
  return kind === "FAT16" ? makeFatImage(FILE_SYSTEM_BYTES, files) : makeExt4(files, directory);
}

/** mkfs.ext4 could copy a folder itself, but in the order of the host's folder; debugfs writes in ours. */
function makeExt4(files: ReadonlyMap<string, Buffer>, directory: string): Buffer {
  const tree = path.join(directory, "files");
  const image = path.join(directory, "fs.img");
  const names = [...files.keys()];
  mkdirSync(tree, { recursive: true });
  try {
    for (const [name, content] of files) {
      writeFileSync(path.join(tree, name), content);
      utimesSync(path.join(tree, name), FIXED_TIME_S, FIXED_TIME_S);
    }
    writeFileSync(image, "");
    truncateSync(image, FILE_SYSTEM_BYTES);
    const fixed = ["-U", EXT4_UUID, "-E", `hash_seed=${EXT4_UUID},root_owner=0:0`];
    runTool("mkfs.ext4", ["-q", "-F", "-b", "4096", ...fixed, image]);
    runTool(
      "debugfs",
      ["-w", "-f", "-", image],
      names.map((name) => `write files/${name} ${name}\n`).join(""),
      directory,
    );
    return readFileSync(image);
  } finally {
    rmSync(tree, { recursive: true, force: true });
    rmSync(image, { force: true });
  }
}

function runTool(program: string, args: readonly string[], input = "", cwd?: string): void {
  const run = spawnSync(program, args, { env: environment(), input, encoding: "utf8", cwd });
  if (run.status === 0) return;
  throw new BlockError("EIO", `${program} failed: ${run.error?.message ?? run.stderr}`);
}

/**
 * What e2fsck finds in an ext4 file system that stands in a file; undefined where there is nothing to find.
 */
export function ext4Faults(image: string): string | undefined {
  const run = spawnSync("e2fsck", ["-f", "-n", image], { env: environment(), encoding: "utf8" });
  if (run.error !== undefined) return run.error.message;
  return run.status === 0 ? undefined : run.stdout + run.stderr;
}

/** A stretch of bytes in which two states of a disk differ. */
export interface Difference {
  readonly offset: number;
  readonly bytes: number;
}

const DIFFERENCE_BYTES_MAX = 256 * KiB;

/** Pages in which `after` differs from `before`, neighbours joined up to the size of a large request. */
export function differences(before: Buffer, after: Buffer): Difference[] {
  const found: { offset: number; bytes: number }[] = [];
  for (let at = 0; at < after.length; at += PAGE_BYTES) {
    const end = Math.min(after.length, at + PAGE_BYTES);
    if (before.compare(after, at, end, at, end) === 0) continue;
    const last = found[found.length - 1];
    if (last !== undefined && last.offset + last.bytes === at && last.bytes < DIFFERENCE_BYTES_MAX) {
      last.bytes += end - at;
    } else {
      found.push({ offset: at, bytes: end - at });
    }
  }
  return found;
}
