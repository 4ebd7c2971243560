// One registry of what can go wrong in the world: each code says once which NBD errno, QMP class and exit code
// stand for it. Host errnos keep their names (EIO, ENOSPC ...); the other codes name a situation.

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
  EIO: meaning(NbdErrno.EIO, "input/output error"),
  ENOSPC: meaning(NbdErrno.ENOSPC, "no space left on the host"),
  EDQUOT: meaning(NbdErrno.ENOSPC, "disk quota exceeded on the host"),
  EFBIG: meaning(NbdErrno.ENOSPC, "file too large for the host"),
  ENOENT: meaning(NbdErrno.EIO, "no such file"),
  EACCES: meaning(NbdErrno.EPERM, "permission denied by the host"),
  EPERM: meaning(NbdErrno.EPERM, "operation not permitted"),
  EROFS: meaning(NbdErrno.EPERM, "read-only"),
  ENOMEM: meaning(NbdErrno.ENOMEM, "out of memory"),
  EBUSY: meaning(NbdErrno.EIO, "in use"),
  EEXIST: meaning(NbdErrno.EINVAL, "exists already"),
  EADDRINUSE: meaning(NbdErrno.EINVAL, "address already in use"),
  ESHUTDOWN: meaning(NbdErrno.ESHUTDOWN, "shutting down"),
  ECANCELED: meaning(NbdErrno.EIO, "cancelled"),
  // What the caller did wrong.
  EINVAL: meaning(NbdErrno.EINVAL, "invalid argument"),
  ENOTSUP: meaning(NbdErrno.ENOTSUP, "not supported"),
  EOVERFLOW: meaning(NbdErrno.EOVERFLOW, "value too large"),
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

/** The code of any thrown value; what is not a {@link BlockError} counts as EIO, or its host errno if known. */
export function errorCode(error: unknown): ErrorCode {
  if (error instanceof BlockError) return error.code;
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === "string" && Object.hasOwn(ERROR_CODES, code) ? (code as ErrorCode) : "EIO";
}

/** The message of any thrown value. */
export function errorMessage(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The NBD errno that stands for `error`. */
export function nbdErrno(error: unknown): number {
  return ERROR_CODES[errorCode(error)].nbd;
}
