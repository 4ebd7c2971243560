// The end of the demo: proof that nothing was lost, by us and by whoever else is installed.

import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import path from "node:path";
import { BlockError } from "../../base/errors.ts";
import { MiB } from "../../base/units.ts";
import { chainOf } from "../../block/chain.ts";
import { chainLine } from "../chain-picture.ts";
import { checkFile } from "../image-check.ts";
import { withImage } from "../open-image.ts";
import { readFatImage } from "./fat-image.ts";
import { ext4Faults, FILE_SYSTEM_BYTES, type FileSystemKind, filesOfDay } from "./file-system.ts";
import { firstDifference } from "./guest.ts";

const READ_BYTES = 4 * MiB;

/** Takes one line for each proof. */
export type Tell = (line: string) => void;

/** What is to be proved of the image that the demo leaves. */
export interface Claim {
  /** The active image. */
  readonly image: string;
  /** Names of the images that are left, base first, without extension. */
  readonly chain: readonly string[];
  /** What the guest must see. */
  readonly reference: Buffer;
  readonly fileSystem: FileSystemKind;
  /** The day whose files must be there. */
  readonly day: number;
  /** For files in between. */
  readonly directory: string;
}

/** @throws BlockError at the first claim that does not hold */
export async function prove(claim: Claim, tell: Tell): Promise<void> {
  const content = await readAll(claim, tell);
  await proveCheck(claim, tell);
  proveFileSystem(claim, content, tell);
  proveWithQemu(claim, tell);
}

/** Reads the whole disk from the files as they stand, the images that were merged away being deleted. */
async function readAll(claim: Claim, tell: Tell): Promise<Buffer> {
  const { reference } = claim;
  const content = Buffer.alloc(reference.length);
  await withImage(claim.image, { format: "qcow2" }, async (node) => {
    const names = chainOf(node).map((image) => path.parse(image.filename).name);
    const [got, wanted] = [chainLine(names.reverse()), chainLine(claim.chain)];
    if (got !== wanted) throw new BlockError("EIO", `the chain on disk is ${got}, not ${wanted}`);
    tell(`the chain on disk is ${got}`);
    for (let offset = 0; offset < content.length; offset += READ_BYTES) {
      const bytes = Math.min(READ_BYTES, content.length - offset);
      const done = node.read(offset, bytes, content, offset);
      if (done !== undefined) await done;
    }
  });
  const at = firstDifference(content, reference);
  if (at !== undefined)
    throw new BlockError("EIO", `the images differ from the reference copy at offset ${at}`);
  tell(`all ${content.length / MiB} MiB on disk are what the guest wrote (compared with the reference copy)`);
  return content;
}

async function proveCheck(claim: Claim, tell: Tell): Promise<void> {
  const findings: string[] = [];
  const result = await checkFile(claim.image, { tell: (line) => findings.push(line) });
  if (result.corruptions + result.leaks + result.checkErrors > 0) {
    throw new BlockError("IMAGE_CORRUPT", `strata check finds: ${findings.join("; ")}`);
  }
  tell("strata check: no errors, no leaks");
}

function proveFileSystem(claim: Claim, content: Buffer, tell: Tell): void {
  const fileSystem = content.subarray(0, FILE_SYSTEM_BYTES);
  if (claim.fileSystem === "ext4") {
    const image = path.join(claim.directory, "file-system.img");
    writeFileSync(image, fileSystem);
    const faults = ext4Faults(image);
    if (faults !== undefined) throw new BlockError("EIO", `e2fsck finds: ${faults}`);
    tell("e2fsck: the guest's ext4 file system is clean");
    return;
  }
  const files = readFatImage(fileSystem);
  for (const [name, wanted] of filesOfDay(claim.day)) {
    if (files.get(name)?.equals(wanted) !== true)
      throw new BlockError("EIO", `the guest's file ${name} is damaged`);
  }
  tell(`all ${files.size} files of the guest's FAT16 file system are whole`);
}

function proveWithQemu(claim: Claim, tell: Tell): void {
  if (spawnSync("qemu-img", ["--version"], { stdio: "ignore" }).error !== undefined) {
    tell("qemu-img is not installed: its check and compare are left out");
    return;
  }
  const copy = path.join(claim.directory, "reference.raw");
  writeFileSync(copy, claim.reference);
  qemuImg(["check", "-f", "qcow2", claim.image]);
  tell("qemu-img check: no errors, no leaks");
  qemuImg(["compare", "-f", "qcow2", "-F", "raw", claim.image, copy]);
  tell("qemu-img compare: identical to the reference copy");
}

function qemuImg(args: readonly string[]): void {
  const run = spawnSync("qemu-img", args, { encoding: "utf8" });
  if (run.status === 0) return;
  throw new BlockError("IMAGE_CORRUPT", `qemu-img ${args.join(" ")}: ${(run.stdout + run.stderr).trim()}`);
}
