// Opens an image with its chain for reading, without a daemon: what info, map, chain and the demo's proof
// look at.
//
//   1. Nothing is written, and the images are locked against writers, or shared with one where the user asks
//      for it.
//   2. An image whose format is not stated is qcow2 by its first bytes, otherwise raw. That is safe for
//      reading; what is opened for writing is never guessed (see `statedFormat`).

import { closeSync, openSync, readSync } from "node:fs";
import path from "node:path";
import { BlockError } from "../base/errors.ts";
import { silentLogger } from "../base/logger.ts";
import type { BackingRoots } from "../block/backing-roots.ts";
import { Graph } from "../block/graph.ts";
import type { BlockNode } from "../block/node.ts";
import type { NodeOptions } from "../block/node-options.ts";
import { type DriverFactory, NodeOpener } from "../block/open.ts";
import { DRIVERS } from "../control/drivers.ts";
import { linkRules } from "../control/link-options.ts";
import { openFileDriver } from "../protocol/file/file-driver.ts";
import { usageError, withLockHelp } from "./failure.ts";

export interface OpenImageOptions {
  /** qcow2 or raw; by the first bytes where it is left away. */
  readonly format?: string | undefined;
  /** Reads also while another process writes. */
  readonly forceShare?: boolean | undefined;
  /** Whether the images behind it are opened too. Default true. */
  readonly backing?: boolean | undefined;
  /** Where the images may name files; undefined: anywhere. */
  readonly roots?: BackingRoots | undefined;
  /** What to do where another process writes to an image; otherwise `LOCK_HELP`. */
  readonly lockHelp?: string | undefined;
}

const LOCK_HELP = "To look at it all the same, add -U, or ask the daemon that has it with 'strata chain'";

export interface OpenedImage {
  readonly node: BlockNode;
  close(): Promise<void>;
}

const FORMATS = ["qcow2", "raw"];
const QCOW2_MAGIC = Buffer.from("QFI\xfb", "latin1");

/** Opens `file`, gives its node to `action` and closes everything again. */
export async function withImage<T>(
  file: string,
  options: OpenImageOptions,
  action: (node: BlockNode) => Promise<T>,
): Promise<T> {
  const image = await openOffline(file, options);
  try {
    return await action(image.node);
  } finally {
    await image.close();
  }
}

/** @throws BlockError that says which file cannot be opened, why, and what to do */
export async function openOffline(file: string, options: OpenImageOptions): Promise<OpenedImage> {
  const driver = options.format === undefined ? guessedFormat(file) : knownFormat(options.format);
  const graph = new Graph(silentLogger);
  const opener = new NodeOpener(
    graph,
    driversFor(options.forceShare === true),
    silentLogger,
    linkRules(options.roots, silentLogger),
  );
  const nodeOptions: NodeOptions = {
    driver,
    "read-only": true,
    file: { driver: "file", filename: file, "read-only": true },
    ...(options.backing === false && { backing: null }),
  };
  try {
    const node = await opener.open(nodeOptions);
    return { node, close: () => opener.closeUnused(node) };
  } catch (error) {
    throw options.forceShare === true ? error : withLockHelp(error, options.lockHelp ?? LOCK_HELP);
  }
}

/**
 * The format of an image that is going to be written: stated, or qcow2 by its magic; raw is never guessed.
 */
export function statedFormat(file: string, stated: string | undefined): string {
  if (stated !== undefined) return knownFormat(stated);
  if (path.extname(file) === ".raw") return "raw";
  if (guessedFormat(file) === "qcow2") return "qcow2";
  throw usageError(
    `'${file}' is not a qcow2 image: if it is a raw disk, say so with --format raw (it is not guessed, since a guest ` +
      `could make its disk look like another format)`,
  );
}

function guessedFormat(file: string): string {
  return isQcow2(file) ? "qcow2" : "raw";
}

/** Whether a file begins as a qcow2 image does. @throws BlockError when it cannot be read */
export function isQcow2(file: string): boolean {
  const start = Buffer.alloc(QCOW2_MAGIC.length);
  let fd: number;
  try {
    fd = openSync(file, "r");
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === "ENOENT") throw new BlockError("ENOENT", `there is no image '${file}'`, error);
    throw new BlockError("EACCES", `cannot open '${file}': ${(error as Error).message}`, error);
  }
  try {
    readSync(fd, start, 0, start.length, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EISDIR") {
      throw usageError(`'${file}' is a directory: name an image in it`);
    }
    throw new BlockError("EIO", `cannot read '${file}': ${(error as Error).message}`, error);
  } finally {
    closeSync(fd);
  }
  return start.equals(QCOW2_MAGIC);
}

function knownFormat(format: string): string {
  if (FORMATS.includes(format)) return format;
  throw usageError(`unknown format '${format}': there are ${FORMATS.join(" and ")}`);
}

/**
 * The daemon's drivers; where another process may write meanwhile, every file of the chain is shared with it.
 */
function driversFor(forceShare: boolean): readonly DriverFactory[] {
  if (!forceShare) return DRIVERS;
  return DRIVERS.map((driver) => (driver.driverName === "file" ? SHARED_FILE : driver));
}

const SHARED_FILE: DriverFactory = {
  driverName: "file",
  leaf: true,
  filename: (options) => String(options["filename"]),
  open: (_host, options) =>
    openFileDriver(String(options["filename"]), { writable: false, shareWrite: true }),
};
