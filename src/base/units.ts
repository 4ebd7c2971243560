/** Byte units. Every `offset` and `bytes` in this project is in bytes; other units stand last in a name. */
export const KiB = 1024;
export const MiB = 1024 * KiB;
export const GiB = 1024 * MiB;
export const TiB = 1024 * GiB;

/** Offset in the virtual disk, in bytes. */
export type GuestOffset = number & { readonly __unit?: "guest" };
/** Offset in the image file, in bytes. */
export type HostOffset = number & { readonly __unit?: "host" };

/** `value` rounded down to a multiple of `unit` (any unit, any value below 2**53). */
export function alignDown(value: number, unit: number): number {
  return value - (value % unit);
}

/** `value` rounded up to a multiple of `unit`. */
export function alignUp(value: number, unit: number): number {
  const rest = value % unit;
  return rest === 0 ? value : value + (unit - rest);
}

/** How many units of `unit` bytes hold `value` bytes. */
export function divideUp(value: number, unit: number): number {
  return Math.ceil(value / unit);
}

export function isPowerOfTwo(value: number): boolean {
  return Number.isSafeInteger(value) && value > 0 && 2 ** Math.round(Math.log2(value)) === value;
}

const SIZE_SUFFIXES = "BKMGTPE";

/**
 * Reads a size as qemu-img does: digits, optional fraction, optional suffix (b, k, M, G, T, P, E; powers of
 * 1024). Undefined when it is not one or does not fit 2**53 - 1.
 */
export function parseSize(text: string): number | undefined {
  const match = /^(\d+)(\.\d+)?\s*(?:([bkmgtpe])(?:i?b)?)?$/i.exec(text.trim());
  if (match === null) return undefined;
  const scale = match[3] === undefined ? 0 : SIZE_SUFFIXES.indexOf(match[3].toUpperCase());
  if (match[2] !== undefined && scale === 0) return undefined;
  const bytes = Math.floor(Number(match[1] + (match[2] ?? "")) * 1024 ** scale);
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** A size for people: "1.5 GiB", "64 KiB", "512 B". */
export function formatSize(bytes: number): string {
  const names = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  let scale = 0;
  let value = bytes;
  // From 1023.5 on it would be rounded to 1024.
  while (value >= 1023.5 && scale < names.length - 1) {
    value /= 1024;
    scale++;
  }
  const digits = value >= 100 || Number.isInteger(value) ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${names[scale]}`;
}
