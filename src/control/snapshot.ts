// Live snapshots: an image goes on top of a node, and whoever used the node uses the image from then on.
//
//   1. All snapshots of one transaction are planned first: checked, their images made and opened. An error
//      there leaves the graph as it was; images that were made stay on disk, as in the reference.
//   2. Then all their nodes are drained and flushed together, and only then does the first one get its
//      overlay: the snapshots are of one moment, and an error of the host comes before anything has changed.
//   3. An overlay that was made here belongs to the monitor afterwards, and stays when nobody uses it, if the
//      node below does. Where that one belongs to its users only (`strata serve`), so does the overlay.

import path from "node:path";
import { BlockError } from "../base/errors.ts";
import { imageOf } from "../block/chain.ts";
import { isNodeName } from "../block/graph.ts";
import { linkName } from "../block/link-name.ts";
import type { BlockNode } from "../block/node.ts";
import type { NodeOptions } from "../block/node-options.ts";
import { createOverlay } from "./create-image.ts";
import type { Daemon } from "./daemon.ts";
import { refuseBacking } from "./monitor-nodes.ts";

/** What blockdev-snapshot-sync is told. */
export interface SyncSnapshot {
  readonly node: BlockNode;
  readonly file: string;
  readonly nodeName: string;
  /** Default qcow2. */
  readonly format?: string | undefined;
  /** The file is there already: nothing is made, it is opened as it is. */
  readonly existing: boolean;
}

/** A snapshot that is ready to be taken. */
interface Plan {
  readonly node: BlockNode;
  readonly overlay: BlockNode;
  /** Gives back what was opened for it. */
  abandon(): Promise<void>;
  /** What is left to do when the overlay has its users. */
  taken?(): Promise<void>;
}

export type Planner = (daemon: Daemon) => Promise<Plan>;

/** Takes the snapshots, all of one moment or none. @throws BlockError in QEMU's words */
export function takeSnapshots(daemon: Daemon, planners: readonly Planner[]): Promise<void> {
  return daemon.graph.exclusively(async () => {
    const plans: Plan[] = [];
    try {
      for (const planner of planners) plans.push(await planner(daemon));
      await daemon.graph.appendAll(plans, ({ node }) => refuseBusy(daemon, node));
    } catch (error) {
      for (const plan of plans.reverse()) await abandon(daemon, plan);
      throw error;
    }
    for (const plan of plans) await plan.taken?.();
  });
}

/** The error that brought us here is the one to tell. */
async function abandon(daemon: Daemon, { overlay, abandon }: Plan): Promise<void> {
  try {
    await abandon();
  } catch (error) {
    daemon.logger.warn(`closing the overlay '${overlay.name}', which is not used: ${String(error)}`);
  }
}

/** Plans to put a node that is there on top of another one. */
export function planOnto(node: BlockNode, overlay: BlockNode): Planner {
  return async (daemon) => {
    refuseBusy(daemon, node);
    const users = daemon.graph.usesOf(overlay).filter((use) => !use.staysAtNode);
    if (overlay === node || users.length > 0) {
      throw new BlockError("NODE_IN_USE", "The overlay is already in use");
    }
    if (overlay.filtered !== undefined) {
      throw new BlockError("ENOTSUP", "Filters cannot be used as overlays");
    }
    if (!overlay.driver.supportsBacking) {
      throw new BlockError("ENOTSUP", "The overlay does not support backing images");
    }
    return { node, overlay, abandon: async () => {} };
  };
}

/** Plans to make an overlay and to put it on top. */
export function planSync(snapshot: SyncSnapshot): Planner {
  return async (daemon) => {
    const { node } = snapshot;
    refuseBusy(daemon, node);
    const format = snapshot.format ?? "qcow2";
    if (!snapshot.existing) {
      checkFormat(daemon, format);
      await makeOverlay(snapshot);
    }
    const options = overlayOptions(snapshot, format);
    const overlay = await daemon.opener.open(options);
    daemon.nodes.hold(overlay, options);
    return {
      node,
      overlay,
      // Somebody else may have taken hold of it meanwhile: it is his then.
      abandon: () => daemon.nodes.letGo(overlay),
      taken: async () => {
        if (!daemon.nodes.isHeld(node)) await daemon.nodes.letGo(overlay);
      },
    };
  };
}

/** @throws BlockError in QEMU's words */
export function checkOverlayName(daemon: Daemon, name: string | undefined): string {
  if (name === undefined) throw new BlockError("EINVAL", "New overlay node-name missing");
  if (daemon.graph.find(name) !== undefined) {
    throw new BlockError("EEXIST", "New overlay node-name already in use");
  }
  if (!isNodeName(name)) throw new BlockError("EINVAL", `Invalid node-name: '${name}'`);
  return name;
}

function refuseBusy(daemon: Daemon, node: BlockNode): void {
  node.refuseBlocked();
  refuseBacking(daemon.graph, node);
}

function checkFormat(daemon: Daemon, format: string): void {
  if (!daemon.opener.driverNames.includes(format)) {
    throw new BlockError("EINVAL", `Unknown file format '${format}'`);
  }
  if (format !== "qcow2") {
    throw new BlockError("ENOTSUP", `Backing file not supported for file format '${format}'`);
  }
}

async function makeOverlay({ node, file }: SyncSnapshot): Promise<void> {
  if (path.resolve(node.filename) === path.resolve(file)) {
    throw new BlockError(
      "EINVAL",
      "Error: Trying to create an image with the same filename as the backing file",
    );
  }
  // The name is absolute, so that it means the same file wherever the overlay stands.
  await createOverlay({ path: file, backing: node, backingFile: linkName(imageOf(node)) });
}

function overlayOptions({ file, nodeName }: SyncSnapshot, format: string): NodeOptions {
  return {
    driver: format,
    "node-name": nodeName,
    file: { driver: "file", filename: file },
    // The node below is open already: it is linked, not opened again.
    backing: null,
  };
}
