import { BlockError } from "../src/base/errors.ts";
import { isPowerOfTwo, KiB } from "../src/base/units.ts";
import type { NbdBackend } from "./backend.ts";
import { BASE_ALLOCATION } from "./meta-context.ts";
import { PAYLOAD_BYTES_MAX, STRING_BYTES_MAX, Style, TransmissionFlags } from "./protocol.ts";

/** A disk offered under a name. */
export interface NbdExport {
  readonly name: string;
  readonly backend: NbdBackend;
}

/** What a handshake looks exports up in. */
export interface ExportDirectory {
  find(name: string): NbdExport | undefined;
  list(): Iterable<NbdExport>;
  /** No export can be entered any more. */
  readonly closing: boolean;
}

/** The meta contexts of an export, base:allocation first. */
export function contextsOf(offered: NbdExport): readonly string[] {
  return [BASE_ALLOCATION, ...offered.backend.contexts.filter((context) => context !== BASE_ALLOCATION)];
}

/** The transmission flags of an export for a client that agreed on `style`. */
export function transmissionFlags(backend: NbdBackend, style: Style): number {
  const F = TransmissionFlags;
  let flags = F.HAS_FLAGS | F.SEND_FLUSH | F.SEND_FUA | F.SEND_CACHE;
  if (backend.readOnly) flags |= F.READ_ONLY;
  else flags |= F.SEND_TRIM | F.SEND_WRITE_ZEROES | F.SEND_FAST_ZERO;
  if (backend.multiConn) flags |= F.CAN_MULTI_CONN;
  if (style !== Style.SIMPLE) flags |= F.SEND_DF;
  if (style === Style.EXTENDED) flags |= F.BLOCK_STATUS_PAYLOAD;
  return flags;
}

/** @throws BlockError EINVAL when the protocol does not allow such an export. */
export function checkExport({ name, backend }: NbdExport): void {
  const fail = (what: string) => {
    throw new BlockError("EINVAL", `NBD export '${name.slice(0, 80)}': ${what}`);
  };
  if (name.includes("\0")) fail("the name holds a NUL character");
  if (Buffer.byteLength(name) > STRING_BYTES_MAX) fail(`the name is longer than ${STRING_BYTES_MAX} bytes`);
  if (Buffer.byteLength(backend.description ?? "") > STRING_BYTES_MAX) {
    fail(`the description is longer than ${STRING_BYTES_MAX} bytes`);
  }
  const { minimum, preferred, maximum } = backend.blockSize;
  if (!isPowerOfTwo(minimum) || minimum > 64 * KiB) {
    fail(`minimum block ${minimum} is not a power of two up to 64 KiB`);
  }
  if (!isPowerOfTwo(preferred) || preferred < Math.max(512, minimum)) {
    fail(`preferred block ${preferred} is not a power of two of at least 512 and the minimum`);
  }
  if (maximum < preferred || maximum > PAYLOAD_BYTES_MAX || maximum % minimum !== 0) {
    fail(`maximum payload ${maximum} is not between the preferred block and ${PAYLOAD_BYTES_MAX}`);
  }
  if (!Number.isSafeInteger(backend.size) || backend.size < 0) fail(`size ${backend.size} is no size`);
}
