// One registry of what can go wrong in the world: each code says once which NBD errno, QMP class and exit
// code stand for it. Host errnos keep their names (EIO, ENOSPC ...) and the C library's words; the other
// codes name a situation.

/** What a code means to each kind of caller. `nbd` is the errno of the NBD protocol. */
interface ErrorMeaning {
  readonly nbd: number;
  readonly qmp: "GenericError" | "CommandNotFound" | "DeviceNotFound" | "DeviceNotActive" | "KVMMissingCap";
  readonly exit: number;
  readonly text: string;
}

/** NBD errno values, as in the protocol's section "Error values". */
export const NbdErrno = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

function meaning(nbd: number, text: string, more: Partial<ErrorMeaning> = {}): ErrorMeaning {
  return { nbd, qmp: "GenericError", exit: 1, text, ...more };
}

export const ERROR_CODES = {
  // What the host said.
  EIO: meaning(NbdErrno.EIO, "Input/output error"),
  ENOSPC: meaning(NbdErrno.ENOSPC, "No space left on device"),
  EDQUOT: meaning(NbdErrno.ENOSPC, "Disk quota exceeded"),
  EFBIG: meaning(NbdErrno.ENOSPC, "File too large"),
  ENOENT: meaning(NbdErrno.EIO, "No such file or directory"),
  EACCES: meaning(NbdErrno.EPERM, "Permission denied"),
  EPERM: meaning(NbdErrno.EPERM, "Operation not permitted"),
  EROFS: meaning(NbdErrno.EPERM, "Read-only file system"),
  ENOMEM: meaning(NbdErrno.ENOMEM, "Cannot allocate memory"),
  EBUSY: meaning(NbdErrno.EIO, "Device or resource busy"),
  EEXIST: meaning(NbdErrno.EINVAL, "File exists"),
  EADDRINUSE: meaning(NbdErrno.EINVAL, "Address already in use"),
  ESHUTDOWN: meaning(NbdErrno.ESHUTDOWN, "Cannot send after transport endpoint shutdown"),
  ECANCELED: meaning(NbdErrno.EIO, "Operation canceled"),
  // What the caller did wrong.
  EINVAL: meaning(NbdErrno.EINVAL, "Invalid argument"),
  ENOTSUP: meaning(NbdErrno.ENOTSUP, "Operation not supported"),
  EOVERFLOW: meaning(NbdErrno.EOVERFLOW, "Value too large for defined data type"),
  USAGE: meaning(NbdErrno.EINVAL, "wrong command line", { exit: 2 }),
  // What is wrong with an image.
  IMAGE_FORMAT: meaning(NbdErrno.EIO, "the image is not of this format"),
  IMAGE_CORRUPT: meaning(NbdErrno.EIO, "the image is corrupt"),
  IMAGE_UNSUPPORTED: meaning(NbdErrno.ENOTSUP, "the image uses a feature that is not supported"),
  IMAGE_LOCKED: meaning(NbdErrno.EIO, "the image is in use by another process"),
  // What is wrong with the graph.
  NODE_NOT_FOUND: meaning(NbdErrno.EINVAL, "no such node"),
  DEVICE_NOT_FOUND: meaning(NbdErrno.EINVAL, "no such device", { qmp: "DeviceNotFound" }),
  JOB_NOT_FOUND: meaning(NbdErrno.EINVAL, "no such job"),
  JOB_NOT_ACTIVE: meaning(NbdErrno.EINVAL, "no such block job", { qmp: "DeviceNotActive" }),
  COMMAND_NOT_FOUND: meaning(NbdErrno.EINVAL, "no such command", { qmp: "CommandNotFound" }),
  NODE_IN_USE: meaning(NbdErrno.EIO, "the node is in use"),
} as const satisfies Record<string, ErrorMeaning>;

export type ErrorCode = keyof typeof ERROR_CODES;

/**
 * An error of the world: host, guest, peer, image, user. `message` is a sentence for a person that says
 * what, where and (if there is a way) what to do; it is also the `desc` of a QMP error.
 */
export class BlockError extends Error {
  override readonly name = "BlockError";
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
  }
}

/**
 * The code of any thrown value; what is not a {@link BlockError} counts as EIO, or its host errno if known.
 */
export function errorCode(error: unknown): ErrorCode {
  if (error instanceof BlockError) return error.code;
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === "string" && Object.hasOwn(ERROR_CODES, code) ? (code as ErrorCode) : "EIO";
}

/** The message of any thrown value. */
export function errorMessage(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/**
 * The C library's words for a host errno, or our own for the other codes: what QEMU reports of a failed job.
 */
export function errorWords(error: unknown): string {
  return ERROR_CODES[errorCode(error)].text;
}

/** The NBD errno that stands for `error`. */
export function nbdErrno(error: unknown): number {
  return ERROR_CODES[errorCode(error)].nbd;
}
