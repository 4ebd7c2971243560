// What the backing link of an image means, as options of a node.
//
//   1. A relative name is relative to the folder of the image that holds the link.
//   2. What a link names is opened for reading only, whatever a `json:` name says.
//   3. A link names files, never nodes: what is called how in a running program is not the image's business.

import path from "node:path";
import { BlockError } from "../base/errors.ts";
import type { NodeOptions } from "./node-options.ts";

/** The name in a backing link as a path: relative to the folder of the image that holds it. */
export function resolveBackingFile(overlayFile: string, backingFile: string): string {
  const name = backingFile.startsWith("file:") ? backingFile.slice("file:".length) : backingFile;
  if (/^[A-Za-z][A-Za-z0-9+.-]*:/.test(name)) {
    throw new BlockError(
      "ENOTSUP",
      `Unknown protocol '${name.slice(0, name.indexOf(":"))}' in backing file '${backingFile}'`,
    );
  }
  if (name === "")
    throw new BlockError("EINVAL", `backing file '${backingFile}' of '${overlayFile}' has no name`);
  return path.isAbsolute(name) ? name : path.join(path.dirname(overlayFile), name);
}

/** Options for the image that a backing link names. */
export function backingOptions(
  overlayFile: string,
  backingFile: string,
  format: string | undefined,
): NodeOptions {
  if (backingFile.startsWith("json:")) return jsonOptions(backingFile, format);
  const filename = resolveBackingFile(overlayFile, backingFile);
  if (format === undefined) {
    throw new BlockError(
      "IMAGE_FORMAT",
      `the format of backing file '${backingFile}' is not stated in '${overlayFile}', and it is not ` +
        `guessed: state it with 'qemu-img rebase -u -b ${backingFile} -F FORMAT ${overlayFile}', ` +
        "or in the options ('backing')",
    );
  }
  return { driver: format, file: { driver: "file", filename } };
}

/** The options, with the file that the link names where they name none. */
export function withLink(
  options: NodeOptions,
  overlayFile: string,
  backingFile: string | undefined,
): NodeOptions {
  if (options.file !== undefined || options.driver === "file" || backingFile === undefined) return options;
  return { ...options, file: { driver: "file", filename: resolveBackingFile(overlayFile, backingFile) } };
}

function jsonOptions(link: string, format: string | undefined): NodeOptions {
  let parsed: unknown;
  try {
    parsed = JSON.parse(link.slice("json:".length));
  } catch (error) {
    throw new BlockError(
      "IMAGE_CORRUPT",
      `Could not parse the JSON options of backing file '${link}'`,
      error,
    );
  }
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) {
    throw new BlockError("IMAGE_CORRUPT", `Invalid JSON object given: '${link}'`);
  }
  const nested = nest(parsed as Record<string, unknown>);
  const driver = nested["driver"] ?? format;
  if (typeof driver !== "string") {
    throw new BlockError("IMAGE_FORMAT", `backing file '${link}' names no driver`);
  }
  if (driver === "file" && format !== undefined && format !== "file") {
    // The JSON names the protocol only; the format stands beside it.
    return { driver: format, file: { ...nested, driver: "file" } };
  }
  return { ...nested, driver } as NodeOptions;
}

/** `{"file.filename": x}` means `{"file": {"filename": x}}` in a json: name. */
function nest(flat: Record<string, unknown>): Record<string, unknown> {
  const nested: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(flat)) {
    const parts = key.split(".");
    // No option is called so; as a key it would be the object's own prototype.
    if (parts.includes("__proto__")) continue;
    let at = nested;
    for (const part of parts.slice(0, -1)) {
      if (typeof at[part] !== "object" || at[part] === null) at[part] = {};
      at = at[part] as Record<string, unknown>;
    }
    const last = parts[parts.length - 1]!;
    at[last] =
      typeof value === "object" && value !== null && !Array.isArray(value)
        ? nest(value as Record<string, unknown>)
        : value;
  }
  return nested;
}

/** Options that a link gave: for reading only, and without nodes by name. @throws BlockError EINVAL */
export function asLinked(options: NodeOptions, link: string): NodeOptions {
  const linked: Record<string, unknown> = { ...options, "read-only": true, "auto-read-only": false };
  for (const child of ["file", "image", "backing"]) {
    const value = linked[child];
    if (typeof value === "string" && value !== "") {
      throw new BlockError(
        "EINVAL",
        `backing file '${link}' names the node '${value}': it may name files only`,
      );
    }
    if (typeof value === "object" && value !== null) linked[child] = asLinked(value as NodeOptions, link);
  }
  return linked as NodeOptions;
}

/** Names of the files in the options of a node and of those below it. */
export function filenamesIn(options: NodeOptions): string[] {
  const { filename } = options;
  const names: string[] = typeof filename === "string" ? [filename] : [];
  for (const value of Object.values(options)) {
    if (typeof value === "object" && value !== null) names.push(...filenamesIn(value as NodeOptions));
  }
  return names;
}
