// Node names for images that a person names by file: A for images/A.qcow2.

import { isNodeName } from "../block/graph.ts";
import { socketStem } from "./control-directory.ts";

const NODE_NAME_BYTES_MAX = 31;

/** The file's name as a node name: without folder and extension, and with what a node name may hold. */
export function nodeNameOf(file: string): string {
  const stem = socketStem(file).slice(0, NODE_NAME_BYTES_MAX);
  return isNodeName(stem) ? stem : `disk-${stem}`.slice(0, NODE_NAME_BYTES_MAX);
}

/** `wanted`, or with a number where that is taken. */
export function freeNodeName(wanted: string, taken: ReadonlySet<string>): string {
  if (!taken.has(wanted)) return wanted;
  for (let number = 2; ; number++) {
    const suffix = `-${number}`;
    const name = wanted.slice(0, NODE_NAME_BYTES_MAX - suffix.length) + suffix;
    if (!taken.has(name)) return name;
  }
}

/** Names for the images of a chain, in order; each one valid and no two alike. */
export function nodeNamesFor(files: readonly string[]): string[] {
  const taken = new Set<string>();
  return files.map((file) => {
    const name = freeNodeName(nodeNameOf(file), taken);
    taken.add(name);
    return name;
  });
}
