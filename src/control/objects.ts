// Objects of --object and object-add. They are kept by id and mean nothing here: the event loop needs no
// iothread. What would change what a client gets (TLS credentials) is refused where it is used.

import { accessSync, constants } from "node:fs";
import { BlockError } from "../base/errors.ts";
import { fsError } from "../sys/host-error.ts";
import { isIdentifier } from "./identifiers.ts";
import type { objectOptions } from "./qapi/object.ts";
import type { Infer } from "./qapi/types.ts";

export type ObjectOptions = Infer<typeof objectOptions>;

export class ObjectTable {
  readonly #objects = new Map<string, ObjectOptions>();

  /** @throws BlockError EINVAL, EEXIST in QEMU's words */
  add(options: ObjectOptions): void {
    const { id } = options;
    if (!isIdentifier(id)) throw new BlockError("EINVAL", "Parameter 'id' expects an identifier");
    if (this.#objects.has(id)) {
      throw new BlockError(
        "EEXIST",
        `attempt to add duplicate property '${id}' to object (type 'container')`,
      );
    }
    if (options["qom-type"] === "secret") checkSecret(options);
    this.#objects.set(id, options);
  }

  remove(id: string): void {
    if (!this.#objects.delete(id)) throw new BlockError("EINVAL", `object '${id}' not found`);
  }

  /** @throws BlockError EINVAL in QEMU's words when there is no such iothread */
  checkIothread(id: string): void {
    if (this.#objects.get(id)?.["qom-type"] === "iothread") return;
    throw new BlockError("EINVAL", `iothread "${id}" not found`);
  }

  /** @throws BlockError always: TLS is not there yet */
  refuseTls(id: string): never {
    if (!this.#objects.get(id)?.["qom-type"].startsWith("tls-creds")) {
      throw new BlockError("EINVAL", `No TLS credentials with id '${id}'`);
    }
    throw new BlockError("ENOTSUP", `TLS is not supported: the NBD server cannot use '${id}'`);
  }
}

/** A secret is not used yet, but a command line that could not work elsewhere does not work here. */
function checkSecret({ data, file }: { readonly data?: string; readonly file?: string }): void {
  if (data !== undefined && file !== undefined) {
    throw new BlockError("EINVAL", "'file' and 'data' are mutually exclusive");
  }
  if (data !== undefined) return;
  if (file === undefined) throw new BlockError("EINVAL", "Either 'file' or 'data' must be provided");
  try {
    accessSync(file, constants.R_OK);
  } catch (error) {
    throw fsError(error, `Unable to read ${file}: Failed to open file “${file}”`);
  }
}

/** The words for an id that is taken; on a command line, for character devices too. */
export function duplicateObject(id: string): BlockError {
  return new BlockError("EEXIST", `attempt to add duplicate property '${id}' to object (type 'container')`);
}
