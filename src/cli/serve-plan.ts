// What `strata serve` asks the daemon for, and what it tells the person. Pure: names and paths in, options
// and text out.

import type { ListenAddress } from "../../nbd/listen.ts";
import { formatNbdUri } from "../../nbd/uri.ts";
import type { NodeOptions } from "../block/node-options.ts";
import { nodeNamesFor } from "./node-names.ts";

/** An image of a chain as it was found. */
export interface FoundImage {
  readonly filename: string;
  readonly driver: string;
  /** Whether driver and file name say everything; a link may hold further options (`json:`). */
  readonly plain: boolean;
}

/**
 * Options that open the chain (top first) with a node name for every image. Where an image is not plain, the
 * link above it is followed instead, and the rest of the chain gets generated names.
 */
export function chainOptions(images: readonly FoundImage[], readOnly: boolean): NodeOptions {
  const names = nodeNamesFor(images.map((image) => image.filename));
  const known = images.findIndex((image) => !image.plain);
  const count = known < 0 ? images.length : known;
  let below: NodeOptions | null | undefined = known < 0 ? null : undefined;
  for (let at = count - 1; at >= 0; at--) {
    const { driver, filename } = images[at]!;
    const isTop = at === 0;
    const options: NodeOptions = {
      driver,
      "node-name": names[at]!,
      "read-only": !isTop || readOnly,
      file: { driver: "file", filename, ...(isTop && !readOnly && { discard: "unmap" }) },
      ...(isTop && !readOnly && { discard: "unmap" }),
      ...(driver !== "raw" && below !== undefined && { backing: below }),
    };
    below = options;
  }
  return below as NodeOptions;
}

export interface Serving {
  readonly address: ListenAddress;
  readonly exportName: string;
  readonly readOnly: boolean;
  /** Over TLS only. */
  readonly isSecure?: boolean;
}

/** The lines that say how to connect. */
export function connectLines({ address, exportName, readOnly, isSecure = false }: Serving): string {
  if (isSecure) {
    const place = formatNbdUri({ address, exportName }).replace(/^nbd/, "nbds");
    return `  address     ${place}\n  clients     need keys: docs/tls.md has lines for QEMU, libvirt and nbdinfo\n`;
  }
  const uri = formatNbdUri({ address, exportName });
  const drive = `file=${uri},format=raw,if=virtio${readOnly ? ",readonly=on" : ""}`;
  const lines = [
    `  address     ${uri}`,
    `  QEMU        qemu-system-x86_64 ... -drive '${drive.replaceAll("'", "'\\''")}'`,
    `  /dev/nbd0   ${nbdClientLine(address, exportName)}`,
  ];
  return lines.map((line) => line + "\n").join("");
}

function nbdClientLine(address: ListenAddress, exportName: string): string {
  const name = shellWord(exportName);
  if ("path" in address) return `nbd-client -unix ${shellWord(address.path)} /dev/nbd0 -name ${name}`;
  return `nbd-client ${shellWord(address.host)} ${address.port} /dev/nbd0 -name ${name}`;
}

/** A word as a shell takes it, quoted only where that is needed. */
export function shellWord(text: string): string {
  return /^[A-Za-z0-9_./:@%+=,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
