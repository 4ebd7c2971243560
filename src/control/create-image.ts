// New images: for blockdev-create, and overlays for a snapshot.

import { BlockError } from "../base/errors.ts";
import { imageOf } from "../block/chain.ts";
import type { BlockNode } from "../block/node.ts";
import { Permission } from "../block/permissions.ts";
import { type CreateOptions, createQcow2 } from "../format/qcow2/create.ts";
import { hostImageFile } from "../format/qcow2/image-file.ts";
import { createHostFile } from "../sys/create-host-file.ts";
import type { Daemon } from "./daemon.ts";
import { adaptNodeOptions } from "./node-options.ts";
import type { createOptions } from "./qapi/block.ts";
import type { Infer } from "./qapi/types.ts";

export type ImageOptions = Infer<typeof createOptions>;

/** What an overlay is made of. */
export interface OverlaySettings {
  readonly path: string;
  readonly backing: BlockNode;
  /** The backing image's name as it is to stand in the overlay. */
  readonly backingFile: string;
}

/** Writes an empty qcow2 overlay to a new file, durably. @throws BlockError; what the host says */
export async function createOverlay({ path, backing, backingFile }: OverlaySettings): Promise<void> {
  const file = await createFileOf(path, { size: 0 });
  try {
    await createQcow2(hostImageFile(file), {
      size: backing.size,
      backingFile,
      backingFormat: imageOf(backing).driverName,
    });
  } finally {
    await file.close();
  }
}

/** As `createHostFile`, in the words that QEMU has for it. */
async function createFileOf(path: string, options: Parameters<typeof createHostFile>[1]) {
  try {
    return await createHostFile(path, options);
  } catch (error) {
    if (!(error instanceof BlockError) || !error.message.startsWith("Could not open ")) throw error;
    throw new BlockError(error.code, error.message.replace("open", "create"), error);
  }
}

/** The work of blockdev-create. @throws BlockError in QEMU's words */
export async function createImage(daemon: Daemon, options: ImageOptions): Promise<void> {
  switch (options.driver) {
    case "file":
      return createFile(options);
    case "qcow2":
      return createInNode(daemon, options);
    default:
      throw new BlockError("ENOTSUP", "Driver does not support blockdev-create");
  }
}

async function createFile(options: Extract<ImageOptions, { driver: "file" }>): Promise<void> {
  const { preallocation = "off", size, filename } = options;
  if (preallocation === "metadata") {
    throw new BlockError("ENOTSUP", "Unsupported preallocation mode 'metadata'");
  }
  if (size < 0) throw new BlockError("EINVAL", "Image size must not be negative");
  const file = await createFileOf(filename, { size, preallocation });
  await file.close();
}

async function createInNode(
  daemon: Daemon,
  options: Extract<ImageOptions, { driver: "qcow2" }>,
): Promise<void> {
  if (options["data-file"] !== undefined) {
    throw new BlockError("ENOTSUP", "external data files are not supported");
  }
  const { file } = options;
  const node =
    typeof file === "string"
      ? daemon.graph.get(file)
      : await daemon.opener.open(adaptNodeOptions(file, daemon.logger));
  try {
    await createIn(daemon, node, options);
  } finally {
    await daemon.opener.closeUnused(node);
  }
}

async function createIn(
  daemon: Daemon,
  node: BlockNode,
  options: Extract<ImageOptions, { driver: "qcow2" }>,
): Promise<void> {
  const use = daemon.graph.use(node, {
    user: "an unnamed block device",
    role: "root",
    needs: Permission.CONSISTENT_READ | Permission.WRITE | Permission.RESIZE,
    shares: Permission.CONSISTENT_READ,
    staysAtNode: true,
  });
  try {
    daemon.opener.refuseLink(node, options["backing-file"] ?? "", options["backing-fmt"]);
    await createQcow2(node, qcow2Options(options));
  } finally {
    await daemon.graph.release(use);
  }
}

function qcow2Options(options: Extract<ImageOptions, { driver: "qcow2" }>): CreateOptions {
  const given = {
    clusterSize: options["cluster-size"],
    version: options.version === undefined ? undefined : options.version === "v2" ? 2 : 3,
    refcountBits: options["refcount-bits"],
    lazyRefcounts: options["lazy-refcounts"],
    extendedL2: options["extended-l2"],
    compressionType: options["compression-type"],
    backingFile: options["backing-file"],
    backingFormat: options["backing-fmt"],
    preallocation: options.preallocation,
  } as const;
  if (options.size % 512 !== 0) {
    throw new BlockError("EINVAL", "Image size must be a multiple of 512 bytes");
  }
  const chosen = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  return { size: options.size, ...chosen };
}
