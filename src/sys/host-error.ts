// What the host said, as a BlockError: the errno keeps its name where the registry has it, and stands in the
// message in any case, in the words of the C library because clients and people know those.

import { constants } from "node:os";
import { BlockError, ERROR_CODES, type ErrorCode } from "../base/errors.ts";

/** errno values by name, as this host numbers them. */
export const Errno = constants.errno;

const NAMES = new Map<number, string>();
for (const [name, value] of Object.entries(Errno)) if (!NAMES.has(value)) NAMES.set(value, name);

/** Words of strerror(3) for what file operations meet. */
const WORDS: Readonly<Record<string, string>> = {
  EPERM: "Operation not permitted",
  ENOENT: "No such file or directory",
  EINTR: "Interrupted system call",
  EIO: "Input/output error",
  ENXIO: "No such device or address",
  EBADF: "Bad file descriptor",
  EAGAIN: "Resource temporarily unavailable",
  ENOMEM: "Cannot allocate memory",
  EACCES: "Permission denied",
  EBUSY: "Device or resource busy",
  EEXIST: "File exists",
  EXDEV: "Invalid cross-device link",
  ENODEV: "No such device",
  ENOTDIR: "Not a directory",
  EISDIR: "Is a directory",
  EINVAL: "Invalid argument",
  ENFILE: "Too many open files in system",
  EMFILE: "Too many open files",
  ETXTBSY: "Text file busy",
  EFBIG: "File too large",
  ENOSPC: "No space left on device",
  EROFS: "Read-only file system",
  ENAMETOOLONG: "File name too long",
  ENOLCK: "No locks available",
  ENOSYS: "Function not implemented",
  ELOOP: "Too many levels of symbolic links",
  EOVERFLOW: "Value too large for defined data type",
  EOPNOTSUPP: "Operation not supported",
  ENOTSUP: "Operation not supported",
  ESTALE: "Stale file handle",
  EDQUOT: "Disk quota exceeded",
};

/** Codes of the registry for errnos that it does not list under their own name. */
const STAND_INS: Readonly<Record<string, ErrorCode>> = {
  EOPNOTSUPP: "ENOTSUP",
  ENOSYS: "ENOTSUP",
  ENOTDIR: "ENOENT",
  EISDIR: "EINVAL",
  ENAMETOOLONG: "EINVAL",
  ETXTBSY: "EBUSY",
};

export function errnoName(errno: number): string {
  return NAMES.get(errno) ?? `errno ${errno}`;
}

/** strerror(3). */
export function errnoText(errno: number): string {
  const name = errnoName(errno);
  return WORDS[name] ?? name;
}

/** The error for `errno` (positive). `what` says what was tried and where: "Could not open '/x'". */
export function hostError(errno: number, what: string, cause?: unknown): BlockError {
  const name = errnoName(errno);
  const code = Object.hasOwn(ERROR_CODES, name) ? (name as ErrorCode) : (STAND_INS[name] ?? "EIO");
  return new BlockError(code, `${what}: ${errnoText(errno)}`, cause);
}

/** The errno of what `node:fs` threw; EIO where it carries none. */
export function errnoOf(error: unknown): number {
  const errno = (error as { errno?: unknown } | null)?.errno;
  return typeof errno === "number" && errno < 0 ? -errno : Errno.EIO;
}

/** Wraps what `node:fs` threw; what is a BlockError already stays one. */
export function fsError(error: unknown, what: string): BlockError {
  return error instanceof BlockError ? error : hostError(errnoOf(error), what, error);
}

/** Whether `errno` says that the host lacks the operation, not that this call went wrong. */
export function isUnsupported(errno: number): boolean {
  return (
    errno === Errno.EOPNOTSUPP ||
    errno === Errno.ENOTSUP ||
    errno === Errno.ENOSYS ||
    errno === Errno.ENODEV ||
    errno === Errno.ENOTTY
  );
}
