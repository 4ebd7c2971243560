// Nodes as query-named-block-nodes tells them.

import { alignUp } from "../base/units.ts";
import { chainOf, imageOf, nodeBelow } from "../block/chain.ts";
import type { Graph } from "../block/graph.ts";
import { resolveBackingFile } from "../block/link-options.ts";
import type { BlockNode } from "../block/node.ts";
import type { MonitorNodes } from "./monitor-nodes.ts";

type Members = Record<string, unknown>;

/** All nodes in the reference's order, each with its image; unless `flat`, with its backing images inside. */
export function nodeInfos(graph: Graph, held: MonitorNodes, flat: boolean): Members[] {
  return inListingOrder(graph, held).map((node) => nodeInfo(node, flat));
}

/**
 * Newest first. A node that was opened with others below it is older than its backing images and newer than
 * its file: that is the order in which the reference names them.
 */
export function inListingOrder(graph: Graph, held: MonitorNodes): BlockNode[] {
  const listed = new Set<BlockNode>();
  const list = (node: BlockNode | undefined, evenIfHeld: boolean) => {
    if (node === undefined || listed.has(node) || (held.isHeld(node) && !evenIfHeld)) return;
    list(node.backing, false);
    listed.add(node);
    list(node.file, false);
  };
  for (const node of [...graph.nodes].reverse()) {
    if (held.isHeld(node)) list(node, true);
  }
  for (const node of graph.nodes) list(node, true);
  return [...listed];
}

function nodeInfo(node: BlockNode, flat: boolean): Members {
  const { backing } = node;
  return {
    file: node.filename,
    "node-name": node.name,
    ro: node.readOnly,
    drv: node.driverName,
    ...(backing === undefined ? {} : { backing_file: backing.filename }),
    backing_file_depth: flat ? 0 : chainOf(node).length - 1,
    active: true,
    encrypted: false,
    detect_zeroes: "off",
    bps: 0,
    bps_rd: 0,
    bps_wr: 0,
    iops: 0,
    iops_rd: 0,
    iops_wr: 0,
    image: imageInfo(node, flat),
    cache: { writeback: true, direct: false, "no-flush": false },
    write_threshold: 0,
  };
}

function imageInfo(node: BlockNode, flat: boolean): Members {
  const details = node.details();
  // Of a filter, as of a node that has nothing on the host.
  const allocated = node.filtered === undefined ? node.driver.allocatedBytes() : -1;
  const { clusterSize } = imageOf(node).details();
  const below = nodeBelow(node);
  return {
    filename: node.filename,
    format: node.driverName,
    "virtual-size": alignUp(node.size, 512),
    ...(allocated < 0 ? {} : { "actual-size": allocated }),
    "dirty-flag": false,
    ...(clusterSize === undefined ? {} : { "cluster-size": clusterSize }),
    ...(details.compressed === true ? { compressed: true } : {}),
    ...backingInfo(node),
    ...(details.snapshots?.length ? { snapshots: details.snapshots } : {}),
    ...(flat || below === undefined ? {} : { "backing-image": imageInfo(below, flat) }),
    ...formatSpecific(node),
  };
}

function backingInfo(node: BlockNode): Members {
  const { backingFile, backingFormat } = node.details();
  if (backingFile === undefined) return {};
  return {
    "backing-filename": backingFile,
    "full-backing-filename": fullName(node, backingFile),
    ...(backingFormat === undefined ? {} : { "backing-filename-format": backingFormat }),
  };
}

function fullName(node: BlockNode, backingFile: string): string {
  if (backingFile.startsWith("json:")) return backingFile;
  try {
    return resolveBackingFile(node.filename, backingFile);
  } catch {
    // A protocol of another program: the name as it stands.
    return backingFile;
  }
}

function formatSpecific(node: BlockNode): Members {
  if (node.driverName === "file") return { "format-specific": { type: "file", data: {} } };
  const { formatSpecific: specific } = node.details();
  return specific === undefined ? {} : { "format-specific": specific };
}
