import { enter, negotiate } from "./client.ts";
import type { ExportDetails } from "./client-handshake.ts";
import { Style } from "./protocol.ts";
import type { NbdTarget } from "./uri.ts";

/**
 * A connection through its handshake, in the style that the kernel's driver speaks (simple replies), whose
 * descriptor somebody else goes on with.
 */
export interface HandedConnection {
  readonly details: ExportDetails;
  readonly descriptor: number;
  /** Closes our descriptor. The connection lives on where somebody took hold of it, and ends otherwise. */
  release(): void;
}

/**
 * Enters an export and stops there.
 * @throws BlockError EIO when nobody answers, EINVAL when the server refuses or is no NBD server
 */
export function connectForHandOver({ address, exportName }: NbdTarget): Promise<HandedConnection> {
  return negotiate(address, async (wire) => {
    const details = await enter(wire, exportName, Style.SIMPLE);
    return { details, descriptor: wire.descriptor(), release: () => wire.destroy() };
  });
}
