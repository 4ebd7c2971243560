// The ways in which a person names an image, tried in this order:
//
//   device name   virtio0, or the id of the export            what the node is served as
//   node name     node-D
//   file name     /images/D.qcow2, D.qcow2 as an overlay's link has it, D.qcow2 in the folder of another
//   image of ours,
//                 or the last part of the path where only one image has it
//
// A name that fits two images by the same rule is refused, with both of them.

import path from "node:path";
import { BlockError } from "../../base/errors.ts";
import { chainOf, imageOf } from "../../block/chain.ts";
import type { BlockNode } from "../../block/node.ts";
import type { Device, HmpTarget } from "./target.ts";

/** The device of this name or export id. */
export function findDevice(target: HmpTarget, name: string): Device | undefined {
  const devices = target.devices();
  return devices.find((device) => device.name === name) ?? devices.find((device) => device.id === name);
}

/** @throws BlockError NODE_NOT_FOUND, with what there is, or EINVAL when the name is ambiguous */
export function findImage(target: HmpTarget, name: string): BlockNode {
  const device = findDevice(target, name);
  if (device !== undefined) return device.node;
  const nodes = [...target.nodes()];
  const node = nodes.find((each) => each.name === name) ?? byFile(images(nodes), name);
  if (node !== undefined) return node;
  const known = [...target.devices().map((each) => each.name), ...images(nodes).map((each) => each.name)];
  throw new BlockError(
    "NODE_NOT_FOUND",
    `Cannot find device, node or file '${name}'; there are: ${known.join(", ") || "none"}`,
  );
}

/** The base of a merge into `top`: an image below it. @throws BlockError EINVAL, with the images below */
export function findBase(target: HmpTarget, top: BlockNode, name: string): BlockNode {
  const below = chainOf(top).slice(1);
  const found =
    below.find((node) => node.name === name) ?? below.find((node) => findDevice(target, name)?.node === node);
  const base =
    found ??
    byFile(
      below.filter(({ filtered }) => filtered === undefined),
      name,
    );
  if (base !== undefined) return base;
  const above = [...target.nodes()].some((node) => node !== top && node.name === name && isAbove(node, top));
  const reason = name === top.name || above ? "it is not below it" : "it is not in its backing chain";
  const names = below.map((node) => node.name).join(", ") || "none";
  throw new BlockError(
    "EINVAL",
    `'${name}' cannot be the base for '${top.name}': ${reason}; images below it: ${names}`,
  );
}

function isAbove(node: BlockNode, other: BlockNode): boolean {
  return chainOf(node).includes(other);
}

/** Nodes that stand for an image, not for the file below one. */
export function images(nodes: readonly BlockNode[]): BlockNode[] {
  const files = new Set(nodes.map((node) => node.file));
  return nodes.filter((node) => !files.has(node));
}

function isLinked(overlay: BlockNode, node: BlockNode, name: string): boolean {
  const { backing } = overlay;
  if (backing === undefined || overlay.details().backingFile !== name) return false;
  return backing === node || imageOf(backing) === node;
}

function byFile(nodes: readonly BlockNode[], name: string): BlockNode | undefined {
  const folders = new Set(nodes.map((node) => path.dirname(path.resolve(node.filename))));
  const rules: ((node: BlockNode) => boolean)[] = [
    (node) => node.filename === name,
    (node) => path.resolve(node.filename) === path.resolve(name),
    (node) => nodes.some((overlay) => isLinked(overlay, node, name)),
    (node) => [...folders].some((folder) => path.resolve(folder, name) === path.resolve(node.filename)),
    (node) => path.basename(node.filename) === name,
  ];
  for (const rule of rules) {
    const fitting = nodes.filter((node) => node.filename !== "" && rule(node));
    if (fitting.length > 1) {
      const names = fitting.map((node) => `'${node.name}' (${node.filename})`).join(" and ");
      throw new BlockError("EINVAL", `'${name}' could be ${names}: use the node name`);
    }
    if (fitting.length === 1) return fitting[0];
  }
  return undefined;
}
