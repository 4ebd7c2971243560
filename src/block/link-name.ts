// What a backing link has to say so that it leads to an image that is open.
//
//   a file that is an image from its first byte to its last     its path
//   a window of a file, an image in the disk of another one
//   json:{"driver":"raw","offset":...,"file":{...}}

import path from "node:path";
import { imageOf } from "./chain.ts";
import { backingOptions } from "./link-options.ts";
import type { BlockNode } from "./node.ts";
import type { NodeOptions } from "./node-options.ts";

/** The image's name for links: its absolute path, or a json: name where that would show other bytes. */
export function linkName(image: BlockNode): string {
  const isPlain = Object.keys(windowOf(image)).length === 0 && below(image)?.file === undefined;
  return isPlain ? path.resolve(image.filename) : `json:${JSON.stringify(describe(image))}`;
}

/** Whether a json: link, found in `overlayFile`, leads to `image`. */
export function leadsTo(
  link: string,
  overlayFile: string,
  format: string | undefined,
  image: BlockNode,
): boolean {
  try {
    return isDescribed(backingOptions(overlayFile, link, format), image);
  } catch {
    return false;
  }
}

/** Through filters: no link names them. */
function below(image: BlockNode): BlockNode | undefined {
  return image.file && imageOf(image.file);
}

function windowOf(image: BlockNode): Readonly<Record<string, number>> {
  return image.driver.windowOptions?.() ?? {};
}

function describe(image: BlockNode): Record<string, unknown> {
  const file = below(image);
  if (file === undefined) return { driver: image.driverName, filename: path.resolve(image.filename) };
  return { driver: image.driverName, ...windowOf(image), file: describe(file) };
}

function isDescribed(options: NodeOptions, image: BlockNode): boolean {
  let shown = options;
  while (isOptions(shown["image"])) shown = shown["image"];
  if (shown.driver !== image.driverName) return false;
  const { offset, size } = windowOf(image);
  if ((shown["offset"] ?? 0) !== (offset ?? 0) || shown["size"] !== size) return false;
  const file = below(image);
  if (file !== undefined) return isOptions(shown.file) && isDescribed(shown.file, file);
  const { filename } = shown;
  return typeof filename === "string" && path.resolve(filename) === path.resolve(image.filename);
}

function isOptions(value: unknown): value is NodeOptions {
  return typeof value === "object" && value !== null;
}
